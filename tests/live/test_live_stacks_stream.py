"""How stacks come in the stream: --stack, folded or not, kernel or user, filtered, in a burst."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from guilty import Starter, check_life, the
from harness import V4, check_stream, states
from stacks import STACKS, check, frame, frames, own

FIELDS = [f"{name}_stack" for name in STACKS]
BITS, VISITORS = 13, 3000
"""BITS of guilty.c: how many decisions a path of the burst has."""


@pytest.fixture
def start(ns):
    with contextlib.closing(Starter(ns)) as starter:
        yield starter


@pytest.fixture
def shop(start, family):
    return start.shop(family)


def finished(running):
    events = running.stop()
    assert running.process.returncode == 0
    check_stream(events)
    return events


def shown(event):
    """Which stacks it has, by themselves or by number."""
    return {name for name in FIELDS if event[name] or event[f"{name}_id"]}


def test_none(shop, trace):
    running = trace("--stack", "none")
    shop.arrival().whole(running)
    for event in finished(running):
        assert event["event"] != "stack"
        assert event["event"] != "state" or not shown(event)


@pytest.mark.parametrize("options", [[], ["--stack", "user"]], ids=["default", "user"])
def test_user(shop, trace, options):
    running = trace(*options, "-p", shop.server.pid)
    close_wait, last_ack = shop.arrival().whole(running)
    assert shown(close_wait) == {"birth_stack", "last_read_stack", "last_write_stack"}
    assert shown(last_ack) == {*FIELDS} - {"kernel_stack"}
    events = finished(running)
    assert not [
        one
        for event in events
        if event["event"] == "state"
        for one in shown(event)
        if one == "kernel_stack"
    ]


def symbols():
    names = set()
    with Path("/proc/kallsyms").open() as lines:
        for line in lines:
            names.add(line.split()[2])
    return names


def kernel_names(stack):
    return [text.split()[0].partition("+")[0] for text in stack]


def test_kernel(shop, trace):
    """From the transition outwards: what the close() and what a packet did."""
    running = trace("--stack", "kernel", "--inline-stacks", "-p", shop.server.pid)
    one = shop.arrival()
    one.whole(running)
    events = states(finished(running))
    known = symbols()
    for event in events:
        assert shown(event) <= {"kernel_stack"}
        assert {*kernel_names(event["kernel_stack"])} <= known
        assert kernel_names(event["kernel_stack"])[0] in ("tcp_set_state", "inet_sk_state_store")
    by_close = kernel_names(the(events, "LAST_ACK")["kernel_stack"])
    assert any(name in by_close for name in ("tcp_close", "__tcp_close", "inet_release"))
    assert "tcp_fin" in kernel_names(the(events, "CLOSE_WAIT")["kernel_stack"])


def test_both(shop, trace):
    running = trace("--stack", "both", "--inline-stacks", "-p", shop.server.pid)
    _, last_ack = shop.arrival("left").whole(running)
    assert shown(last_ack) == {*FIELDS}
    check(last_ack["close_stack"], frames("left", deed="close"), "close")
    assert "tcp_set_state" in kernel_names(last_ack["kernel_stack"])
    assert not own(last_ack["kernel_stack"])
    finished(running)


def test_folded_says_the_same(shop, trace):
    """Two tracers at once: each number stands for what the other one shows in full."""
    options = "--stack", "both", "-p", shop.server.pid
    folding, plain = trace(*options), trace(*options, "--inline-stacks")
    for way in ["left", "left", "right", "left"]:
        one = shop.arrival(way)
        check_life(*one.whole(plain), way)
        folding.story(one.cookie)
    folded, unfolded = finished(folding), finished(plain)
    assert not [event for event in unfolded if event["event"] == "stack"]
    assert written(states(unfold(folded))) == written(states(unfolded))


def unfold(events):
    """As if it had been with --inline-stacks; checks that each stack comes once, in time."""
    known = {}
    for event in events:
        if event["event"] == "stack":
            assert event["id"] not in known
            assert event["frames"] not in known.values()
            known[event["id"]] = event["frames"]
        elif event["event"] == "state":
            assert not [field for field in FIELDS if event[field] is not None]
            numbers = {field: event[f"{field}_id"] for field in FIELDS}
            event |= {name: known[one] for name, one in numbers.items() if one is not None}
    used = {event[f"{name}_id"] for event in states(events) for name in FIELDS}
    assert used - {None} == {*known}
    return events


def written(events):
    """The kernel's half is left out where a packet came in: what it interrupts is its own."""
    user = [name for name in FIELDS if name != "kernel_stack"]
    return [(one["cookie"], one["new_state"], [one[name] for name in user]) for one in events]


def test_filtered_sockets_have_no_stacks(start, shop, trace):
    """The customer is a twin: nothing of it comes, although it is at the same port."""
    for options in (["-p", shop.server.pid], ["--lport", shop.port]):
        running = trace(*options)
        for _ in range(2):
            shop.arrival().whole(running)
        events = finished(running)
        texts = [text for one in events if one["event"] == "stack" for text in one["frames"]]
        assert any("leaky_handler (guilty)" in text for text in texts)
        assert not [text for text in texts if "innocent" in text]


def path_of(number, *deed):
    """The frames of a visitor of the burst: its number, bit by bit."""
    found = [*deed, "step/last"]
    for bit in reversed(range(BITS)):
        side = "odd" if number >> bit & 1 else "even"
        found += [side, f"step/{side}"]
    return [frame(one) for one in [*found, "spray", "perform", "obey", "main"]]


def test_burst_of_paths(start, trace):
    """Thousands of call paths in a second: no event is lost, and what is left out is counted."""
    shop = start.shop(V4)
    running = trace("--inline-stacks", "--ring-mib", 64, "-p", shop.server.pid)
    shop.server("spray", V4.loop, shop.port, shop.listener, VISITORS)
    running.wait_transitions(10 * VISITORS)
    running.wait_ends()
    events = running.stop()
    losses = [event for event in events if event["event"] == "loss"]
    assert {event["where"] for event in losses} == {"stacks_suppressed"}
    check_stream(events, lost=events[-1]["lost"])
    transitions = states(events)
    assert len(transitions) == 10 * VISITORS
    dials = [one for one in transitions if one["new_state"] == "SYN_SENT"]
    hangs = [one for one in transitions if one["new_state"] == "FIN_WAIT1"]
    without = check_paths(dials, "dial", "visit") + check_paths(hangs, "hang_up", "visit/client")
    assert without, "nothing was suppressed: the test shows nothing"
    assert without < 2 * VISITORS
    assert sum(event["lost"] for event in losses) >= without


def check_paths(events, *deed):
    """Each stack that is there is the one of its own visitor; how many are not there."""
    assert len(events) == VISITORS
    without = 0
    for number, event in enumerate(sorted(events, key=lambda one: one["ts"])):
        if event["user_stack"] is None:
            without += 1
        else:
            assert own(event["user_stack"]) == path_of(number, *deed)
    return without
