"""Writing to a peer that is gone: SIGPIPE, EPIPE, and loops that never stop."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from tcptrace.probes.diagnose.finding import Finding, incident_of
from tcptrace.probes.diagnose.flows import Event, Flow, Flows
from tcptrace.probes.diagnose.words import clock, peer, place

LOOP_FROM = 10
"""Failing calls in a second that are called a loop."""
_MAX_PROCESSES = 1024
_OUTCOMES = {
    "ignored": "SIGPIPE is ignored",
    "handled": "SIGPIPE is handled",
    "blocked": "SIGPIPE is blocked",
    "default": "SIGPIPE is at its default, which ends the process",
    None: "no SIGPIPE was raised (MSG_NOSIGNAL)",
}


@dataclass(slots=True)
class BrokenPipe:
    """Remembers the last failed write of each process, for the case that it ends."""

    _writes: OrderedDict[int, tuple[Event, Flow]] = field(default_factory=OrderedDict)
    _told: set[tuple[object, ...]] = field(default_factory=set)

    def write_error(self, event: Event, flow: Flow, flows: Flows) -> list[Finding]:
        """SP02 once for each place, WL01 at each report of a loop."""
        if event["pid"]:
            self._writes[event["pid"]] = (event, flow)
            if len(self._writes) > _MAX_PROCESSES:
                self._writes.popitem(last=False)
        if event["count"] >= LOOP_FROM:
            return [_loop(event, flow, flows)]
        place_of = (event["pid"], event["user_stack_id"])
        if event["sigpipe"] not in ("ignored", "handled", "blocked") or place_of in self._told:
            return []
        self._told.add(place_of)
        return [_survived(event, flow, flows)]

    def exit(self, event: Event, flows: Flows) -> list[Finding]:
        """SP01 where a failed write came before."""
        write, flow = self._writes.pop(event["pid"], (None, None))
        if event["signal"] != "SIGPIPE" or write is None or flow is None:
            return []
        return [_killed(event, write, flow, flows)]


def read_loop(event: Event, flow: Flow, flows: Flows) -> list[Finding]:
    """RL01: end of file, read again and again."""
    if event["count"] < LOOP_FROM:
        return []
    says = (
        f"Read loop: {event['count']} reads/s at end of file by thread {event['tid']} of "
        f"{event['comm']} (pid {event['pid']}), fd {event['fd']}{_inside(event, flows)}"
        f"{_since(flow.eof)}. Peer {peer(event)}."
    )
    return [_made("RL01", says, event, flow)]


def _killed(exit_: Event, write: Event, flow: Flow, flows: Flows) -> Finding:
    says = (
        f"{exit_['comm']} (pid {exit_['pid']}) was killed by SIGPIPE at {clock(exit_)}: "
        f"its write to fd {write['fd']}, peer {peer(write)}{_inside(write, flows)} failed with "
        f"{write['error']}{_before(flow, write)}. Disposition SIG_DFL."
    )
    finding = _made("SP01", says, write, flow)
    finding.evidence.append(exit_["seq"])
    return finding


def _survived(event: Event, flow: Flow, flows: Flows) -> Finding:
    handler = f" (handler {event['handler']})" if event["handler"] else ""
    says = (
        f"{event['comm']} (pid {event['pid']}): write to fd {event['fd']}, peer {peer(event)}"
        f"{_inside(event, flows)} failed with {event['error']}{_before(flow, event)}. "
        f"{_OUTCOMES[event['sigpipe']]}{handler}."
    )
    return _made("SP02", says, event, flow)


def _loop(event: Event, flow: Flow, flows: Flows) -> Finding:
    handler = f" (handler {event['handler']})" if event["handler"] else ""
    says = (
        f"Write loop: {event['count']} failing writes/s ({event['error']}) by thread "
        f"{event['tid']} of {event['comm']} (pid {event['pid']}), fd {event['fd']}"
        f"{_inside(event, flows)}{_since(flow.error)}{_before(flow, event)}. "
        f"{_OUTCOMES[event['sigpipe']]}{handler}. Peer {peer(event)}."
    )
    return _made("WL01", says, event, flow)


def _made(code: str, says: str, event: Event, flow: Flow) -> Finding:
    return Finding(
        code,
        says,
        event,
        cookies=[flow.cookie],
        evidence=[*flow.evidence, event["seq"]],
        stack_id=event["user_stack_id"],
        birth_stack_id=event["birth_stack_id"],
        since=flow.reset["ts"] if flow.reset else None,
        unknown=[] if flow.reset else ["what closed the connection before was not seen"],
        incident=incident_of(flow),
    )


def _inside(event: Event, flows: Flows) -> str:
    where = place(flows.frames(event["user_stack_id"]))
    return f", in {where}" if where else ""


def _since(first: Event | None) -> str:
    return f", since {clock(first)}" if first else ""


def _before(flow: Flow, event: Event) -> str:
    if flow.reset and flow.reset["seq"] < event["seq"]:
        return f"; RST {flow.reset['direction']} at {clock(flow.reset)}"
    return f"; FIN received at {clock(flow.fin)}" if flow.fin else ""
