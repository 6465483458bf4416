"""The owner of a socket that the kernel half could not name for certain.

A record says whether the recorded owner still held the socket (VERIFIED). Where
it did not, /proc is searched for the socket's inode; what is found goes back
into the kernel's table, so that one search serves all later events. Where
nothing is found the event says why: never a guess.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tcptrace.probes.engine.constants import Fact
from tcptrace.probes.enrich import procfs
from tcptrace.probes.enrich.procfs import Holder

NOT_ACCEPTED = "not accepted yet: it waits in the accept queue"
ORPHAN = "orphan: closed by its process before tcptrace could see whose it was"
CLOSED = "closed: the kernel keeps the remainder"
KERNEL_SOCKET = "a socket of the kernel itself: no process has a descriptor of it"
KERNEL_CLOSED = "the kernel, not a process, dropped the last reference"
NOBODY_FOUND = "held by a process that was gone, or had passed it on, when /proc was searched"

Adopter = Callable[[Holder, int], object]
"""Tells the kernel half: this holder has the socket with that inode."""


def unknown_because(facts: int) -> str | None:
    """Why there is no owner to name, read off the facts; None if one must be searched for."""
    if facts & Fact.FILE_CLOSING:
        return KERNEL_CLOSED
    if facts & Fact.HAS_FILE:
        return None
    if facts & Fact.ORPHAN:
        return ORPHAN
    return KERNEL_SOCKET if facts & Fact.HAS_SOCKET else NOT_ACCEPTED


class OwnerSearch:
    """Finds holders by inode. A look through /proc serves all events that are older than it."""

    def __init__(self, adopt: Adopter) -> None:
        self._adopt = adopt
        self._holders: dict[int, list[Holder]] = {}
        self._looked_at_ns = 0

    def settle(self, event: dict[str, Any]) -> dict[str, Any]:
        """Fill in the owner of a held socket from /proc; leaves it unknown, with the reason."""
        inode, (recorded, recorded_how) = event["inode"], event["recorded"]
        holder = self._find(inode, recorded, event["ts_ns"])
        info = procfs.process(holder.pid) if holder else None
        if holder is None or info is None:
            return event | NOBODY | {"owner_unknown": NOBODY_FOUND}
        self._adopt(holder, inode)
        how = recorded_how if holder.pid == recorded else _inherited(info, recorded)
        return event | {
            "pid": info.pid,
            "tid": info.pid,
            "comm": info.comm,
            "uid": info.uid,
            "fd": holder.fd,
            "how": how,
            "start_ns": info.start_ns,
            "owner_unknown": None,
        }

    def _find(self, inode: int, recorded: int, ts_ns: int) -> Holder | None:
        if recorded:
            for fd, found in procfs.sockets_of(recorded):
                if found == inode:
                    return Holder(recorded, fd)
        if self._looked_at_ns <= ts_ns:
            self._look()
        found_holders = self._holders.get(inode)
        return found_holders[0] if found_holders else None

    def _look(self) -> None:
        self._looked_at_ns = time.monotonic_ns()
        self._holders = procfs.holders()


NOBODY: dict[str, Any] = dict.fromkeys(("pid", "tid", "comm", "uid", "fd", "how"), None) | {
    "start_ns": 0
}


def _inherited(info: procfs.Process, recorded: int) -> str:
    """``fork`` if the recorded owner is an ancestor, else only that it was found."""
    seen: procfs.Process | None = info
    while recorded and seen and seen.parent > 1:
        if seen.parent == recorded:
            return "fork"
        seen = procfs.process(seen.parent)
    return "fd_scan"
