"""``existing`` events: a row of the inventory as it was before the window's transitions."""

import os

import pytest

from tcptrace.probes.engine.constants import TcpState
from tcptrace.probes.enrich import owner, procfs
from tcptrace.probes.enrich.inventory import Found
from tcptrace.probes.enrich.procfs import Holder
from tcptrace.probes.enrich.sockdiag import SocketRow
from tcptrace.probes.existing import existing_event

ME = Holder(os.getpid(), 9)


def row(state, inode=100, family=2, saddr="10.0.0.1"):
    return SocketRow(
        family, state, saddr, 80, "10.0.0.2", 5000, 0xABC, inode, 0, 3, 4, 0, 0, 4026531840
    )


def found(state, holders=(ME,), **more):
    return Found(row(state, **more), holders)


def transition(old, new):
    return {"event": "state", "old_state": old, "new_state": new}


def test_a_held_socket_with_its_owner():
    event = existing_event(found(TcpState.CLOSE_WAIT), None)
    assert (event["event"], event["new_state"]) == ("existing", "CLOSE_WAIT")
    assert (event["pid"], event["fd"], event["how"]) == (os.getpid(), 9, "fd_scan")
    assert event["comm"] == procfs.process(os.getpid()).comm
    assert event["holders"] == [f"{os.getpid()}:9"]
    assert (event["cookie"], event["inode"]) == ("abc", 100)
    assert (event["recv_q"], event["send_q"]) == (3, 4)
    assert (event["orphan"], event["owner_unknown"]) == (False, None)


@pytest.mark.parametrize(
    ("seen", "old", "new", "shown"),
    [
        (TcpState.CLOSE_WAIT, "ESTABLISHED", "CLOSE_WAIT", "ESTABLISHED"),
        (TcpState.LAST_ACK, "ESTABLISHED", "CLOSE_WAIT", "ESTABLISHED"),  # the first of two
        (TcpState.ESTABLISHED, "ESTABLISHED", "FIN_WAIT1", "ESTABLISHED"),  # after the look
        (TcpState.LISTEN, "LISTEN", "CLOSE", "LISTEN"),
    ],
)
def test_it_is_shown_as_before_the_windows_first_transition(seen, old, new, shown):
    assert existing_event(found(seen), transition(old, new))["new_state"] == shown


@pytest.mark.parametrize(
    ("old", "new"), [("CLOSE", "SYN_SENT"), ("CLOSE", "LISTEN"), ("LISTEN", "SYN_RECV")]
)
def test_one_that_was_born_in_the_window_is_told_by_its_transitions_alone(old, new):
    assert existing_event(found(TcpState.ESTABLISHED), transition(old, new)) is None


def test_one_that_the_kernel_half_has_told_already_is_not_told_twice():
    handed = {"event": "existing", "new_state": "ESTABLISHED"}
    assert existing_event(found(TcpState.CLOSE_WAIT), handed) is None


def test_a_request_socket_is_shown_by_the_name_that_ss_has_for_it():
    event = existing_event(found(TcpState.NEW_SYN_RECV, holders=(), inode=0), None)
    assert event["new_state"] == "SYN_RECV"


def test_a_connection_that_nobody_accepted_names_the_listener():
    waiting = Found(row(TcpState.ESTABLISHED, inode=0), (), row(TcpState.LISTEN), (ME,))
    event = existing_event(waiting, None)
    assert event["pid"] is None
    assert event["owner_unknown"] == owner.NOT_ACCEPTED
    assert event["listener_pid"] == os.getpid()
    assert event["listener_comm"] == procfs.process(os.getpid()).comm
    assert not event["orphan"]


@pytest.mark.parametrize(
    ("state", "because"),
    [
        (TcpState.TIME_WAIT, "closed: the kernel keeps the remainder"),
        (TcpState.FIN_WAIT2, "closed: the kernel keeps the remainder"),
        (TcpState.FIN_WAIT1, owner.ORPHAN),
        (TcpState.LAST_ACK, owner.ORPHAN),
    ],
)
def test_what_nobody_holds_any_more_is_an_orphan_and_says_why(state, because):
    event = existing_event(found(state, holders=(), inode=0), None)
    assert (event["pid"], event["orphan"], event["owner_unknown"]) == (None, True, because)


def test_a_holder_that_is_gone_meanwhile_leaves_the_owner_unknown_with_a_reason():
    event = existing_event(found(TcpState.ESTABLISHED, holders=(Holder(2**22 + 1, 3),)), None)
    assert event["pid"] is None
    assert event["owner_unknown"]


def test_an_ipv4_connection_of_an_ipv6_socket_tells_both_families_apart():
    event = existing_event(found(TcpState.ESTABLISHED, family=10), None)
    assert (event["family"], event["socket_family"]) == ("ipv4", "inet6")
    event = existing_event(found(TcpState.LISTEN, family=10, saddr="::"), None)
    assert (event["family"], event["socket_family"]) == ("ipv6", "inet6")
