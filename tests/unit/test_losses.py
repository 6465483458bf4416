"""Loss counters: per-CPU sums, told once, as differences."""

import os
import struct
from types import SimpleNamespace

import pytest

from tcptrace.probes.engine import bpfcall, losses, schema
from tcptrace.probes.engine.constants import Count

CPUS = 4
NO_PROGRAM = 99999
"""A descriptor that is not open: no fdinfo, nothing missed."""


@pytest.fixture
def counters(monkeypatch):
    """The map's content (slot -> value on each CPU); there is no BPF without root."""
    content = {int(slot): [0] * CPUS for slot in Count}

    def lookup(_fd, key, size):
        assert size == 8 * CPUS
        return struct.pack(f"={CPUS}Q", *content[struct.unpack("=I", key)[0]])

    monkeypatch.setattr(bpfcall, "lookup", lookup)
    monkeypatch.setattr(losses, "_possible_cpus", lambda: CPUS)
    return content


@pytest.fixture
def made(counters):
    return losses.Losses(
        SimpleNamespace(map=lambda _: SimpleNamespace(fd=0), program=lambda _: NO_PROGRAM)
    )


def test_nothing_lost_is_nothing_told(made):
    assert made.total == 0
    assert made.news() == []


def test_the_cpus_are_added_up(made, counters):
    counters[Count.RING_FULL] = [1, 2, 3, 4]
    assert made.news() == [{"event": "loss", "lost": 10, "where": "ring_full", "lost_total": 10}]


def test_later_news_are_only_what_came_since(made, counters):
    counters[Count.RING_FULL] = [5, 0, 0, 0]
    made.news()
    assert made.news() == []
    counters[Count.RING_FULL] = [5, 0, 2, 0]
    assert made.news() == [{"event": "loss", "lost": 2, "where": "ring_full", "lost_total": 7}]


def test_each_place_is_told_apart_and_all_count_in_the_total(made, counters):
    counters[Count.TABLE_FULL] = [1, 0, 0, 0]
    counters[Count.LISTENERS_FULL] = [0, 2, 0, 0]
    assert {(event["where"], event["lost"]) for event in made.news()} == {
        ("table_full", 1),
        ("listeners_full", 2),
    }
    assert made.total == 3


def test_what_the_second_copy_took_over_is_not_lost(made, counters, monkeypatch):
    monkeypatch.setattr(losses, "_misses", lambda fd: 10)
    counters[Count.TAKEN_OVER] = [4, 0, 3, 0]
    assert made.news() == [{"event": "loss", "lost": 3, "where": "nested", "lost_total": 3}]
    counters[Count.TAKEN_OVER] = [9, 0, 3, 0]  # read a moment later than the other figure
    assert made.total == 0
    assert made.news() == []


def test_stacks_that_were_not_taken_are_told_but_no_event_was_lost(made, counters):
    counters[Count.STACKS_SUPPRESSED] = [3, 0, 4, 0]
    assert made.news() == [
        {"event": "loss", "lost": 7, "where": "stacks_suppressed", "lost_total": 7}
    ]
    assert made.total == 0
    counters[Count.RING_FULL] = [1, 0, 0, 0]
    counters[Count.STACKS_SUPPRESSED] = [3, 1, 4, 0]
    assert {(event["where"], event["lost"]) for event in made.news()} == {
        ("ring_full", 1),
        ("stacks_suppressed", 1),
    }
    assert made.total == 1


def test_every_place_is_in_the_schema(made, counters, monkeypatch):
    monkeypatch.setattr(losses, "_misses", lambda fd: 99)
    for values in counters.values():
        values[0] = 5
    (where,) = [field for field in schema.LOSS if field.name == "where"]
    assert {event["where"] for event in made.news()} == set(where.values)


def test_the_kernels_own_count_of_skipped_programs_is_read_from_fdinfo():
    text = "pos:\t0\nprog_type:\t17\nrun_time_ns:\t0\nrecursion_misses:\t3\n"
    assert losses._MISSES.search(text)[1] == "3"
    with open(os.devnull) as ordinary:
        assert losses._misses(ordinary.fileno()) == 0
    assert losses._misses(NO_PROGRAM) == 0


def test_per_cpu_values_are_sized_for_all_possible_cpus():
    assert losses._possible_cpus() >= len(os.sched_getaffinity(0))
