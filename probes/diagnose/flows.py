"""What is remembered of each socket while the stream goes by: the evidence that rules look at.

Works on published events only (the stream as it is documented), so a recording is as
good as a live run. Bounded: the sockets heard of longest ago are forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

_MAX_FLOWS = 65536
_MAX_CLOSED = 4096
_MAX_STACKS = 16384

Event = dict[str, Any]


@dataclass(slots=True)
class Flow:
    """One socket. ``state``: the newest known. Times are seconds since 1970."""

    cookie: str
    state: str
    since_s: float
    last: Event
    """The newest event with its owner and addresses."""
    old: bool = False
    """Older than the tracer: how it was made, read and written before is not known."""
    fin: Event | None = None
    eof: Event | None = None
    eofs: int = 0
    error: Event | None = None
    errors: int = 0
    reset: Event | None = None
    closed: Event | None = None
    came_from: str | None = None
    """The state before CLOSE."""

    @property
    def evidence(self) -> list[int]:
        """seq of the events that are kept, in order."""
        kept = (self.fin, self.eof, self.reset, self.error, self.closed)
        return sorted(event["seq"] for event in kept if event)


@dataclass(slots=True)
class Flows:
    """All sockets that were heard of, by cookie, and the stacks by their ids.

    What is in CLOSE is kept apart, for a while: a write may still fail, a RST still be told.
    """

    by_cookie: OrderedDict[str, Flow] = field(default_factory=OrderedDict)
    gone: OrderedDict[str, Flow] = field(default_factory=OrderedDict)
    stacks: OrderedDict[str, list[str]] = field(default_factory=OrderedDict)
    now_s: float = 0.0

    def take(self, event: Event) -> Flow | None:
        """Remember one event; the flow that it belongs to."""
        self.now_s = max(self.now_s, seconds(event["ts"]))
        if event["event"] == "stack":
            self._keep_stack(event)
        if not event.get("cookie"):
            return None
        flow = self._flow(event)
        _NOTES.get(event["event"], _ignore)(flow, event)
        if flow.state == "CLOSE" and flow.cookie in self.by_cookie:
            del self.by_cookie[flow.cookie]
            self.gone[flow.cookie] = flow
            if len(self.gone) > _MAX_CLOSED:
                self.gone.popitem(last=False)
        return flow

    def frames(self, stack_id: str | None) -> list[str]:
        """The frames of a stack; empty if it is not known."""
        return self.stacks.get(stack_id or "", [])

    def _keep_stack(self, event: Event) -> None:
        self.stacks[event["stack_id"]] = event["frames"]
        while len(self.stacks) > _MAX_STACKS:
            self.stacks.popitem(last=False)

    def _flow(self, event: Event) -> Flow:
        cookie = event["cookie"]
        flow = self.by_cookie.get(cookie) or self.gone.get(cookie)
        if flow is None:
            # Its state is known from transitions only: what else is told may be about the past.
            flow = Flow(cookie, event.get("new_state") or "", seconds(event["ts"]), event)
            self.by_cookie[cookie] = flow
            while len(self.by_cookie) > _MAX_FLOWS:
                self.by_cookie.popitem(last=False)
        if cookie in self.by_cookie:
            self.by_cookie.move_to_end(cookie)
        if event.get("pid") or flow.last.get("pid") is None:
            flow.last = event
        return flow


def seconds(ts: str) -> float:
    """Of an RFC 3339 time with nanoseconds; precise to the microsecond."""
    return datetime.fromisoformat(f"{ts[:26]}+00:00").timestamp()


def _state(flow: Flow, event: Event) -> None:
    flow.state, flow.since_s = event["new_state"], seconds(event["ts"])
    if flow.state == "CLOSE":
        flow.came_from = event["old_state"]
    if event["reason"] == "fin_received" and flow.fin is None:
        flow.fin = event
    if event["reason"] in ("local_close", "shutdown", "process_exit"):
        flow.closed = event


def _existing(flow: Flow, event: Event) -> None:
    flow.old = True
    flow.state = event["new_state"]


def _eof(flow: Flow, event: Event) -> None:
    flow.eof = flow.eof or event
    flow.eofs += event["count"]


def _write_error(flow: Flow, event: Event) -> None:
    flow.error = flow.error or event
    flow.errors += event["count"]


def _reset(flow: Flow, event: Event) -> None:
    flow.reset = flow.reset or event


def _ignore(_flow: Flow, _event: Event) -> None:
    """Says nothing that a rule asks for."""


_NOTES = {
    "state": _state,
    "existing": _existing,
    "eof": _eof,
    "write_error": _write_error,
    "reset": _reset,
}
