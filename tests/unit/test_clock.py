"""Kernel time to text."""

import os
import re
import time

import pytest

from tcptrace.probes.enrich.clock import NS, TICK_NS, Clock, rfc3339, ticks_per_second

RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")


@pytest.mark.parametrize(
    ("epoch_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (1, "1970-01-01T00:00:00.000000001Z"),
        (NS - 1, "1970-01-01T00:00:00.999999999Z"),
        (951_782_400 * NS, "2000-02-29T00:00:00.000000000Z"),
        (1_763_700_000_000_021_222, "2025-11-21T04:40:00.000021222Z"),  # above 2^53
        (4_102_444_799 * NS + 5, "2099-12-31T23:59:59.000000005Z"),
    ],
)
def test_nanoseconds_survive(epoch_ns, text):
    assert rfc3339(epoch_ns) == text


def test_the_time_zone_of_the_machine_does_not_matter(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert rfc3339(86_400 * NS) == "1970-01-02T00:00:00.000000000Z"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_an_event_of_now_is_told_as_now():
    clock = Clock()
    before, monotonic, after = time.time_ns(), time.monotonic_ns(), time.time_ns()
    text = clock.wall(monotonic)
    assert RFC3339.fullmatch(text)
    slack = NS // 20
    assert rfc3339(before - slack) <= text <= rfc3339(after + slack)


def test_intervals_are_exact():
    clock = Clock()
    assert clock.wall(clock.monotonic_ns) == rfc3339(clock.realtime_ns)
    assert clock.wall(clock.monotonic_ns + 7) == rfc3339(clock.realtime_ns + 7)


def test_a_start_time_is_the_same_from_the_kernel_and_from_proc():
    """The kernel half has nanoseconds, /proc/PID/stat ticks: both name one process."""
    clock = Clock()
    exact = 123_456 * TICK_NS + 4_321_000
    assert clock.wall_of_boot(exact) == clock.wall_of_boot(exact // TICK_NS * TICK_NS)
    assert clock.wall_of_boot(exact) != clock.wall_of_boot(exact + TICK_NS)


def test_a_tick_is_what_proc_counts_in():
    assert TICK_NS * os.sysconf("SC_CLK_TCK") == NS


def test_the_kernels_own_tick_is_one_that_it_can_be_built_with():
    assert ticks_per_second() in (100, 250, 300, 1000)
