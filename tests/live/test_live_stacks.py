"""Who made, read, wrote and closed a socket, by function and line, out to main().

The oracles are marks in the sources (see stacks.py), and gdb.
"""

from __future__ import annotations

import contextlib
import os

import pytest
from guilty import Shop, Starter, build, check_life, the, told, twin
from harness import V4, Tcptrace, check_stream
from stacks import (
    STACKS,
    WAYS,
    blocked,
    check,
    check_beginning,
    frames,
    gdb_frames,
    modules,
    own,
)

ALL_AT_ONCE = ["left", "inlined", "variable 200", "aligned 100", "cloned", "unlikely", "one_way"]
LEVELS = pytest.mark.parametrize("flags", [("-O0", "-g"), ("-O2", "-g")], ids=["O0", "O2"])


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
    return start.shop(family)


def test_whole_connection(shop, tracer):
    for _ in range(2):
        check_life(*shop.arrival().whole(tracer))


@LEVELS
@pytest.mark.parametrize("way", [way for way in WAYS if way != "coroutine"])
def test_way(start, tracer, way, flags):
    """Each kind of frame. The first time a stack may be cut, if it is longer than a snapshot."""
    shop = start.shop(V4, build(*flags))
    may_be_cut = way in ("big_room", "gap", "deep 200", "signal")
    first = shop.arrival(way).whole(tracer)
    check_life(*first, way, checked=check_beginning if may_be_cut else check)
    second = shop.arrival(way).whole(tracer)
    check_life(*second, way, checked=check_beginning if way == "deep 200" else check)


@LEVELS
def test_coroutine(start, tracer, flags):
    """makecontext(): its stack begins nowhere. What is certain is complete, no garbage follows."""
    shop = start.shop(V4, build(*flags))
    for _ in range(2):
        stack = shop.arrival("coroutine").whole(tracer)[1]["eof_stack"]
        certain = [text for text in stack if "[guessed" not in text]
        assert own(certain) == frames("coroutine", deed="read")
        assert modules(stack) == {"guilty"}, stack


def test_too_deep_is_said(shop, tracer):
    """The kernel walks 64 frames: 200 cannot be complete, but what is there is right."""
    for _ in range(2):
        _, last_ack = shop.arrival("deep 200").whole(tracer)
        assert last_ack["eof_stack"][-1].startswith("[truncated")
        check_beginning(last_ack["eof_stack"], frames("deep 200", deed="read"), "read", least=32)


@LEVELS
@pytest.mark.parametrize("last", ["signal", "thread"])
def test_gdb_agrees(start, tracer, last, flags):
    """All ways at once, and the debugger's view of the same read while it blocks."""
    ways = [*ALL_AT_ONCE, last]
    shop = start.shop(V4, build(*flags))
    shop.arrival(*ways).whole(tracer)
    one = shop.arrival(*ways)
    one.server.send(*ways, "read", one.far, 5)
    by_gdb = gdb_frames(blocked(one.server, one.far))
    one.left(tracer)
    assert one.server.receive() == [0]
    one.server(*ways, "close", one.far)
    found = the(tracer.story(one.cookie), "LAST_ACK")["eof_stack"]
    check(found, frames(*ways, deed="read"), "read")
    assert [text.removesuffix(" [inlined]") for text in own(found)] == by_gdb


@pytest.mark.parametrize("between", [[], ["gap"], ["big_room"]], ids=["near", "gap", "big_room"])
def test_two_paths_to_one_read(shop, tracer, between):
    """One read(), and the same callers up to a frame behind a buffer of 0, 24 or 64 KiB."""
    for turn, side in enumerate(["left", "right", "right", "left", "right", "left"]):
        checked = check_beginning if between and turn < 2 else check
        events = shop.arrival(side, *between).whole(tracer)
        check_life(*events, side, *between, checked=checked)


def test_each_stack_of_one_socket_by_another_path(shop, tracer):
    one = shop.arrival("left")
    one.customer("write", one.near, 10)
    one.server("right", "read", one.far, 5)
    one.server("deep 3", "read", one.far, 5)
    one.server("inlined", "write", one.far, 5)
    one.customer("read", one.near, 5)
    close_wait = one.left(tracer)
    check(close_wait["birth_stack"], frames("left", deed="accept"), "accept")
    check(close_wait["last_read_stack"], frames("deep 3", deed="read"), "read")
    check(close_wait["last_write_stack"], frames("inlined", deed="write"), "send")
    assert one.server("thread", "read", one.far, 5) == [0]
    one.server("unlikely", "close", one.far)
    last_ack = the(tracer.story(one.cookie), "LAST_ACK")
    check(last_ack["birth_stack"], frames("left", deed="accept"), "accept")
    check(last_ack["eof_stack"], frames("thread", deed="read"), "read")
    check(last_ack["last_write_stack"], frames("inlined", deed="write"), "send")
    check(last_ack["close_stack"], frames("unlikely", deed="close"), "close")


@pytest.mark.parametrize(
    ("reading", "writing", "ending"),
    [
        ("recv", "sendmsg", "dup2"),
        ("recvmsg", "writev", "exit"),
        ("readv", "sendfile", "dup2"),
        ("recv", "plain_write", "exit"),
    ],
)
def test_other_system_calls(shop, tracer, reading, writing, ending):
    near, cookie = shop.queued()
    far, _ = shop.server("accept4", shop.listener)
    shop.server(writing, far, 5)
    shop.customer("read", near, 5)
    shop.customer("close", near)
    close_wait = tracer.story(cookie, until="CLOSE_WAIT")[-1]
    check(close_wait["birth_stack"], frames(deed="accept4"), "accept4")
    check(close_wait["last_write_stack"], frames(deed=writing), writing.removeprefix("plain_"))
    assert shop.server(reading, far, 5) == [0]
    shop.server.send(ending, far)
    last_ack = the(tracer.story(cookie), "LAST_ACK")
    check(last_ack["eof_stack"], frames(deed=reading), reading)
    if ending == "exit":  # its memory is gone by then
        assert last_ack["close_stack"] is last_ack["user_stack"] is None
    else:
        check(last_ack["close_stack"], frames(deed=ending), ending)


def test_sockets_of_one_process_are_told_apart(shop, tracer):
    """Two connections at once: what is learnt of one is not shown of the other."""
    first, second = shop.arrival("left"), shop.arrival("right")
    first.greet()
    close_wait = second.left(tracer)
    check(close_wait["birth_stack"], frames("right", deed="accept"), "accept")
    assert close_wait["last_read_stack"] is close_wait["last_write_stack"] is None
    second.ended(tracer)
    close_wait, last_ack = first.left(tracer), first.ended(tracer)
    check_life(close_wait, last_ack, "left")


def test_listen(shop, tracer):
    cookie = shop.server.cookie(shop.listener)
    (event,) = tracer.story(cookie, until="LISTEN")
    check(event["user_stack"], frames(deed="listen"), "listen")
    assert event["birth_stack"] == event["user_stack"]
    shop.server("left", "close", shop.listener)
    event = tracer.story(cookie)[-1]
    check(event["birth_stack"], frames(deed="listen"), "listen")
    check(event["close_stack"], frames("left", deed="close"), "close")
    assert event["user_stack"] == event["close_stack"]


@pytest.mark.parametrize("deed", ["connect", "connect_later"])
def test_connect(start, family, tracer, deed):
    """The guilty one is the customer here."""
    shop = Shop(start(twin()), start(), family)
    near, _ = shop.customer("left", deed, family.loop, shop.port)
    cookie = shop.customer.cookie(near)
    events = tracer.story(cookie, until="ESTABLISHED")
    for stack in events[0]["user_stack"], *(one["birth_stack"] for one in events):
        check(stack, frames("left", deed=deed), "connect")
    shop.customer("right", "close", near)
    fin_wait = told(tracer, cookie, "FIN_WAIT1")
    check(fin_wait["birth_stack"], frames("left", deed=deed), "connect")
    check(fin_wait["close_stack"], frames("right", deed="close"), "close")


@pytest.mark.parametrize("state", ["FIN_WAIT1", "FIN_WAIT2"])
def test_shutdown_then_close(shop, tracer, state):
    """Who ended the connection is the shutdown(); the close() after it is its own event."""
    one = shop.arrival()
    if state == "FIN_WAIT1":
        shop.silence_customer()
    one.server("left", "shutdown", one.far)
    event = told(tracer, one.cookie, "FIN_WAIT1")
    check(event["close_stack"], frames("left", deed="shutdown"), "shutdown")
    assert event["user_stack"] == event["close_stack"]
    told(tracer, one.cookie, state)
    one.server("right", "close", one.far)
    shop.silence_customer(ended=True)
    one.customer("close", one.near)
    (event,) = [one for one in tracer.story(one.cookie) if one["reason"] == "local_close"]
    assert event["old_state"] == event["new_state"] == state
    check(event["user_stack"], frames("right", deed="close"), "close")
    check(event["close_stack"], frames("left", deed="shutdown"), "shutdown")


def test_reset(shop, tracer):
    """By the close() of who leaves something unread; the other end did nothing."""
    one = shop.arrival("left")
    theirs = shop.customer.cookie(one.near)
    shop.customer("write", one.near, 5)
    shop.server("right", "close", one.far)
    event = tracer.story(one.cookie)[-1]
    check(event["close_stack"], frames("right", deed="close"), "close")
    assert event["user_stack"] == event["close_stack"]
    event = tracer.story(theirs)[-1]
    assert event["reason"] == "rst_received"
    assert event["user_stack"] is event["close_stack"] is event["eof_stack"] is None
    check(event["birth_stack"], frames(deed="connect", module="innocent"), "connect", "innocent")


def test_peer_is_never_shown(shop, tracer):
    """On loopback each end's packets arrive while the other end runs: it must not be blamed."""
    for _ in range(3):
        one = shop.arrival()
        one.greet()
        theirs = shop.customer.cookie(one.near)
        close_wait, _ = one.left(tracer), one.ended(tracer)
        assert close_wait["user_stack"] is None
        for cookie, module in [(one.cookie, "guilty"), (theirs, "innocent")]:
            for event in tracer.story(cookie):
                shown = {name for field in STACKS for name in modules(event[f"{field}_stack"])}
                assert shown == {module}, event
        event = told(tracer, theirs, "FIN_WAIT1")
        theirs = frames(deed="close", module="innocent")
        check(event["close_stack"], theirs, "close", "innocent")
