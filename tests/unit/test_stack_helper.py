"""The helper process: what it does first, what can wait, and when it ends."""

import socket

import pytest

from tcptrace.probes.engine.forked import Channel, Forked
from tcptrace.probes.enrich.stacks import helper
from tcptrace.probes.enrich.stacks.helper import Hold, serve
from tcptrace.probes.enrich.stacks.kernelside import KernelSide
from tcptrace.probes.enrich.stacks.stack import stack_of

DEED = []
"""What was done, in order."""
COPIES = []
"""Batches of copied stacks: what the next looks into the ring buffer find."""


class FakeJob:
    def __init__(self, number):
        self.number = number

    def stack(self):
        DEED.append(f"named {self.number}")
        return stack_of([f"f{self.number} (srv)"])


class FakeRegion:
    def __init__(self, name):
        self.name = name

    def warm(self):
        DEED.append(f"warmed {self.name}")


class FakeResolver:
    def __init__(self, _kernel):
        pass

    def snapshot(self, row):
        DEED.append(f"walked {row}")
        return FakeJob(row)

    def chain(self, number):
        DEED.append(f"chain {number}")
        return FakeJob(number)

    def hold(self, pid):
        DEED.append(f"held {pid}")
        return [FakeRegion("srv"), FakeRegion("libc.so.6")]


class FakeKernelStacks:
    def __init__(self, _fd):
        pass

    def stack(self, number):
        return stack_of([f"kernel_{number}"])


class FakeCopies:
    def __init__(self, _kernel):
        self.fds = []

    @property
    def has_more(self):
        return bool(COPIES)

    def drain(self):
        return COPIES.pop(0) if COPIES else []


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    DEED.clear()
    COPIES.clear()
    monkeypatch.setattr(helper, "Resolver", FakeResolver)
    monkeypatch.setattr(helper, "KernelStacks", FakeKernelStacks)
    monkeypatch.setattr(helper, "_Copies", FakeCopies)


@pytest.fixture
def tracer():
    """Its end of the channel, with the helper's loop in this process, turn by turn."""
    here, there = map(Channel, socket.socketpair())
    here.one = helper._Helper(there, KernelSide())
    yield here
    here.close()
    there.close()


def heard(tracer):
    """All answers that are there, as id -> first frame."""
    found = {}
    while tracer.has_news():
        found |= {number: stack.frames[0] for number, stack in tracer.receive()}
    return found


def test_a_question_is_answered_for_each_id(tracer):
    tracer.send([99, -1, -6])
    tracer.one.turn()
    assert heard(tracer) == {99: "f99 (srv)", -1: "kernel_0", -6: "kernel_5"}


def test_copies_are_answered_unasked(tracer):
    COPIES.extend([[7, 8]])
    tracer.one.turn()
    assert heard(tracer) == {7: "f7 (srv)", 8: "f8 (srv)"}


def test_all_copies_are_walked_before_any_function_is_named(tracer):
    """The kernel half makes copy after copy until it has the rows."""
    COPIES.extend([[7], [8], [9]])
    tracer.one.turn()
    tracer.one.turn()
    assert heard(tracer) == {}
    tracer.one.turn()
    assert DEED == ["walked 7", "walked 8", "walked 9", "named 7", "named 8", "named 9"]


def test_after_a_slow_name_it_is_looked_for_copies(tracer, monkeypatch):
    monkeypatch.setattr(helper, "_NAMING_S", 0)
    COPIES.extend([[7, 8]])
    monkeypatch.setattr(helper.time, "monotonic", iter(range(100)).__next__)
    tracer.one.turn()
    COPIES.extend([[9]])
    tracer.one.turn()
    assert DEED[:3] == ["walked 7", "walked 8", "walked 9"]


def test_mappings_are_read_ahead_and_tables_only_when_it_is_idle(tracer):
    COPIES.extend([[7]])
    tracer.send(Hold(frozenset({5}), warm=True))
    tracer.one.turn()
    assert DEED == ["walked 7", "held 5", "named 7"]
    assert tracer.receive() == []  # the tracer waits for that
    tracer.one.turn()
    tracer.one.turn()
    assert DEED[3:] == ["warmed srv", "warmed libc.so.6"]


def test_of_many_processes_only_what_all_share_is_read_ahead(tracer):
    tracer.send(Hold(frozenset({5}), warm=False))
    tracer.one.turn()
    tracer.one.turn()
    assert DEED == ["held 5", "warmed libc.so.6"]


def test_it_ends_with_the_tracer(monkeypatch):
    monkeypatch.setattr(helper, "_lift_file_limit", lambda: None)
    here, there = map(Channel, socket.socketpair())
    here.close()
    serve(there, KernelSide())
    there.close()


def test_as_a_process_of_its_own():
    child = Forked("stacks", lambda channel: serve(channel, KernelSide()))
    try:
        child.send([3, -1])
        answers = {}
        while len(answers) < 2:
            answers |= dict(child.receive())
        assert answers == {3: stack_of(["f3 (srv)"]), -1: stack_of(["kernel_0"])}
    finally:
        child.close()
