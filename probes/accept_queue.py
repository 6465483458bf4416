"""Transitions of connections that nobody has accepted yet, kept back for a moment.

A quick client may send its FIN before the server's accept() returns. Whoever
accepts the connection within that moment owns it, and its earlier transitions
are told with that owner; else they are told as they stand: not accepted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from tcptrace.probes.engine.constants import Fact
from tcptrace.probes.enrich.owner import KERNEL_CLOSED
from tcptrace.probes.states import STACKS, Event

PATIENCE_S = 0.1

_OWNER = ("pid", "tid", "comm", "uid", "fd", "how", "start_ns")


class AcceptQueue:
    """A stage: events in, events out, some of them later."""

    def __init__(self) -> None:
        self._kept: dict[int, list[Event]] = {}
        self._deadlines: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def pass_on(self, event: Event) -> Iterator[Event]:
        """The event, after those kept back of the same socket; or nothing, if it is kept."""
        socket = event["sk"]
        if self._is_another(socket, event):
            yield from self._take(socket)
        if _can_wait(event):
            self._kept.setdefault(socket, []).append(event)
            self._deadlines.setdefault(socket, time.monotonic() + PATIENCE_S)
            return
        kept = self._take(socket)
        for earlier in kept:
            yield _with_owner(earlier, event)
        if not (kept and event["accepted"] and event["event"] == "existing"):
            yield event

    def _is_another(self, socket: int, event: Event) -> bool:
        """The kernel may give the address to a new socket at once: the cookie tells."""
        kept = self._kept.get(socket)
        if kept is None or not (_is_real(kept[0]["cookie"]) and _is_real(event["cookie"])):
            return False
        return bool(kept[0]["cookie"] != event["cookie"])

    def overdue(self) -> Iterator[Event]:
        """Those whose moment has passed."""
        now = time.monotonic()
        for socket in [socket for socket, until in self._deadlines.items() if until <= now]:
            yield from self._take(socket)

    def rest(self) -> Iterator[Event]:
        """All of them: the run ends."""
        for socket in list(self._kept):
            yield from self._take(socket)

    def _take(self, socket: int) -> list[Event]:
        self._deadlines.pop(socket, None)
        return self._kept.pop(socket, [])


def _is_real(cookie: str | None) -> bool:
    """Numbered by the kernel, and so not to be had by two sockets."""
    return bool(cookie) and not str(cookie).startswith("t")


def _can_wait(event: Event) -> bool:
    """Somebody may still accept it, or its owner is just closing it and the next event names it."""
    return (
        (bool(event["facts"] & Fact.CHILD) or _is_being_closed(event))
        and event["event"] == "state"
        and event["new_state"] != "CLOSE"
        and not event["waited_long"]
    )


def _is_being_closed(event: Event) -> bool:
    """A packet came while close() was between descriptor table and socket."""
    return bool(event["uncertain"]) or event["owner_unknown"] == KERNEL_CLOSED


def _with_owner(earlier: Event, event: Event) -> Event:
    if event["pid"] is None:
        return earlier
    owner = {name: event[name] for name in _OWNER}
    if earlier["reason"] == "handshake":
        earlier["reason"] = "accept"
        if event["accepted_ns"]:
            earlier["accept_wait_us"] = (event["accepted_ns"] - earlier["ts_ns"]) // 1000
    if "stack_ids" in earlier and "stack_ids" in event:
        earlier["stack_ids"] = _with_birth(earlier["stack_ids"], event["stack_ids"])
    listener = {"listener_pid": None, "listener_comm": None}
    return earlier | owner | listener | {"owner_unknown": None, "uncertain": False}


def _with_birth(earlier: tuple[int, ...], event: tuple[int, ...]) -> tuple[int, ...]:
    """accept() came later than the transition; the code path that led to it is known now."""
    at = STACKS.index("birth")
    return earlier if earlier[at] else (*earlier[:at], event[at], *earlier[at + 1 :])
