"""Exact transition sequences with their owner and reason, of connections that end in every way."""

from __future__ import annotations

import errno
from contextlib import suppress

import pytest
from harness import Namespace, PuppetError, run, steps

BORN = ["LISTEN SYN_RECV syn_received", "SYN_RECV ESTABLISHED accept"]
CONNECTED = ["CLOSE SYN_SENT connect", "SYN_SENT ESTABLISHED syn_ack_received"]


class Pair:
    """A server that has accepted one connection of a client, all made under the tracer."""

    def __init__(self, puppet, family):
        self.server, self.client = puppet(), puppet()
        self.listener, self.port = self.server("listen", family.any, 0, 8)
        self.near, self.near_port = self.client("connect", family.loop, self.port)
        self.far, _ = self.server("accept", self.listener)
        self.near_cookie = self.client.cookie(self.near)
        self.far_cookie = self.server.cookie(self.far)


@pytest.fixture
def pair(puppet, family, tracer):
    return Pair(puppet, family)


def owners(events):
    return {(one["pid"], one["fd"], one["comm"], one["how"]) for one in events}


def check_server(pair, events):
    """Every event of the accepted connection names the server, whatever ran on the CPU."""
    held = [one for one in events if not one["orphan"]]
    assert owners(held) == {(pair.server.pid, pair.far, "puppet", "accept")}
    assert {one["pid"] for one in events} == {pair.server.pid}
    check_addresses(events, pair.port, pair.near_port)


def check_client(pair, events):
    held = [one for one in events if not one["orphan"]]
    assert owners(held) == {(pair.client.pid, pair.near, "puppet", "connect")}
    assert {one["pid"] for one in events} == {pair.client.pid}
    check_addresses(events[1:], pair.near_port, pair.port)


def check_addresses(events, sport, dport):
    assert {(one["sport"], one["dport"]) for one in events} == {(sport, dport)}


def test_peer_closes_with_unread_bytes(pair, family, ns, tracer):
    """58 bytes that nobody reads, then the FIN: Recv-Q 59 once the FIN has been counted."""
    pair.client("write", pair.near, 58)
    pair.client("close", pair.near)
    events = tracer.story(pair.far_cookie, until="CLOSE_WAIT")
    row = ns.socket(pair.port, pair.near_port)
    assert (row["state"], row["recv_q"], row["cookie"]) == ("CLOSE_WAIT", 59, pair.far_cookie)
    assert steps(events) == [*BORN, "ESTABLISHED CLOSE_WAIT fin_received"]
    check_server(pair, events)
    last = events[-1]
    assert (last["recv_q"], last["inode"]) == (59, row["inode"])
    assert (last["family"], last["netns"]) == (family.name, ns.inum)
    assert {one["saddr"] for one in events} == {one["daddr"] for one in events} == {family.loop}
    pair.server("close", pair.far)
    events = tracer.story(pair.far_cookie)
    assert steps(events)[3:] == ["CLOSE_WAIT CLOSE rst_sent_unread"]
    check_server(pair, events)
    assert events[-1]["became"] == "gone"


def test_passive_close(pair, tracer):
    pair.client("close", pair.near)
    pair.server("waitin", pair.far)
    pair.server("close", pair.far)
    events = tracer.story(pair.far_cookie)
    assert steps(events) == [
        *BORN,
        "ESTABLISHED CLOSE_WAIT fin_received",
        "CLOSE_WAIT LAST_ACK local_close",
        "LAST_ACK CLOSE ack_received",
    ]
    check_server(pair, events)
    assert [one["became"] for one in events] == [None] * 4 + ["gone"]
    check_durations(events)


def check_durations(events):
    """The first state was entered before the first event; all others were seen to begin."""
    assert events[0]["duration_us"] is None
    for event in events[1:]:
        assert 0 <= event["duration_us"] < 30_000_000
    assert sorted(one["ts"] for one in events) == [one["ts"] for one in events]


def test_orphan_in_fin_wait2(pair, ns, tracer):
    """The client has gone, the server has not closed: a mini-socket, until tcp_fin_timeout."""
    ns.sysctl("net.ipv4.tcp_fin_timeout", 37)
    pair.client("close", pair.near)
    events = tracer.story(pair.near_cookie)
    row = ns.socket(pair.near_port, pair.port)
    assert (row["state"], row["timer"]) == ("FIN_WAIT2", "timewait")
    assert steps(events) == [
        *CONNECTED,
        "ESTABLISHED FIN_WAIT1 local_close",
        "FIN_WAIT1 FIN_WAIT2 ack_received",
        "FIN_WAIT2 CLOSE orphan_fin_wait2",
    ]
    check_client(pair, events)
    assert (events[-1]["became"], events[-1]["lives_on_s"]) == ("fin_wait2", 37)
    assert 30 < row["expires_s"] <= 37


def test_time_wait(pair, ns, tracer):
    pair.client("shutdown", pair.near)
    pair.server("waitin", pair.far)
    pair.server("close", pair.far)
    events = tracer.story(pair.near_cookie)
    row = ns.socket(pair.near_port, pair.port)
    assert (row["state"], row["timer"]) == ("TIME_WAIT", "timewait")
    assert steps(events) == [
        *CONNECTED,
        "ESTABLISHED FIN_WAIT1 shutdown",
        "FIN_WAIT1 FIN_WAIT2 ack_received",
        "FIN_WAIT2 CLOSE fin_received",
    ]
    check_client(pair, events)
    assert (events[-1]["became"], events[-1]["lives_on_s"]) == ("time_wait", 60)


def test_shutdown_in_close_wait(pair, tracer):
    pair.client("shutdown", pair.near)
    pair.server("waitin", pair.far)
    pair.server("shutdown", pair.far)
    events = tracer.story(pair.far_cookie)
    assert steps(events)[2:] == [
        "ESTABLISHED CLOSE_WAIT fin_received",
        "CLOSE_WAIT LAST_ACK shutdown",
        "LAST_ACK CLOSE ack_received",
    ]
    assert not any(one["orphan"] for one in events)
    check_server(pair, events)


@pytest.mark.parametrize("number", [0, 9], ids=["exit", "kill-9"])
def test_process_ends_without_close(pair, tracer, number):
    pair.server.kill(number) if number else pair.server.send("exit", 0)
    pair.server.wait()
    events = tracer.story(pair.far_cookie, until="CLOSE")
    assert steps(events) == [
        *BORN,
        "ESTABLISHED FIN_WAIT1 process_exit",
        "FIN_WAIT1 FIN_WAIT2 ack_received",
        "FIN_WAIT2 CLOSE orphan_fin_wait2",
    ]
    check_server(pair, events)
    client = tracer.story(pair.near_cookie, until="CLOSE_WAIT")
    check_client(pair, client)


def test_process_exit_in_close_wait(pair, tracer):
    pair.client("close", pair.near)
    pair.server("waitin", pair.far)
    pair.server.exit()
    events = tracer.story(pair.far_cookie)
    assert steps(events)[3:] == [
        "CLOSE_WAIT LAST_ACK process_exit",
        "LAST_ACK CLOSE ack_received",
    ]
    check_server(pair, events)


def test_linger_zero(pair, tracer):
    pair.server("linger", pair.far)
    pair.server("close", pair.far)
    events = tracer.story(pair.far_cookie)
    assert steps(events) == [*BORN, "ESTABLISHED CLOSE rst_sent_linger"]
    check_server(pair, events)
    events = tracer.story(pair.near_cookie)
    assert steps(events) == [*CONNECTED, "ESTABLISHED CLOSE rst_received"]
    check_client(pair, events)
    assert not events[-1]["orphan"]


def test_close_with_unread_data(pair, tracer):
    pair.client("write", pair.near, 10)
    pair.server("waitin", pair.far)
    pair.server("close", pair.far)
    events = tracer.story(pair.far_cookie)
    assert steps(events) == [*BORN, "ESTABLISHED CLOSE rst_sent_unread"]
    check_server(pair, events)
    assert events[-1]["recv_q"] == 10
    assert steps(tracer.story(pair.near_cookie))[2:] == ["ESTABLISHED CLOSE rst_received"]


def test_rst_in_close_wait(pair, tracer):
    """The client writes to a peer that has closed for good: its kernel answers with a RST."""
    pair.server("close", pair.far)
    pair.client("waitin", pair.near)
    pair.client("write", pair.near, 1)
    events = tracer.story(pair.near_cookie)
    assert steps(events)[2:] == [
        "ESTABLISHED CLOSE_WAIT fin_received",
        "CLOSE_WAIT CLOSE rst_received",
    ]
    check_client(pair, events)


def test_refused(puppet, family, tracer):
    client = puppet()
    unused, port = client("listen", family.loop, 0, 1)
    client("close", unused)
    (fd,) = client("socket", family.number)
    cookie = client.cookie(fd)
    with pytest.raises(PuppetError) as refused:
        client("connectfd", fd, family.loop, port)
    assert refused.value.errno == errno.ECONNREFUSED
    events = tracer.story(cookie)
    assert steps(events) == ["CLOSE SYN_SENT connect", "SYN_SENT CLOSE refused"]
    assert owners(events) == {(client.pid, fd, "puppet", "connect")}
    assert {one["dport"] for one in events} == {port}


def test_nonblocking_connect(puppet, family, tracer):
    server, client = puppet(), puppet()
    _, port = server("listen", family.any, 0, 8)
    (fd,) = client("socket", family.number)
    client("nonblock", fd)
    cookie = client.cookie(fd)
    with suppress(PuppetError):  # EINPROGRESS, or done at once
        client("connectfd", fd, family.loop, port)
    assert client("error", fd) == [0]
    events = tracer.story(cookie, until="ESTABLISHED")
    assert steps(events) == CONNECTED
    assert owners(events) == {(client.pid, fd, "puppet", "connect")}


def test_listener(puppet, family, ns, tracer):
    server = puppet()
    fd, port = server("listen", family.loop, 0, 7)
    cookie = ns.socket(port)["cookie"]
    server("close", fd)
    events = tracer.story(cookie)
    assert steps(events) == ["CLOSE LISTEN listen", "LISTEN CLOSE local_close"]
    assert owners(events) == {(server.pid, fd, "puppet", "listen")}
    assert events[0]["send_q"] == 7
    assert [one["became"] for one in events] == [None, "gone"]
    assert [one["dport"] for one in events] == [None, None]


def test_listener_closed_with_waiting_children(puppet, family, ns, tracer):
    server, client = puppet(), puppet()
    listener, port = server("listen", family.any, 0, 8)
    fd, sport = client("connect", family.loop, port)
    near = client.cookie(fd)
    far = ns.socket(port, sport)["cookie"]
    server("close", listener)
    events = tracer.story(far)
    assert steps(events) == [
        "LISTEN SYN_RECV syn_received",
        "SYN_RECV ESTABLISHED handshake",
        "ESTABLISHED CLOSE listener_closed",
    ]
    assert {one["pid"] for one in events} == {None}
    assert {one["listener_pid"] for one in events} == {server.pid}
    assert steps(tracer.story(near))[2:] == ["ESTABLISHED CLOSE rst_received"]


def test_aborted_by_ss(pair, ns, tracer):
    ns.run("ss", "-tK", "sport", "=", f":{pair.port}", "dport", "=", f":{pair.near_port}")
    if ns.socket(pair.port, pair.near_port):
        pytest.skip("this kernel has no INET_DIAG_DESTROY")
    events = tracer.story(pair.far_cookie)
    assert steps(events) == [*BORN, "ESTABLISHED CLOSE aborted"]
    check_server(pair, events)


def test_simultaneous_shutdown(pair, tracer):
    """Both sides end; whichever FIN came first, each chain is complete and correctly owned."""
    pair.client.send("shutdown", pair.near)
    pair.server.send("shutdown", pair.far)
    pair.client.receive()
    pair.server.receive()
    for cookie, check in ((pair.near_cookie, check_client), (pair.far_cookie, check_server)):
        events = tracer.story(cookie)
        assert len(events) == 5
        check(pair, events)


def test_thread_that_accepts(puppet, family, tracer):
    server, client = puppet(), puppet()
    listener, port = server("listen", family.any, 0, 8)
    near, _ = client("connect", family.loop, port)
    tid, far, _ = server("thread", "accept", listener)
    cookie = server.cookie(far)
    client("close", near)
    events = tracer.story(cookie, until="CLOSE_WAIT")
    assert tid != server.pid
    assert {(one["pid"], one["tid"], one["fd"]) for one in events} == {(server.pid, tid, far)}


def test_thread_that_connects(puppet, family, tracer):
    server, client = puppet(), puppet()
    _, port = server("listen", family.any, 0, 8)
    tid, fd, _ = client("thread", "connect", family.loop, port)
    events = tracer.story(client.cookie(fd), until="ESTABLISHED")
    assert {(one["pid"], one["tid"]) for one in events} == {(client.pid, tid)}


def test_ipv4_on_a_dual_stack_listener(puppet, tracer):
    server, client = puppet(), puppet()
    listener, port = server("listen", "::", 0, 8)
    near, sport = client("connect", "127.0.0.1", port)
    far, _ = server("accept", listener)
    cookie = server.cookie(far)
    client("close", near)
    events = tracer.story(cookie, until="CLOSE_WAIT")
    shown = {(one["family"], one["socket_family"], one["saddr"], one["daddr"]) for one in events}
    assert shown == {("ipv4", "inet6", "127.0.0.1", "127.0.0.1")}
    check_addresses(events, port, sport)


def test_uid_and_start_time(pair, tracer):
    events = tracer.story(pair.far_cookie, until="ESTABLISHED")
    assert {one["uid"] for one in events} == {0}
    assert len({one["start_time"] for one in events}) == 1
    seconds = float(run("ps", "-o", "etimes=", "-p", pair.server.pid))
    assert events[0]["start_time"] <= events[0]["ts"]
    assert seconds < 60


class Blackhole:
    """Two namespaces joined by a veth pair, whose far end then answers no more."""

    MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")

    def __init__(self, ns, family):
        self.other, self._ns, self._family = Namespace(), ns, family
        four = family.number == 4
        self.near, self.far = ("10.9.0.1", "10.9.0.2") if four else ("fd09::1", "fd09::2")
        veth = ["link", "add", "near", "address", self.MACS[0], "type", "veth"]
        peer = ["peer", "name", "far", "address", self.MACS[1], "netns", self.other.name]
        run("ip", "-n", ns.name, *veth, *peer)
        self._set_up(ns, "near", self.near)
        self._set_up(self.other, "far", self.far)
        self._neighbour(ns, "near", self.far, self.MACS[1])
        self._neighbour(self.other, "far", self.near, self.MACS[0])

    def swallow(self):
        """From now on packets go to a station that does not exist."""
        self._neighbour(self._ns, "near", self.far, "02:00:00:00:00:99")

    def _set_up(self, space, link, address):
        width, extra = ("24", []) if self._family.number == 4 else ("64", ["nodad"])
        run("ip", "-n", space.name, "address", "add", f"{address}/{width}", "dev", link, *extra)
        run("ip", "-n", space.name, "link", "set", link, "up")

    def _neighbour(self, space, link, address, mac):
        """Fixed, so that no address resolution takes time or fails."""
        station = [address, "lladdr", mac, "dev", link, "nud", "permanent"]
        run("ip", "-n", space.name, "neighbour", "replace", *station)


@pytest.fixture
def blackhole(ns, family):
    hole = Blackhole(ns, family)
    yield hole
    hole.other.remove()


def test_connect_times_out(puppet, blackhole, family, tracer):
    client = puppet()
    blackhole.swallow()
    (fd,) = client("socket", family.number)
    client("usertimeout", fd, 300)
    cookie = client.cookie(fd)
    with pytest.raises(PuppetError) as failed:
        client("connectfd", fd, blackhole.far, 9)
    assert failed.value.errno == errno.ETIMEDOUT
    events = tracer.story(cookie)
    assert steps(events) == ["CLOSE SYN_SENT connect", "SYN_SENT CLOSE timeout"]
    assert owners(events) == {(client.pid, fd, "puppet", "connect")}
    assert events[-1]["duration_us"] > 300_000


def test_retransmissions_time_out(puppet, blackhole, tracer):
    server, client = puppet(blackhole.other), puppet()
    listener, port = server("listen", blackhole.far, 0, 8)
    near, sport = client("connect", blackhole.far, port)
    far, _ = server("accept", listener)
    cookie, far_cookie = client.cookie(near), server.cookie(far)
    client("usertimeout", near, 300)
    blackhole.swallow()
    client("write", near, 10)
    assert client("error", near) in ([0], [errno.ETIMEDOUT])
    events = tracer.story(cookie)
    assert steps(events) == [*CONNECTED, "ESTABLISHED CLOSE timeout"]
    assert owners(events) == {(client.pid, near, "puppet", "connect")}
    assert events[-1]["send_q"] == 10
    assert len({one["netns"] for one in tracer.of(cookie) + tracer.of(far_cookie)}) == 2
    check_addresses(events[1:], sport, port)
