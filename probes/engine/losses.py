"""What was lost in the kernel, by place; each counter is read and reported, never reset."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Any

from tcptrace.probes.engine import bpfcall
from tcptrace.probes.engine.constants import Count
from tcptrace.probes.engine.programs import Programs

_MISSES = re.compile(r"recursion_misses:\s*(\d+)")


_PLACES = (Count.RING_FULL, Count.TABLE_FULL, Count.LISTENERS_FULL, Count.DEEDS_FULL)
_NO_EVENT = "stacks_suppressed"
"""An event without its stack is no lost event."""


class Losses:
    """Counters of the C half, and the kernel's own of transitions that it did not show us.

    The kernel skips a program that interrupts itself on one CPU (since 6.1) and
    counts that in its fdinfo (5.12). What none of the program's further copies took
    over (bpf/nesting.h) is lost: that place is called ``nested``.
    """

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self._fd = programs.map("counts").fd
        self._cpus = _possible_cpus()
        self._reported: dict[str, int] = {}

    @property
    def total(self) -> int:
        return sum(total for where, total in self._now().items() if where != _NO_EVENT)

    def news(self) -> list[dict[str, Any]]:
        """``loss`` events for what was lost since the last call."""
        events = []
        for where, total in self._now().items():
            before = self._reported.get(where, 0)
            if total > before:
                self._reported[where] = total
                events.append(
                    {"event": "loss", "lost": total - before, "where": where, "lost_total": total}
                )
        return events

    def _now(self) -> dict[str, int]:
        found = {count.name.lower(): self._sum(count) for count in _PLACES}
        found[_NO_EVENT] = self._sum(Count.STACKS_SUPPRESSED)
        missed = _misses(self._programs.program("on_state_change"))
        return found | {"nested": max(missed - self._sum(Count.TAKEN_OVER), 0)}

    def _sum(self, slot: int) -> int:
        raw = bpfcall.lookup(self._fd, struct.pack("=I", slot), 8 * self._cpus) or b""
        return sum(value for (value,) in struct.iter_unpack("=Q", raw))


def _misses(fd: int) -> int:
    try:
        text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    except OSError:
        return 0
    match = _MISSES.search(text)
    return int(match[1]) if match else 0


def _possible_cpus() -> int:
    """Size of a per-CPU value: all possible CPUs, not only those online."""
    try:
        text = Path("/sys/devices/system/cpu/possible").read_text()
    except OSError:
        return os.cpu_count() or 1
    return max(int(part) for part in re.findall(r"\d+", text)) + 1
