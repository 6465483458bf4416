"""Sockets joined with their holders and, where nobody accepted them yet, their listener."""

import pytest

from tcptrace.probes.engine.constants import TcpState
from tcptrace.probes.enrich import inventory
from tcptrace.probes.enrich.procfs import Holder
from tcptrace.probes.enrich.sockdiag import SocketRow

SERVER, OTHER = Holder(10, 3), Holder(11, 3)
HOLDERS = {100: [SERVER], 200: [OTHER], 300: [SERVER, OTHER]}


def row(state, saddr="10.0.0.1", sport=80, inode=0, recv_q=0, daddr="10.0.0.9", dport=5000):
    family = 10 if ":" in saddr else 2
    return SocketRow(
        family, state, saddr, sport, daddr, dport, 1, inode, 0, recv_q, 0, 0, 0, 4026531840
    )


def listener(saddr, inode, recv_q=1, sport=80):
    return row(TcpState.LISTEN, saddr, sport, inode, recv_q, daddr="0.0.0.0", dport=0)


def listener_of(child, *listeners):
    """Holders of the listener that the child is said to wait at."""
    found = inventory.join([*listeners, child], HOLDERS)[-1]
    assert found.row == child
    return found.listener_holders


CHILD = row(TcpState.ESTABLISHED)


def test_a_held_socket_has_all_its_holders_and_no_listener():
    (found,) = inventory.join([row(TcpState.CLOSE_WAIT, inode=300)], HOLDERS)
    assert found.holders == (SERVER, OTHER)
    assert found.listener is None
    assert not found.unaccepted


def test_a_held_socket_whose_holder_was_not_found_is_not_unaccepted():
    (found,) = inventory.join([row(TcpState.ESTABLISHED, inode=999)], HOLDERS)
    assert found.holders == ()
    assert not found.unaccepted


def test_the_listener_of_exactly_that_address():
    assert listener_of(CHILD, listener("10.0.0.1", 100)) == (SERVER,)


def test_the_listener_of_all_addresses():
    assert listener_of(CHILD, listener("0.0.0.0", 100)) == (SERVER,)
    assert listener_of(CHILD, listener("::", 100)) == (SERVER,)  # dual-stack


def test_the_exact_address_wins_over_all_addresses():
    both = listener("0.0.0.0", 100), listener("10.0.0.1", 200)
    assert listener_of(CHILD, *both) == (OTHER,)


def test_another_port_or_address_is_no_candidate():
    assert listener_of(CHILD, listener("10.0.0.1", 100, sport=81)) == ()
    assert listener_of(CHILD, listener("10.0.0.2", 100)) == ()


def test_of_two_that_it_could_be_neither_is_blamed():
    assert listener_of(CHILD, listener("10.0.0.1", 100), listener("10.0.0.1", 200)) == ()
    assert listener_of(CHILD, listener("0.0.0.0", 100), listener("0.0.0.0", 200)) == ()


def test_an_empty_accept_queue_holds_no_established_child():
    both = listener("0.0.0.0", 100, recv_q=0), listener("0.0.0.0", 200, recv_q=1)
    assert listener_of(CHILD, *both) == (OTHER,)


def test_a_handshake_that_is_not_over_is_in_no_accept_queue_yet():
    """A request socket is not counted in recv_q, which therefore tells nothing about it."""
    asked = row(TcpState.SYN_RECV)
    both = listener("0.0.0.0", 100, recv_q=0), listener("0.0.0.0", 200, recv_q=1)
    assert listener_of(asked, *both) == ()
    assert listener_of(asked, listener("0.0.0.0", 100, recv_q=0)) == (SERVER,)


def test_an_ipv6_connection_is_not_at_an_ipv4_listener():
    child = row(TcpState.ESTABLISHED, "fd07::1", daddr="fd07::2")
    assert listener_of(child, listener("0.0.0.0", 100)) == ()
    both = listener("0.0.0.0", 100), listener("::", 200)
    assert listener_of(child, *both) == (OTHER,)


@pytest.mark.parametrize("state", [TcpState.ESTABLISHED, TcpState.CLOSE_WAIT, TcpState.SYN_RECV])
def test_unheld_in_a_state_that_close_never_leaves_behind_is_unaccepted(state):
    (found,) = inventory.join([row(state)], HOLDERS)
    assert found.unaccepted


@pytest.mark.parametrize(
    "state",
    [TcpState.FIN_WAIT1, TcpState.FIN_WAIT2, TcpState.TIME_WAIT, TcpState.LAST_ACK],
)
def test_unheld_in_a_state_behind_close_is_an_orphan_and_never_gets_a_listener(state):
    found = inventory.join([listener("10.0.0.1", 100), row(state)], HOLDERS)[-1]
    assert not found.unaccepted
    assert found.listener is None


def test_a_socket_concerns_its_holders_or_its_listeners():
    held, waiting = inventory.join(
        [row(TcpState.ESTABLISHED, inode=300), CHILD, listener("10.0.0.1", 100)], HOLDERS
    )[:2]
    assert held.concerns({OTHER.pid})
    assert not held.concerns({99})
    assert waiting.concerns({SERVER.pid})
    assert not waiting.concerns({OTHER.pid})
