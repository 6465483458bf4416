"""The last stage: from working events to what the stream's schema promises."""

from __future__ import annotations

import os
import platform
import shlex
import socket
import sys
import time
from typing import Any

import tcptrace
from tcptrace.probes.engine import schema
from tcptrace.probes.engine.constants import TcpState
from tcptrace.probes.enrich.clock import NS, Clock
from tcptrace.probes.enrich.procfs import comm_text
from tcptrace.probes.filters import Filters, comm_key
from tcptrace.probes.states import Event

_NAMES = {
    kind: tuple(field.name for field in fields if not field.optional)
    for kind, fields in schema.EVENTS.items()
}
_ALL_NAMES = {kind: tuple(field.name for field in fields) for kind, fields in schema.EVENTS.items()}
"""With the frames of stacks, which come all or none."""


class Publisher:
    """Numbers the events, writes their times out, and keeps the counts of the ``end`` event."""

    def __init__(self, filters: Filters) -> None:
        self._filters = filters
        self._comms = {comm_text(comm_key(comm)) for comm in filters.comms}
        self._clock = Clock()
        self._seq = 0
        self._started_ns = time.monotonic_ns()
        self._counts = dict.fromkeys(schema.EVENTS, 0)
        self._unknown = 0

    @property
    def states(self) -> int:
        """Transitions published so far."""
        return self._counts["state"]

    def start(self, rungs: list[str]) -> dict[str, Any]:
        """The stream's first event."""
        system = os.uname()
        self._started_ns = time.monotonic_ns()
        return self._numbered(
            {
                "event": "start",
                "ts_ns": self._clock.monotonic_ns,
                "schema": schema.VERSION,
                "version": tcptrace.__version__,
                "host": socket.gethostname(),
                "kernel": system.release,
                "machine": platform.machine(),
                "command": _printable(shlex.join(["tcptrace", *sys.argv[1:]])),
                "rungs": rungs,
                "monotonic_ns": str(self._clock.monotonic_ns),
            }
        )

    def publish(self, events: list[Event], limit: int | None = None) -> list[dict[str, Any]]:
        """The events that the filters want, for a sink; up to ``limit`` transitions in all."""
        wanted = []
        for event in events:
            if limit and self.states >= limit:
                break
            if self._wanted(event):
                wanted.append(self._numbered(event))
        return wanted

    def end(self, why: str, lost: int) -> dict[str, Any]:
        """The stream's last event."""
        return self._numbered(
            {
                "event": "end",
                "why": why,
                "events": self._seq + 1,
                "states": self._counts["state"],
                "existing": self._counts["existing"],
                "owner_unknown": self._unknown,
                "lost": lost,
                "ran_s": round((time.monotonic_ns() - self._started_ns) / NS, 3),
            }
        )

    def _numbered(self, event: Event) -> dict[str, Any]:
        self._seq += 1
        kind = event["event"]
        self._counts[kind] += 1
        event["seq"] = self._seq
        event["ts"] = self._clock.wall(event.get("ts_ns") or time.monotonic_ns())
        start_ns = event.get("start_ns")
        event["start_time"] = self._clock.wall_of_boot(start_ns) if start_ns else None
        if event.get("uncertain"):
            self._unknown += event.get("pid") is None
        names = _ALL_NAMES[kind] if "user_stack" in event else _NAMES[kind]
        return {name: event[name] for name in names}

    def _wanted(self, event: Event) -> bool:
        if event["event"] not in ("state", "existing"):
            return True
        return self._wants_states(event) and self._wants_owner(event)

    def _wants_states(self, event: Event) -> bool:
        """Again here: one record may carry three transitions, of which one is wanted."""
        old, new = event.get("old_state"), event["new_state"]
        return self._filters.wants_state(*(TcpState[name] for name in (old, new) if name))

    def _wants_owner(self, event: Event) -> bool:
        if not self._filters.comms:
            return True
        return (event["comm"] or event["listener_comm"]) in self._comms


def _printable(text: str) -> str:
    """Arguments may be bytes that are no UTF-8."""
    return os.fsencode(text).decode(errors="backslashreplace")
