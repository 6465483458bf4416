"""CLOSE_WAIT: the peer has closed, this side has not. Grouped by code path."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tcptrace.probes.diagnose.finding import Finding
from tcptrace.probes.diagnose.flows import Event, Flow, Flows
from tcptrace.probes.diagnose.words import clock, many, peer, place, span

_MAX_SHOWN = 5


@dataclass(slots=True)
class CloseWait:
    """``older_than_s``: how long a socket may stay in CLOSE_WAIT before it is reported."""

    older_than_s: float
    _told: dict[tuple[object, ...], set[str]] = field(default_factory=dict)

    def look(self, flows: Flows) -> list[Finding]:
        """Findings for groups with sockets that were not told yet."""
        groups: dict[tuple[object, ...], list[Flow]] = {}
        for flow in flows.by_cookie.values():
            if flow.state == "CLOSE_WAIT" and self._is_due(flow, flows.now_s):
                groups.setdefault(_group(flow), []).append(flow)
        self._forget(groups)
        return [
            _finding(str(key[0]), members, flows)
            for key, members in groups.items()
            if self._is_news(key, members)
        ]

    def _is_due(self, flow: Flow, now_s: float) -> bool:
        return _is_older(flow) or now_s - flow.since_s >= self.older_than_s

    def _is_news(self, key: tuple[object, ...], members: list[Flow]) -> bool:
        cookies = {flow.cookie for flow in members}
        told = self._told.setdefault(key, set())
        news = not cookies <= told
        told |= cookies
        return news

    def _forget(self, groups: Iterable[tuple[object, ...]]) -> None:
        keep = set(groups)
        self._told = {key: told for key, told in self._told.items() if key in keep}


def _group(flow: Flow) -> tuple[object, ...]:
    last, eof = flow.last, flow.eof or {}
    return (
        _code(flow),
        last.get("pid") or last.get("listener_pid"),
        eof.get("user_stack_id"),
        last.get("birth_stack_id"),
    )


def _code(flow: Flow) -> str:
    if flow.last.get("pid") is None and flow.last.get("listener_pid"):
        return "CW03"
    if flow.eof:
        return "CW01"
    return "CW04" if _is_older(flow) else "CW02"


def _is_older(flow: Flow) -> bool:
    """In CLOSE_WAIT already when tracing began: how long is not known."""
    return flow.old and flow.fin is None


def _finding(code: str, members: list[Flow], flows: Flows) -> Finding:
    first = min(members, key=lambda flow: flow.since_s)
    return Finding(
        code,
        " ".join(_says(code, members, first, flows)),
        first.last,
        cookies=[flow.cookie for flow in members],
        evidence=[seq for flow in members for seq in flow.evidence] or [first.last["seq"]],
        stack_id=(first.eof or {}).get("user_stack_id"),
        birth_stack_id=first.last.get("birth_stack_id"),
        since=first.fin["ts"] if first.fin else None,
        unknown=_unknown(first),
    )


def _unknown(first: Flow) -> list[str]:
    if _is_older(first):
        return ["when its FIN came, and how it was made: it is older than tcptrace"]
    return ["how it was made: it is older than tcptrace"] if first.old else []


def _says(code: str, members: list[Flow], first: Flow, flows: Flows) -> list[str]:
    last = first.last
    longest = "" if _is_older(first) else f", the longest for {span(flows.now_s - first.since_s)}"
    where = f"of {last['comm']} (pid {last['pid']})"
    if code == "CW03":
        where = f"in the accept queue of {last['listener_comm']} (pid {last['listener_pid']})"
    told = [f"{many(len(members), 'socket')} {where} in CLOSE_WAIT{longest}."]
    if first.fin:
        told.append(f"FIN received at {clock(first.fin)}.")
    told += _reading(code, first, flows)
    if made := place(flows.frames(last.get("birth_stack_id"))):
        told.append(f"Made in {made}.")
    told.append(_which(members))
    return told


def _reading(code: str, first: Flow, flows: Flows) -> list[str]:
    if code == "CW01" and first.eof:
        where = place(flows.frames(first.eof.get("user_stack_id")))
        inside = f" in {where}" if where else ""
        return [f"read() returned 0 at {clock(first.eof)}{inside}; close() was never called."]
    queued = (first.fin or first.last).get("recv_q") or 0
    if code == "CW02":
        return ["End of file was not read since then.", *_queued(queued)]
    return _unread(queued)


def _queued(recv_q: int) -> list[str]:
    """How much of it was read since is not in the stream."""
    if recv_q < 2:
        return []
    return [f"Recv-Q was {recv_q} then: {many(recv_q - 1, 'byte')} not read and 1 for the FIN."]


def _unread(recv_q: int) -> list[str]:
    """ss counts the FIN's own sequence number as one byte."""
    if not recv_q:
        return []
    return [f"Recv-Q {recv_q}: {many(recv_q - 1, 'unread byte')} and 1 for the FIN."]


def _which(members: list[Flow]) -> str:
    shown = ", ".join(_one(flow.last) for flow in members[:_MAX_SHOWN])
    more = f" and {len(members) - _MAX_SHOWN} more" if len(members) > _MAX_SHOWN else ""
    return f"Sockets: {shown}{more}."


def _one(event: Event) -> str:
    held = "" if event.get("fd") is None else f"fd {event['fd']} "
    return f"{held}from {peer(event)}"
