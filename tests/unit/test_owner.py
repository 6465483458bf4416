"""The owner that the kernel half could not name: found in /proc, or unknown with the reason."""

import os
import socket
import time

import pytest

from tcptrace.probes.engine.constants import Fact
from tcptrace.probes.engine.forked import Forked
from tcptrace.probes.enrich import owner
from tcptrace.probes.enrich.owner import OwnerSearch
from tcptrace.probes.enrich.procfs import Holder


@pytest.mark.parametrize(
    ("facts", "because"),
    [
        (Fact.HAS_SOCKET | Fact.HAS_FILE, None),
        (Fact.HAS_SOCKET | Fact.HAS_FILE | Fact.FILE_CLOSING, owner.KERNEL_CLOSED),
        (Fact.ORPHAN, owner.ORPHAN),
        (Fact.HAS_SOCKET, owner.KERNEL_SOCKET),
        (Fact(0), owner.NOT_ACCEPTED),
        (Fact.FIN_RECEIVED, owner.NOT_ACCEPTED),
    ],
)
def test_why_there_is_no_owner(facts, because):
    assert owner.unknown_because(facts) == because


@pytest.fixture
def held():
    with socket.socket() as one:
        yield one


def inode_of(one):
    return os.fstat(one.fileno()).st_ino


def unsettled(inode, recorded=0, how=None):
    event = {"inode": inode, "recorded": (recorded, how), "ts_ns": time.monotonic_ns()}
    return event | owner.NOBODY | {"owner_unknown": None}


@pytest.fixture
def search():
    """A search, and what it told the kernel half."""
    adopted = []
    found = OwnerSearch(lambda holder, inode: adopted.append((holder, inode)))
    found.adopted = adopted
    return found


def test_the_recorded_owner_that_still_holds_it_stays_the_owner(search, held):
    event = search.settle(unsettled(inode_of(held), os.getpid(), "accept"))
    assert (event["pid"], event["fd"], event["how"]) == (os.getpid(), held.fileno(), "accept")
    assert event["owner_unknown"] is None
    assert search.adopted == [(Holder(os.getpid(), held.fileno()), inode_of(held))]


def test_a_holder_is_found_without_any_record(search, held):
    event = search.settle(unsettled(inode_of(held)))
    assert (event["pid"], event["how"]) == (os.getpid(), "fd_scan")
    assert event["uid"] == os.getuid()
    assert event["start_ns"] > 0


def test_nobody_found_is_said_and_nothing_is_adopted(search, held):
    inode = inode_of(held)
    held.close()
    event = search.settle(unsettled(inode, os.getpid(), "accept"))
    assert event["pid"] is event["fd"] is event["how"] is None
    assert event["owner_unknown"] == owner.NOBODY_FOUND
    assert search.adopted == []


def test_a_child_that_holds_it_after_its_parent_has_it_by_fork(search):
    listener = socket.socket()
    inode = inode_of(listener)
    child = Forked("heir", lambda channel: channel.send(os.getpid()) or channel.receive())
    try:
        heir = child.receive()
        listener.close()
        event = search.settle(unsettled(inode, os.getpid(), "listen"))
        assert (event["pid"], event["how"]) == (heir, "fork")
    finally:
        child.close()


def test_a_look_through_proc_does_not_serve_events_that_are_younger(search, held):
    assert search.settle(unsettled(1))["pid"] is None
    with socket.socket() as later:
        assert search.settle(unsettled(inode_of(later)))["pid"] == os.getpid()
