"""Compiled programs as data: relocation of map descriptors, and the cache between runs."""

import os
import struct

import pytest

from tcptrace.probes.engine import cache
from tcptrace.probes.engine.compiled import Compiled, Hook, Instructions, MapShape, Plan
from tcptrace.probes.engine.layout import Layout

LOAD_64, PSEUDO_MAP_FD, EXIT = 0x18, 1, 0x95


def instruction(opcode, registers, value):
    return struct.pack("=BBhi", opcode, registers, 0, value)


def load_map(fd):
    return instruction(LOAD_64, PSEUDO_MAP_FD << 4 | 2, fd) + instruction(0, 0, 0)


NUMBER = instruction(LOAD_64, 1, 7) + instruction(0, 0, 0)  # a 64-bit constant, not a map
CODE = load_map(7) + NUMBER + load_map(8) + load_map(7) + instruction(EXIT, 0, 0)
PLAN = Plan(
    sources=("states.c",),
    hooks=(Hook("on_state_change", "raw", "inet_sock_set_state"), Hook("again", "tracepoint")),
    on_demand=("adopt",),
    layouts=("state_record",),
    definitions={"MAX_SOCKETS": 10},
)
COMPILED = Compiled(
    maps={"events": MapShape(27, 0, 0, 4096, 0)},
    programs={"on_state_change": Instructions(CODE, {0: "events"})},
    layouts={"state_record": Layout(("ts_ns",), "Q", 8)},
)


def test_the_places_of_the_maps_are_found_and_filled_anew():
    linked = Instructions.linked(CODE, {7: "events", 8: "counts"})
    assert linked.maps == {0: "events", 32: "counts", 48: "events"}
    expected = load_map(21) + NUMBER + load_map(22) + load_map(21) + instruction(EXIT, 0, 0)
    assert linked.with_maps({"events": 21, "counts": 22}) == expected


def test_filling_does_not_change_what_is_kept():
    linked = Instructions.linked(CODE, {7: "events", 8: "counts"})
    linked.with_maps({"events": 21, "counts": 22})
    assert linked.code == CODE


def test_a_plan_knows_how_each_function_is_attached():
    assert PLAN.kinds == {"adopt": "raw", "on_state_change": "raw", "again": "tracepoint"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TCPTRACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def with_definitions(**definitions):
    return Plan(
        PLAN.sources, PLAN.hooks, PLAN.on_demand, layouts=PLAN.layouts, definitions=definitions
    )


def test_what_was_saved_is_loaded(folder):
    assert cache.load(PLAN) is None
    cache.save(PLAN, COMPILED)
    assert cache.load(PLAN) == COMPILED
    assert folder.stat().st_mode & 0o077 == 0


def test_another_constant_is_another_program(folder):
    cache.save(PLAN, COMPILED)
    assert cache.load(with_definitions(MAX_SOCKETS=11)) is None
    assert cache.load(with_definitions(MAX_SOCKETS=10, FILTER_PIDS=1)) is None


def test_the_order_of_the_constants_does_not_matter(folder):
    assert cache.key(with_definitions(A=1, B=2)) == cache.key(with_definitions(B=2, A=1))


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_others_can_write_is_not_trusted(folder, what):
    cache.save(PLAN, COMPILED)
    (folder if what == "folder" else folder / cache.key(PLAN)).chmod(0o777)
    assert cache.load(PLAN) is None


def test_nothing_is_saved_where_others_can_write(folder):
    folder.mkdir()
    folder.chmod(0o777)
    cache.save(PLAN, COMPILED)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"torn", b"\x80\x04N."], ids=["empty", "torn", "None"])
def test_a_broken_file_costs_only_time(folder, content):
    cache.save(PLAN, COMPILED)
    (folder / cache.key(PLAN)).write_bytes(content)
    assert cache.load(PLAN) is None


def test_a_folder_that_cannot_be_made_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TCPTRACE_CACHE", str(tmp_path / "file" / "cache"))
    cache.save(PLAN, COMPILED)
    assert cache.load(PLAN) is None


def test_the_oldest_are_dropped_and_use_keeps_young(folder):
    plans = [with_definitions(NUMBER=number) for number in range(cache._KEPT + 1)]
    for age, plan in enumerate(plans[:-1]):
        cache.save(plan, COMPILED)
        os.utime(folder / cache.key(plan), (age, age))
    cache.load(plans[0])
    cache.save(plans[-1], COMPILED)
    kept = [plan for plan in plans if cache.load(plan)]
    assert kept == [plans[0], *plans[2:]]
