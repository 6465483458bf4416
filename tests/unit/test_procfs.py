"""What /proc says: names that bite, processes that go away, our own sockets."""

import os
import socket
import subprocess

import pytest

from tcptrace.probes.engine.forked import Forked
from tcptrace.probes.enrich import procfs
from tcptrace.probes.enrich.clock import TICK_NS
from tcptrace.probes.enrich.procfs import Holder


def stat_line(pid, comm, parent=1, start=0):
    fields = ["S", str(parent), *["0"] * 17, str(start), "0", "0"]
    return f"{pid} (".encode() + comm + b") " + " ".join(fields).encode() + b"\n"


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """A /proc of our own: ``proc(pid, comm, ...)`` adds a process."""
    monkeypatch.setattr(procfs, "PROC", tmp_path)

    def add(pid, comm, **more):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_bytes(stat_line(pid, comm, **more))
        (tmp_path / str(pid) / "status").write_bytes(b"Name:\tx\nUid:\t7\t8\t8\t8\n")

    return add


@pytest.mark.parametrize(
    ("comm", "shown"),
    [
        (b"nginx", "nginx"),
        (b"tmux: server", "tmux: server"),
        (b"(sd-pam)", "(sd-pam)"),
        (b"a) S 1 2 3", "a) S 1 2 3"),
        (b") (", ") ("),
        (b"two\nlines", "two\nlines"),
        (b"", ""),
        (b"caf\xe9", "caf\\xe9"),
    ],
)
def test_a_name_may_contain_anything(proc, comm, shown):
    proc(77, comm, parent=42, start=1234)
    found = procfs.process(77)
    assert (found.pid, found.comm, found.parent) == (77, shown, 42)
    assert found.start_ns == 1234 * TICK_NS
    assert found.uid == 7  # the real one, not the effective 8


def test_a_real_process_with_such_a_name():
    def body(channel):
        with open("/proc/self/comm", "wb") as file:
            file.write(b"a) R 1 (\n2")
        channel.send(os.getpid())
        channel.receive()

    child = Forked("named", body)
    try:
        pid = child.receive()
        found = procfs.process(pid)
        assert (found.comm, found.parent) == ("a) R 1 (\n2", os.getpid())
    finally:
        child.close()


def test_a_process_that_is_gone_is_absent_and_no_error():
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert procfs.process(gone.pid) is None
    assert list(procfs.sockets_of(gone.pid)) == []
    assert procfs.namespace(gone.pid) is None
    assert procfs.holders([gone.pid]) == {}
    assert procfs.network_namespaces([gone.pid]) == {}


def test_our_own_sockets_are_found_under_every_descriptor():
    with socket.socket() as one:
        other = os.dup(one.fileno())
        inode = os.fstat(one.fileno()).st_ino
        try:
            held = procfs.holders([os.getpid()])[inode]
        finally:
            os.close(other)
    assert set(held) == {Holder(os.getpid(), one_fd) for one_fd in (held[0].fd, other)}
    assert str(Holder(12, 3)) == "12:3"
    assert inode not in procfs.holders([os.getpid()])


def test_files_and_pipes_are_no_sockets():
    with open(os.devnull) as file:
        assert file.fileno() not in [fd for fd, _ in procfs.sockets_of(os.getpid())]


def test_children_of_children_are_descendants(proc):
    for pid, parent in ((10, 1), (11, 10), (12, 11), (13, 1)):
        proc(pid, b"x", parent=parent)
    assert procfs.descendants([10]) == {10, 11, 12}
    assert procfs.descendants([13]) == {13}
    assert procfs.descendants([99]) == {99}


def test_processes_of_one_network_namespace_lead_there_once():
    child = Forked("neighbour", lambda channel: channel.send(os.getpid()) or channel.receive())
    try:
        pid = child.receive()
        found = procfs.network_namespaces([os.getpid(), pid])
    finally:
        child.close()
    assert list(found) == [os.stat("/proc/self/ns/net").st_ino]


def test_our_own_process_is_among_all():
    assert os.getpid() in procfs.pids()
    assert procfs.process(os.getpid()).parent == os.getppid()
