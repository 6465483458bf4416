"""Processes that are several, or others before anybody can look: fork, exec, exit, a reused pid.

What is shown is what ran then; or that it is not known. Never what is there now.
"""

from __future__ import annotations

import contextlib
import os

import pytest
from guilty import USUAL, Starter, build, check_life, the, told, twin
from harness import V4, V6, Tcptrace, check_stream
from stacks import check, check_unless_unknown, frames

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


@pytest.fixture(
    params=[(V4, FIXED), (V6, FIXED), (V4, USUAL)], ids=["ipv4-no_pie", "ipv6-no_pie", "ipv4-pie"]
)
def shop(request, start):
    family, flags = request.param
    found = start.shop(family, build(*flags))
    found.twin = twin(*flags)
    return found


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
        event = told(tracer, cookie, "ESTABLISHED")
        stack = event["birth_stack"]
    else:
        event = told(tracer, cookie, "FIN_WAIT1")
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
        assert shop.server("then_exec", shop.twin, "accept", shop.listener) == [shop.server.pid]
        shop.customer("close", near)
        event = told(tracer, cookie, "CLOSE_WAIT")
        stack = event["birth_stack"]
    else:
        one = shop.arrival()
        assert shop.server("then_exec", shop.twin, "close", one.far) == [shop.server.pid]
        event = told(tracer, one.cookie, "FIN_WAIT1")
        stack = event["close_stack"]
    assert event["pid"] == shop.server.pid
    (check if warm else check_unless_unknown)(stack, frames("then_exec", deed=deed), deed)


def test_exec_between_two_deeds(shop, tracer):
    """The same pid, since the same moment, at the same addresses: but another program."""
    check_life(*shop.arrival("left").whole(tracer), "left")
    one = shop.arrival("left")
    one.greet()
    shop.server("exec", shop.twin)
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
    child("exec", shop.twin)
    check_life(*shop.arrival("left", server=child).whole(tracer), "left", module="innocent")
    check_life(*shop.arrival("left").whole(tracer), "left")


def test_prefork(shop, tracer):
    """The children lie in the same places as their parent, and are told apart from it."""
    servers = [*(shop.server.fork() for _ in range(3)), shop.server]
    for server, way in zip(servers, ["left", "right", "deep 3", "thread"], strict=True):
        close_wait, last_ack = shop.arrival(way, server=server).whole(tracer)
        assert close_wait["pid"] == last_ack["pid"] == server.pid
        check_life(close_wait, last_ack, way)


def test_inherited(shop, tracer):
    """Accepted by the parent, closed by the child: each deed is shown as its own doer's."""
    one = shop.arrival("left")
    child = shop.server.fork()
    shop.server("deep 3", "close", one.far)
    one.left(tracer)
    assert child("right", "read", one.far, 5) == [0]
    child("right", "close", one.far)
    last_ack = the(tracer.story(one.cookie), "LAST_ACK")
    assert last_ack["pid"] == child.pid
    check(last_ack["birth_stack"], frames("left", deed="accept"), "accept")
    check(last_ack["eof_stack"], frames("right", deed="read"), "read")
    check(last_ack["close_stack"], frames("right", deed="close"), "close")


def test_ended_by_another_holder(shop, tracer):
    """A child that shares the socket shuts it down: its stack is not its parent's."""
    one = shop.arrival("left")
    child = shop.server.fork()
    child("right", "shutdown", one.far)
    event = told(tracer, one.cookie, "FIN_WAIT1")
    assert event["pid"] == shop.server.pid
    assert event["user_stack"] is None
    if event["close_stack"]:  # who did it may be told, but not as somebody else
        check(event["close_stack"], frames("right", deed="shutdown"), "shutdown")


def test_both_ends_in_one_process(shop, tracer):
    """A packet reaches the one while the process runs: but in a call on the other."""
    near, _ = shop.server("connect", shop.family.loop, shop.port)
    far, _ = shop.server("left", "accept", shop.listener)
    cookie = shop.server.cookie(far)
    shop.server("right", "close", near)
    close_wait = tracer.story(cookie, until="CLOSE_WAIT")[-1]
    assert close_wait["pid"] == shop.server.pid
    assert close_wait["user_stack"] is close_wait["close_stack"] is None
    check(close_wait["birth_stack"], frames("left", deed="accept"), "accept")


def test_reused_pid(start, shop, tracer):
    """A stranger gets the dead one's pid, and lies at the same addresses."""
    first = shop.server.fork()
    check_life(*shop.arrival("left", server=first).whole(tracer), "left")
    first.send("exit")
    first.wait()
    other = start.shop(shop.family, shop.twin)
    stranger = other.server.fork(pid=first.pid)
    assert stranger.pid == first.pid
    events = other.arrival("left", server=stranger).whole(tracer)
    check_life(*events, "left", module="innocent")


@WARM
def test_vfork_and_exec(shop, tracer, warm):
    """The child accepts within its parent's memory, then becomes another program."""
    get_known(shop, tracer, warm)
    near, cookie = shop.queued()
    (child,) = shop.server("vforked", shop.twin, "accept", shop.listener)
    shop.customer("close", near)
    event = told(tracer, cookie, "CLOSE_WAIT")
    assert event["pid"] == child
    checked = check if warm else check_unless_unknown
    checked(event["birth_stack"], frames("vforked", deed="accept"), "accept")
    check_life(*shop.arrival("left").whole(tracer), "left")
