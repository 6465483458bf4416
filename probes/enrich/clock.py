"""Kernel time to wall-clock time.

Records carry CLOCK_MONOTONIC (bpf_ktime_get_ns), process start times
CLOCK_BOOTTIME. One pair of readings at the start ties both to UTC, so that
intervals within a run are exact even if somebody sets the clock meanwhile.
"""

from __future__ import annotations

import functools
import os
import time

NS = 1_000_000_000
TICK_NS = NS // os.sysconf("SC_CLK_TCK")
_MONOTONIC_COARSE = 6  # include/uapi/linux/time.h; the time module does not name it


class Clock:
    """Turns kernel nanoseconds into RFC 3339 UTC text with nanoseconds."""

    def __init__(self) -> None:
        self.monotonic_ns, self.realtime_ns = _pair(time.CLOCK_MONOTONIC)
        boot_ns, realtime_ns = _pair(time.CLOCK_BOOTTIME)
        self._mono_offset = self.realtime_ns - self.monotonic_ns
        self._boot_offset = realtime_ns - boot_ns

    def wall(self, monotonic_ns: int) -> str:
        """Of an event."""
        return rfc3339(monotonic_ns + self._mono_offset)

    def wall_of_boot(self, boottime_ns: int) -> str:
        """Of a process start: to the clock tick (10 ms) that /proc/PID/stat gives, no finer."""
        return rfc3339(boottime_ns // TICK_NS * TICK_NS + self._boot_offset)


def rfc3339(epoch_ns: int) -> str:
    """``2026-11-21T14:05:09.000000001Z``."""
    seconds, ns = divmod(epoch_ns, NS)
    return f"{_second(seconds)}.{ns:09d}Z"


@functools.lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _pair(clock: int) -> tuple[int, int]:
    """The clock and the wall clock at one moment: the tightest of five tries."""
    best = (1 << 62, 0, 0)
    for _ in range(5):
        before = time.clock_gettime_ns(clock)
        wall = time.time_ns()
        after = time.clock_gettime_ns(clock)
        best = min(best, (after - before, (before + after) // 2, wall))
    return best[1], best[2]


def ticks_per_second() -> int:
    """The kernel's CONFIG_HZ: a coarse clock advances once per tick."""
    return round(1 / time.clock_getres(_MONOTONIC_COARSE))
