"""How stacks come in the stream: --stack, folded or not, kernel or user, filtered, in a burst."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
from guilty import Starter, check_life, the
from harness import PATIENCE_S, V4, check_stream, states
from stacks import STACKS, check, frame, frames, is_note

SETTERS = ("tcp_set_state", "inet_sk_state_store")
FIELDS = [f"{name}_stack" for name in STACKS]
BITS = 13
"""As in guilty.c: how many decisions a path of the burst has."""


@pytest.fixture
def start(ns):
    with contextlib.closing(Starter(ns)) as starter:
        yield starter


@pytest.fixture
def shop(start):
    return start.shop(V4)


def finished(running):
    events = running.stop()
    assert running.process.returncode == 0
    check_stream(events)
    return events


def shown(event):
    """Which stacks it has, by themselves or by number."""
    return {name for name in FIELDS if event.get(name) or event[f"{name}_id"]}


def test_none(shop, trace):
    running = trace("--stack", "none")
    shop.arrival().whole(running)
    for event in finished(running):
        assert event["event"] != "stack"
        assert event["event"] != "state" or not shown(event)


def test_user_is_the_default(shop, trace):
    running = trace("-p", shop.server.pid)
    close_wait, last_ack = shop.arrival().whole(running)
    assert shown(close_wait) == {"birth_stack", "last_read_stack", "last_write_stack"}
    assert shown(last_ack) == {*FIELDS} - {"kernel_stack"}
    assert not [one for one in states(finished(running)) if "kernel_stack" in shown(one)]


def test_older_than_the_tracer(shop, trace):
    """Nobody saw who made it; from then on all is known."""
    one = shop.arrival("left")
    running = trace("--inline-stacks", "-p", shop.server.pid)
    close_wait, last_ack = one.whole(running)
    assert close_wait["birth_stack"] is last_ack["birth_stack"] is None
    check(last_ack["last_write_stack"], frames("left", deed="write"), "send")
    check(last_ack["eof_stack"], frames("left", deed="read"), "read")
    check(last_ack["close_stack"], frames("left", deed="close"), "close")


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
    for event in events[2:]:  # the first two are told when accept() is
        assert shown(event) == {"kernel_stack"}
        assert {*kernel_names(event["kernel_stack"])} <= known
        assert kernel_names(event["kernel_stack"])[0] in SETTERS
    by_close = kernel_names(the(events, "LAST_ACK")["kernel_stack"])
    assert any(name in by_close for name in ("tcp_close", "__tcp_close", "inet_release"))
    assert "tcp_fin" in kernel_names(the(events, "CLOSE_WAIT")["kernel_stack"])


def test_both(shop, trace):
    running = trace("--stack", "both", "--inline-stacks", "-p", shop.server.pid)
    _, last_ack = shop.arrival("left").whole(running)
    assert shown(last_ack) == {*FIELDS}
    check(last_ack["close_stack"], frames("left", deed="close"), "close")
    assert kernel_names(last_ack["kernel_stack"])[0] in SETTERS
    assert "tcp_close" in kernel_names(last_ack["kernel_stack"])
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
            assert event["stack_id"] not in known
            assert event["frames"] not in known.values()
            known[event["stack_id"]] = event["frames"]
        elif event["event"] == "state":
            assert not {*FIELDS} & {*event}
            for name in FIELDS:
                number = event[f"{name}_id"]
                event[name] = None if number is None else known[number]
    used = {event[f"{name}_id"] for event in states(events) for name in FIELDS}
    assert used - {None} == {*known}
    return events


def written(events):
    """The kernel's half is left out where a packet came in: what it interrupts is its own."""
    user = [name for name in FIELDS if name != "kernel_stack"]
    return [(one["cookie"], one["new_state"], [one[name] for name in user]) for one in events]


def test_filtered_sockets_have_no_stacks(shop, trace):
    """The customer is a twin: nothing of it comes, although it is at the same port."""
    running = trace("--lport", shop.port)
    shop.arrival().whole(running)
    texts = [text for one in finished(running) for text in one.get("frames", ())]
    assert any("leaky_handler (guilty)" in text for text in texts)
    assert not [text for text in texts if "innocent" in text]


def path_of(number, *deed):
    """The frames of a visitor of the burst: its number, bit by bit."""
    found = [*deed, "step/last"]
    for bit in reversed(range(BITS)):
        side = "odd" if number >> bit & 1 else "even"
        found += [side, f"step/{side}"]
    return [frame(one) for one in [*found, "spray", "perform", "obey", "main"]]


class Burst:
    """Visitors, each of whom connects, is accepted and goes by a path of its own."""

    def __init__(self, shop, trace):
        self.shop = shop
        self.running = trace("--inline-stacks", "--ring-mib", 64, "-p", shop.server.pid)

    def come(self, visitors):
        self.visitors = visitors
        self.shop.server("spray", V4.loop, self.shop.port, self.shop.listener, visitors)
        self.running.wait_transitions(10 * visitors)

    def recovered(self):
        """Until a stack is told in full again, as it must be in the next second; how many came."""
        deadline, later, stack = time.monotonic() + PATIENCE_S, 0, ["["]
        while is_note(stack[-1]) and time.monotonic() < deadline:
            stack = self.shop.arrival("left").whole(self.running)[1]["user_stack"]
            later += 1
        check(stack, frames("left", deed="close"), "close")
        return later

    def ended(self):
        """Nothing was lost, and it is over; the notes instead of stacks, how many suppressed."""
        later = self.recovered()
        self.running.wait_ends()
        events = self.running.stop()
        assert self.running.process.returncode == 0
        check_stream(events)
        transitions = states(events)
        assert len(transitions) == 10 * self.visitors + 5 * later
        dials = [one for one in transitions if one["new_state"] == "SYN_SENT"]
        hangs = [one for one in transitions if one["new_state"] == "FIN_WAIT1"]
        assert len(dials) == len(hangs) == self.visitors
        notes = notes_of(dials, "dial", "visit") + notes_of(hangs, "hang_up", "visit/client")
        losses = [event for event in events if event["event"] == "loss"]
        assert {event["where"] for event in losses} <= {"stacks_suppressed"}
        return notes, sum(event["lost"] for event in losses)


def notes_of(events, *deed):
    """Each stack that is there must be the one of its own visitor."""
    notes, call = [], {"dial": "connect", "hang_up": "close"}[deed[0]]
    for number, event in enumerate(sorted(events, key=lambda one: one["ts"])):
        stack = event["user_stack"]
        if is_note(stack[0]):
            notes += stack
        else:
            check(stack, path_of(number, *deed), call)
    return notes


def test_burst_of_paths(start, trace):
    """Thousands of call paths in a second: nothing is lost, and no path is taken for another."""
    burst = Burst(start.shop(V4), trace)
    burst.come(visitors=1200)
    notes, _ = burst.ended()
    assert len(notes) < 2 * burst.visitors


def test_suppressed_stacks_are_counted(start, trace):
    """While the helper process stands still, nothing is learnt: copies are limited, and counted."""
    burst = Burst(start.shop(V4), trace)
    pid = burst.running.pid
    helpers = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    assert helpers
    for helper in helpers:
        os.kill(helper, signal.SIGSTOP)
    burst.come(visitors=300)
    for helper in helpers:
        os.kill(helper, signal.SIGCONT)
    notes, suppressed = burst.ended()
    assert [note for note in notes if "too many" in note]
    assert suppressed >= len([note for note in notes if "too many" in note])
