"""Addresses as text, and the sockets of our own namespace as sock_diag tells them."""

import os
import socket

import pytest

from tcptrace.probes.engine.constants import TcpState
from tcptrace.probes.enrich import sockdiag


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::ffff:a00:1", "10.0.0.1"),
        ("::", "::"),
        ("::1", "::1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("::10.0.0.1", "::a00:1"),  # compatible, not mapped: another address
        ("64:ff9b::10.0.0.1", "64:ff9b::a00:1"),
    ],
)
def test_a_mapped_address_is_written_as_ipv4_and_nothing_else_is(text, plain):
    assert sockdiag.plain_address(text) == plain


@pytest.fixture(params=[("inet", "127.0.0.1"), ("inet6", "::1")], ids=["ipv4", "ipv6"])
def connection(request):
    """(listener, client, server)"""
    kind, address = request.param
    family = socket.AF_INET6 if kind == "inet6" else socket.AF_INET
    try:
        listener = socket.create_server((address, 0), family=family)
    except OSError as error:
        pytest.skip(f"no {kind} on this machine: {error}")
    client = socket.create_connection(listener.getsockname()[:2])
    server, _ = listener.accept()
    yield listener, client, server
    for one in (listener, client, server):
        one.close()


def rows_by_inode():
    netns = os.stat("/proc/self/ns/net").st_ino
    return {row.inode: row for row in sockdiag._dump_here(netns, 0xFFFFFFFF)}


def row_of(one):
    return rows_by_inode()[os.fstat(one.fileno()).st_ino]


def test_both_ends_of_our_own_connection(connection):
    _, client, server = connection
    client.send(b"unread")
    row = row_of(server)
    assert (row.saddr, row.sport) == server.getsockname()[:2]
    assert (row.daddr, row.dport) == client.getsockname()[:2]
    assert (row.family, row.uid) == (server.family, os.getuid())
    assert (row.state, row.recv_q) == (TcpState.ESTABLISHED, len("unread"))
    assert row.netns == os.stat("/proc/self/ns/net").st_ino
    cookie = server.getsockopt(socket.SOL_SOCKET, 57, 8)  # SO_COOKIE
    assert row.cookie == int.from_bytes(cookie, "little")


def test_a_listener_has_no_peer_port_and_its_backlog_as_queues(connection):
    listener, _, _ = connection
    row = row_of(listener)
    assert (row.state, row.dport, row.recv_q) == (TcpState.LISTEN, 0, 0)
    assert row.send_q > 0
    assert row.flow[2:] == (row.sport, row.daddr, None)


def test_a_peer_that_closed_leaves_us_in_close_wait_with_its_fin_in_the_queue(connection):
    _, client, server = connection
    client.close()
    row = row_of(server)
    assert (row.state, row.recv_q) == (TcpState.CLOSE_WAIT, 1)


def test_remainders_are_only_told_when_asked_for():
    without = sockdiag._dump_here(0, 0xFFFFFFFF & ~(1 << TcpState.TIME_WAIT))
    assert TcpState.TIME_WAIT not in {row.state for row in without}


def test_errors_in_the_other_namespace_are_raised_here():
    with pytest.raises(FileNotFoundError):
        sockdiag.in_namespace("/proc/no_such_file/ns/net", lambda: None)
