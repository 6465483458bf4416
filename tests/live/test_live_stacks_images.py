"""The same address, another program there: libraries that come and go, rebuilt files, containers.

What is shown is what ran then; or that it is not known. Never what is there now.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from guilty import Connection, Starter, build, check_life, copy_of, told, twin
from harness import V4, Tcptrace, check_stream
from stacks import frame, frames, is_note, modules, own

FIXED = ("-O2", "-g", "-no-pie")
"""A program and its twin lie at the same addresses in every process."""


@pytest.fixture(scope="module")
def tracer():
    with Tcptrace("--inline-stacks", "--ring-mib", 64, "-p", os.getpid(), "-f") as running:
        yield running
        events = running.stop()
        assert running.process.returncode == 0
        check_stream(events)


@pytest.fixture
def start(ns):
    with contextlib.closing(Starter(ns)) as starter:
        yield starter


WARM = pytest.mark.parametrize("warm", [False, True], ids=["unknown", "known"])
"""Whether something of the process was seen and resolved before."""


@pytest.fixture
def host(start, family):
    return start.shop(family, build(source="stacks/host.c", name="host"))


def library(function, name=None):
    flags = ("-O2", "-g", "-shared", "-fPIC", f"-DFUNCTION={function}")
    return build(*flags, source="stacks/plugin.c", name=name or f"{function}.so")


def closes(host, tracer, process, function):
    one = Connection(host, (), process)
    process("close", function, one.far)
    return closed(tracer, one)


def closed(tracer, one):
    return told(tracer, one.cookie, "FIN_WAIT1")["close_stack"]


def in_library(name, *callers):
    within, function = frame("within", "plugin.c"), frame("FUNCTION", "plugin.c")
    inner = [within, function.replace("FUNCTION", name)]
    outer = [frame(mark, "host.c").replace("host_close", "do_close") for mark in callers]
    return [*inner, *outer, *map(frame, ["perform", "obey", "main"])]


@pytest.mark.parametrize("same_name", [False, True], ids=["names", "one_name"])
def test_library_comes_and_goes(host, tracer, same_name):
    """Another library at the address of one that was seen there."""
    places = []
    for name in ["first_close", "other_close", "first_close"]:
        path = library(name, "plugin.so" if same_name else None)
        places.append(host.server("load", path, name))
        stack = closes(host, tracer, host.server, name)
        assert own(stack) == in_library(name, "host_close"), stack
        assert modules(stack) == {"host", path.name}
        host.server("unload")
    assert places[0] == places[1]  # else the test shows nothing


@WARM
def test_library_is_swapped_at_once(host, tracer, warm):
    """The other one is there before the first one's stack is looked at."""
    first = library("first_close")
    before = host.server("load", first, "first_close")
    if warm:
        stack = closes(host, tracer, host.server, "first_close")
        assert own(stack) == in_library("first_close", "host_close")
    one = Connection(host, (), host.server)
    words = "swap", "first_close", one.far, library("other_close"), "other_close"
    assert host.server(*words) == before
    stack = closed(tracer, one)
    assert stack
    assert not [text for text in stack if "other_close" in text], stack
    if warm or not is_note(stack[-1]):
        assert own(stack) == in_library("first_close", "host_close", "do_swap"), stack
        assert Path(first).name in modules(stack)


def test_children_load_different_libraries(host, tracer):
    """Workers of one parent: what they load later lies at the same address in each."""
    loaded = {}
    for function in ["first_close", "other_close"]:
        child = host.server.fork()
        loaded[function] = child, child("load", library(function), function)
    assert len({place for _, (place,) in loaded.values()}) == 1  # else the test shows nothing
    for _ in range(2):
        for function, (child, _) in loaded.items():
            stack = closes(host, tracer, child, function)
            assert own(stack) == in_library(function, "host_close"), stack


def test_processes_without_random_addresses(start, tracer):
    """As under a debugger: two of them are alike in everything but what they load."""
    program = build(source="stacks/host.c", name="host")
    for function in ["first_close", "other_close"]:
        host = start.shop(V4, program, "setarch", "-R")
        host.server("load", library(function), function)
        stack = closes(host, tracer, host.server, function)
        assert own(stack) == in_library(function, "host_close"), stack


@pytest.mark.parametrize("before", [[], ["setarch", "-R"]], ids=["random", "fixed"])
@pytest.mark.parametrize("flags", [FIXED, ("-O2", "-g", "-static")], ids=["dynamic", "static"])
def test_rebuilt_in_place(start, tracer, before, flags):
    """Edit, compile, run: the same path and inode, at the same addresses, another program."""
    program = copy_of(build(*flags))
    inode = program.stat().st_ino
    shop = start.shop(V4, program, *before)
    check_life(*shop.arrival("left").whole(tracer), "left")
    shop.server.process.kill()
    shop.server.wait()
    program.write_bytes(twin(*flags).read_bytes())
    assert program.stat().st_ino == inode
    shop = start.shop(V4, program, *before)
    last_ack = shop.arrival("left").whole(tracer)[1]
    assert own(last_ack["eof_stack"]) == frames("left", deed="read", module="innocent")
    assert own(last_ack["close_stack"]) == frames("left", deed="close", module="innocent")


def test_container(start, tracer):
    """With a pid of its own counting, as in a container: it is found by this machine's pid."""
    shop = start.shop(V4)
    shop.server("new_pids")
    child = shop.server.fork()
    close_wait, last_ack = shop.arrival("left", server=child).whole(tracer)
    assert close_wait["pid"] == child.pid
    check_life(close_wait, last_ack, "left")
