"""Programs that are somebody else before anybody can look: exit, exec, vfork, dlclose.

What is shown is what ran then; or that it is not known. Never what is there now.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from guilty import Connection, Starter, build, check_life, the, twin
from harness import Tcptrace, check_stream
from stacks import check, check_unless_unknown, frame, frames, is_note, modules, own

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


@pytest.fixture
def shop(start, family):
    return start.shop(family, build(*FIXED))


WARM = pytest.mark.parametrize("warm", [False, True], ids=["unknown", "known"])
"""Whether something of the process was seen and resolved before."""


def get_known(shop, tracer, warm):
    if warm:
        check_life(*shop.arrival("right").whole(tracer), "right")


@WARM
@pytest.mark.parametrize("deed", ["accept", "close"])
def test_exit_at_once(shop, tracer, warm, deed):
    get_known(shop, tracer, warm)
    if deed == "accept":
        _, cookie = shop.queued()
        shop.server.send("then_exit", "accept", shop.listener)
    else:
        one = shop.arrival()
        cookie = one.cookie
        shop.server.send("then_exit", "close", one.far)
    shop.server.wait()
    if deed == "accept":
        event = the(tracer.story(cookie, until="FIN_WAIT2"), "ESTABLISHED")
        stack = event["birth_stack"]
    else:
        event = the(tracer.story(cookie, until="FIN_WAIT2"), "FIN_WAIT1")
        stack = event["close_stack"]
    assert event["pid"] == shop.server.pid
    (check if warm else check_unless_unknown)(stack, frames("then_exit", deed=deed), deed)


@WARM
@pytest.mark.parametrize("deed", ["accept", "close"])
def test_exec_at_once(shop, tracer, warm, deed):
    """The next program lies at the same addresses and calls its functions otherwise."""
    get_known(shop, tracer, warm)
    if deed == "accept":
        near, cookie = shop.queued()
        assert shop.server("then_exec", twin(*FIXED), "accept", shop.listener) == [shop.server.pid]
        shop.customer("close", near)
        event = the(tracer.story(cookie, until="CLOSE_WAIT"), "CLOSE_WAIT")
        stack = event["birth_stack"]
    else:
        one = shop.arrival()
        assert shop.server("then_exec", twin(*FIXED), "close", one.far) == [shop.server.pid]
        event = the(tracer.story(one.cookie, until="FIN_WAIT2"), "FIN_WAIT1")
        stack = event["close_stack"]
    assert event["pid"] == shop.server.pid
    (check if warm else check_unless_unknown)(stack, frames("then_exec", deed=deed), deed)


def test_exec_between_two_deeds(shop, tracer):
    """The same pid, since the same moment, at the same addresses: but another program."""
    check_life(*shop.arrival("left").whole(tracer), "left")
    one = shop.arrival("left")
    one.greet()
    shop.server("exec", twin(*FIXED))
    one.left(tracer)
    last_ack = one.ended(tracer)
    check(last_ack["birth_stack"], frames("left", deed="accept"), "accept")
    for name, deed in [("eof", "read"), ("close", "close")]:
        expected = frames("left", deed=deed, module="innocent")
        check(last_ack[f"{name}_stack"], expected, deed, "innocent")
    check_life(*shop.arrival("left").whole(tracer), "left", module="innocent")


def test_fork_and_exec(shop, tracer):
    """The child becomes another program; the parent stays what it is."""
    check_life(*shop.arrival("left").whole(tracer), "left")
    child = shop.server.fork()
    check_life(*shop.arrival("left", server=child).whole(tracer), "left")
    child("exec", twin(*FIXED))
    check_life(*shop.arrival("left", server=child).whole(tracer), "left", module="innocent")
    check_life(*shop.arrival("left").whole(tracer), "left")


def test_reused_pid(start, shop, tracer):
    """A stranger gets the dead one's pid, and lies at the same addresses."""
    first = shop.server.fork()
    check_life(*shop.arrival("left", server=first).whole(tracer), "left")
    first.send("exit")
    first.wait()
    other = start.shop(shop.family, twin(*FIXED))
    stranger = other.server.fork(pid=first.pid)
    assert stranger.pid == first.pid
    events = other.arrival("left", server=stranger).whole(tracer)
    check_life(*events, "left", module="innocent")


@WARM
def test_vfork_and_exec(shop, tracer, warm):
    """The child accepts within its parent's memory, then becomes another program."""
    get_known(shop, tracer, warm)
    near, cookie = shop.queued()
    (child,) = shop.server("vforked", twin(*FIXED), "accept", shop.listener)
    shop.customer("close", near)
    event = the(tracer.story(cookie, until="CLOSE_WAIT"), "CLOSE_WAIT")
    assert event["pid"] == child
    checked = check if warm else check_unless_unknown
    checked(event["birth_stack"], frames("vforked", deed="accept"), "accept")
    check_life(*shop.arrival("left").whole(tracer), "left")


@pytest.fixture
def host(start, family):
    return start.shop(family, build(source="stacks/host.c", name="host"))


def library(function, name=None):
    flags = ("-O2", "-g", "-shared", "-fPIC", f"-DFUNCTION={function}")
    return build(*flags, source="stacks/plugin.c", name=name or f"{function}.so")


def closed(tracer, one):
    return the(tracer.story(one.cookie, until="FIN_WAIT2"), "FIN_WAIT1")["close_stack"]


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
        one = Connection(host, (), host.server)
        host.server("close", name, one.far)
        stack = closed(tracer, one)
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
        one = Connection(host, (), host.server)
        host.server("close", "first_close", one.far)
        assert own(closed(tracer, one)) == in_library("first_close", "host_close")
    one = Connection(host, (), host.server)
    words = "swap", "first_close", one.far, library("other_close"), "other_close"
    assert host.server(*words) == before
    stack = closed(tracer, one)
    assert stack
    assert not [text for text in stack if "other_close" in text], stack
    if warm or not is_note(stack[-1]):
        assert own(stack) == in_library("first_close", "host_close", "do_swap"), stack
        assert Path(first).name in modules(stack)
