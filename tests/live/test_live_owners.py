"""Who owns the socket: fork, dup, descriptors passed on, un-accepted children, reused pids."""

from __future__ import annotations

import pytest
from harness import PuppetError, steps

WAITS = "not accepted yet: it waits in the accept queue"
IN_QUEUE = ["LISTEN SYN_RECV syn_received", "SYN_RECV ESTABLISHED handshake"]
CLOSED = ["CLOSE_WAIT LAST_ACK local_close", "LAST_ACK CLOSE ack_received"]


@pytest.fixture
def connection(puppet, family, tracer):
    return Connection(puppet, family)


class Connection:
    """A listening server and a connected client; nobody has accepted yet."""

    def __init__(self, puppet, family):
        self.server, self.client = puppet(), puppet()
        self.listener, self.port = self.server("listen", family.any, 0, 16)
        self.near, self.near_port = self.client("connect", family.loop, self.port)

    def accepted_by(self, process):
        self.far, _ = process("accept", self.listener)
        self.cookie = process.cookie(self.far)
        return self.far

    def client_closes(self, tracer):
        self.client("close", self.near)
        return tracer.story(self.cookie, until="CLOSE_WAIT")


def named(events, *fields):
    return [tuple(one[field] for field in fields) for one in events]


def test_prefork_children_accept(puppet, family, tracer):
    parent, client = puppet(), puppet()
    listener, port = parent("listen", family.any, 0, 16)
    for child in [parent.fork() for _ in range(3)]:
        near, _ = client("connect", family.loop, port)
        far, _ = child("accept", listener)
        cookie = child.cookie(far)
        client("close", near)
        events = tracer.story(cookie, until="CLOSE_WAIT")
        assert set(named(events, "pid", "fd", "how")) == {(child.pid, far, "accept")}


def test_fork_per_connection(connection, tracer):
    """The parent accepts, forks and closes its copy: from then on the child owns it."""
    parent = connection.server
    far = connection.accepted_by(parent)
    child = parent.fork()
    parent("close", far)
    events = connection.client_closes(tracer)
    assert named(events, "new_state", "pid", "fd", "how") == [
        ("SYN_RECV", parent.pid, far, "accept"),
        ("ESTABLISHED", parent.pid, far, "accept"),
        ("CLOSE_WAIT", child.pid, far, "fork"),
    ]
    child("close", far)
    events = tracer.story(connection.cookie)
    assert steps(events)[3:] == CLOSED
    assert named(events[3:], "pid", "how") == [(child.pid, "fork")] * 2
    assert events[3]["fd"] == far
    assert events[3]["start_time"] >= events[0]["start_time"]


def test_fork_per_connection_child_exits(connection, tracer):
    parent = connection.server
    far = connection.accepted_by(parent)
    child = parent.fork()
    parent("close", far)
    connection.client_closes(tracer)
    child.exit()
    events = tracer.story(connection.cookie)
    assert steps(events)[3:] == [
        "CLOSE_WAIT LAST_ACK process_exit",
        "LAST_ACK CLOSE ack_received",
    ]
    assert named(events[2:], "pid", "how") == [(child.pid, "fork")] * 3


def test_grandchild_inherits(connection, tracer):
    """Daemon style: the process in between has gone."""
    parent = connection.server
    far = connection.accepted_by(parent)
    child = parent.fork()
    grandchild = child.fork()
    parent("close", far)
    child.exit()
    events = connection.client_closes(tracer)
    assert events[-1]["pid"] == grandchild.pid
    assert events[-1]["fd"] == far
    assert events[-1]["how"] in ("fork", "fd_scan")


def test_child_inherits_and_parent_keeps(connection, tracer):
    """Two holders: the one that accepted stays the owner until it lets go."""
    parent = connection.server
    far = connection.accepted_by(parent)
    child = parent.fork()
    child("close", far)
    events = connection.client_closes(tracer)
    assert set(named(events, "pid", "fd", "how")) == {(parent.pid, far, "accept")}


def test_both_keep_and_child_closes_last(connection, tracer):
    parent = connection.server
    far = connection.accepted_by(parent)
    child = parent.fork()
    events = connection.client_closes(tracer)
    assert events[-1]["pid"] == parent.pid
    parent("close", far)
    child("close", far)
    events = tracer.story(connection.cookie)
    assert steps(events)[3:] == CLOSED
    assert {one["pid"] for one in events[3:]} == {child.pid}


def test_parent_dies_and_child_holds(connection, tracer):
    parent = connection.server
    far = connection.accepted_by(parent)
    child = parent.fork()
    parent.kill()
    parent.wait()
    events = connection.client_closes(tracer)
    assert (events[-1]["pid"], events[-1]["fd"]) == (child.pid, far)
    assert steps(events)[2:] == ["ESTABLISHED CLOSE_WAIT fin_received"]


def test_dup_and_first_closed(connection, tracer):
    server = connection.server
    far = connection.accepted_by(server)
    (copy,) = server("dup", far)
    server("close", far)
    events = connection.client_closes(tracer)
    assert named(events, "pid", "fd") == [(server.pid, far)] * 2 + [(server.pid, copy)]
    server("close", copy)
    events = tracer.story(connection.cookie)
    assert steps(events)[3:] == CLOSED
    assert (events[3]["pid"], events[3]["fd"]) == (server.pid, copy)


def test_connected_socket_inherited(connection, family, tracer):
    client = connection.client
    cookie = client.cookie(connection.near)
    child = client.fork()
    client("close", connection.near)
    child("shutdown", connection.near)
    events = tracer.story(cookie, until="FIN_WAIT2")
    assert named(events, "pid", "how") == [(client.pid, "connect")] * 2 + [(child.pid, "fork")] * 2
    assert {one["fd"] for one in events} == {connection.near}


@pytest.mark.parametrize("reads", [False, True], ids=["untouched", "read"])
def test_descriptor_passed_on(connection, tracer, reads):
    """SCM_RIGHTS: the sender closes its copy; the receiver may or may not use it before the FIN."""
    sender = connection.server
    far = connection.accepted_by(sender)
    here, there = sender("pair")
    receiver = Passed(sender, here, there, far)
    if reads:
        connection.client("write", connection.near, 5)
        assert receiver.process("read", receiver.fd, 5) == [5]
    events = connection.client_closes(tracer)
    assert named(events[:2], "pid", "fd") == [(sender.pid, far)] * 2
    assert (events[2]["pid"], events[2]["fd"]) == (receiver.process.pid, receiver.fd)
    assert events[2]["how"] in (["last_io"] if reads else ["fd_scan", "fork"])
    receiver.process("close", receiver.fd)
    events = tracer.story(connection.cookie)
    assert steps(events)[3:] == CLOSED
    assert (events[3]["pid"], events[3]["fd"]) == (receiver.process.pid, receiver.fd)


class Passed:
    """A child that was there before the connection gets the descriptor by SCM_RIGHTS."""

    def __init__(self, sender, here, there, fd):
        self.process = sender.fork()
        self.process("close", fd)  # its inherited copy
        self.process("dup", 0)  # so that the number differs from the sender's
        self.process("dup", 0)
        sender("sendfd", here, fd)
        sender("close", fd)
        (self.fd,) = self.process("recvfd", there)
        assert self.fd != fd


def test_descriptor_in_flight(connection, tracer):
    """Sent, the sender's copy closed, not received: nobody holds it, and that is said."""
    sender = connection.server
    far = connection.accepted_by(sender)
    here, there = sender("pair")
    sender("sendfd", here, far)
    sender("close", far)
    events = connection.client_closes(tracer)
    assert events[-1]["pid"] is None
    assert events[-1]["owner_unknown"]
    sender("recvfd", there)


def test_exec_keeps_the_owner(connection, programs, tracer):
    """exec without FD_CLOEXEC: same pid, another program, the same socket."""
    server = connection.server
    far = connection.accepted_by(server)
    assert server("exec", programs / "puppet") == [server.pid]
    events = connection.client_closes(tracer)
    assert set(named(events, "pid", "fd")) == {(server.pid, far)}


def test_unaccepted_child(connection, ns, tracer):
    """Nobody accepts: the FIN is answered in the queue. Then accept() names the owner."""
    server, client = connection.server, connection.client
    cookie = ns.socket(connection.port, connection.near_port)["cookie"]
    client("close", connection.near)
    events = tracer.story(cookie, until="CLOSE_WAIT")
    assert steps(events) == [*IN_QUEUE, "ESTABLISHED CLOSE_WAIT fin_received"]
    assert set(named(events, "pid", "fd", "owner_unknown")) == {(None, None, WAITS)}
    assert set(named(events, "listener_pid", "listener_comm")) == {(server.pid, "puppet")}
    connection.accepted_by(server)
    assert connection.cookie == cookie
    server("close", connection.far)
    events = tracer.story(cookie)
    assert steps(events)[3:] == ["existing CLOSE_WAIT", *CLOSED]
    assert named(events[3:], "pid", "how") == [(server.pid, "accept")] * 3
    assert named(events[3:5], "fd") == [(connection.far,)] * 2


def test_unaccepted_child_of_a_stopped_listener(connection, ns, tracer):
    server = connection.server
    server.kill(19)
    cookie = ns.socket(connection.port, connection.near_port)["cookie"]
    events = tracer.story(cookie, until="ESTABLISHED")
    assert steps(events) == IN_QUEUE
    assert set(named(events, "pid", "listener_pid")) == {(None, server.pid)}
    server.kill(18)
    far = connection.accepted_by(server)
    connection.client("close", connection.near)
    events = tracer.story(cookie, until="CLOSE_WAIT")
    assert steps(events)[2:] == ["existing ESTABLISHED", "ESTABLISHED CLOSE_WAIT fin_received"]
    assert named(events[2:], "pid", "fd", "how") == [(server.pid, far, "accept")] * 2


def test_unaccepted_child_is_reset(connection, ns, tracer):
    """Dead in the queue: E of the scenarios."""
    row = ns.socket(connection.port, connection.near_port)
    connection.client("linger", connection.near)
    connection.client("close", connection.near)
    events = tracer.story(row["cookie"])
    assert steps(events) == [*IN_QUEUE, "ESTABLISHED CLOSE rst_received"]
    assert set(named(events, "pid", "listener_pid")) == {(None, connection.server.pid)}


def test_reuseport_names_the_right_listener(puppet, family, ns, tracer):
    """The oracle is what each process later takes out of its own queue."""
    servers, client = [puppet(), puppet()], puppet()
    first = servers[0]("listen", family.loop, 0, 64, "reuseport")
    second = servers[1]("listen", family.loop, first[1], 64, "reuseport")
    port = first[1]
    for _ in range(24):
        client("connect", family.loop, port)
    rows = [row for row in ns.sockets("ESTABLISHED") if row["sport"] == port]
    said = {row["cookie"]: tracer.story(row["cookie"], until="ESTABLISHED") for row in rows}
    assert len(said) == 24
    takers = [taken(servers[0], first[0]), taken(servers[1], second[0])]
    assert all(takers)
    for server, cookies in zip(servers, takers, strict=True):
        for cookie in cookies:
            assert {one["listener_pid"] for one in said[cookie]} == {server.pid}


def taken(server, listener):
    cookies = []
    while True:
        try:
            fd, _ = server("tryaccept", listener)
        except PuppetError:
            return cookies
        cookies.append(server.cookie(fd))


def test_listener_shared_by_fork_child_not_accepted(connection, ns, tracer):
    """Who is blamed for an un-accepted child of an inherited listener must hold that listener."""
    parent = connection.server
    child = parent.fork()
    cookie = ns.socket(connection.port, connection.near_port)["cookie"]
    events = tracer.story(cookie, until="ESTABLISHED")
    assert {one["listener_pid"] for one in events} <= {parent.pid, child.pid}
    far = connection.accepted_by(child)
    connection.client("close", connection.near)
    events = tracer.story(cookie, until="CLOSE_WAIT")
    assert (events[-1]["pid"], events[-1]["fd"]) == (child.pid, far)


def test_reused_pid_does_not_mislead(connection, puppet, tracer):
    """The acceptor dies, its child keeps the socket, a stranger gets the acceptor's pid."""
    first = connection.server.fork()
    far = connection.accepted_by(first)
    heir = first.fork()
    first.exit()
    stranger = puppet().fork(pid=first.pid)
    assert stranger.pid == first.pid
    events = connection.client_closes(tracer)
    assert named(events, "pid") == [(first.pid,)] * 2 + [(heir.pid,)]
    assert events[2]["start_time"] == heir_start(heir, events)
    heir("close", far)
    assert {one["pid"] for one in tracer.story(connection.cookie)[3:]} == {heir.pid}


def heir_start(heir, events):
    """Only that it differs from the dead acceptor's, unless both began in the same tick."""
    assert events[2]["start_time"] >= events[0]["start_time"]
    return events[2]["start_time"]


def test_reused_pid_with_the_same_fd_number(connection, puppet, family, tracer):
    """The stranger even has a socket of its own under the same number."""
    first = connection.server.fork()
    far = connection.accepted_by(first)
    heir = first.fork()
    first.exit()
    stranger = puppet().fork(pid=first.pid)
    fd = -1
    while fd < far:
        fd, _ = stranger("connect", family.loop, connection.port)
    own = stranger.cookie(far)
    stranger_events = tracer.story(own, until="ESTABLISHED")
    assert set(named(stranger_events, "pid", "fd", "how")) == {(first.pid, far, "connect")}
    events = connection.client_closes(tracer)
    assert (events[-1]["pid"], events[-1]["fd"]) == (heir.pid, far)


def test_many_descriptors(connection, tracer):
    """A descriptor above the first table chunk."""
    server = connection.server
    far = connection.accepted_by(server)
    copy = far
    while copy < 300:
        (copy,) = server("dup", 0)
    (copy,) = server("dup", far)
    server("close", far)
    events = connection.client_closes(tracer)
    assert (events[-1]["pid"], events[-1]["fd"]) == (server.pid, copy)
