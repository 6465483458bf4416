"""From the inventory to live events: nothing is told twice, and nothing of strangers."""

import pytest

from tcptrace.probes.engine.constants import Fact, TcpState
from tcptrace.probes.enrich.inventory import Found, Inventory
from tcptrace.probes.enrich.procfs import Holder
from tcptrace.probes.filters import Filters
from tcptrace.probes.handover import Handover
from tests.unit.test_existing import ME, row

COOKIE = f"{row(TcpState.ESTABLISHED).cookie:x}"
OURS = Filters(pids=frozenset({5}), by_pid=True)
STRANGER = 666


def found(state=TcpState.ESTABLISHED, holders=(ME,), **more):
    return Found(row(state, **more), holders)


def handover(*sockets, filters=None, pids=(5,), unwanted=()):
    taken = Inventory(list(sockets))
    return Handover(taken, filters or Filters(), set(pids), set(unwanted))


def transition(old="ESTABLISHED", new="CLOSE_WAIT", **more):
    """A transition of the socket of test_existing.row()."""
    event = {"event": "state", "old_state": old, "new_state": new, "cookie": COOKIE}
    one = row(TcpState.ESTABLISHED)
    event |= {name: getattr(one, name) for name in ("netns", "saddr", "sport", "daddr", "dport")}
    return event | {"facts": Fact.IN_WINDOW, "pid": None, "listener_pid": None} | more


def states_of(events):
    return [event["new_state"] for event in events]


def test_what_did_not_move_is_told_as_it_is():
    assert states_of(handover(found(), found(TcpState.LISTEN)).existing([])) == [
        "ESTABLISHED",
        "LISTEN",
    ]


def test_what_moved_is_told_as_it_was_before_its_first_transition():
    events = [transition(), transition("CLOSE_WAIT", "LAST_ACK")]
    assert states_of(handover(found(TcpState.LAST_ACK)).existing(events)) == ["ESTABLISHED"]


def test_it_is_recognised_by_its_addresses_where_it_had_no_cookie_yet():
    events = [transition(cookie=None)]
    assert states_of(handover(found(TcpState.CLOSE_WAIT)).existing(events)) == ["ESTABLISHED"]


def test_and_by_its_addresses_where_the_cookie_is_our_own_number():
    events = [transition(cookie="t5")]
    assert states_of(handover(found(TcpState.CLOSE_WAIT)).existing(events)) == ["ESTABLISHED"]


def test_another_connection_at_the_same_addresses_is_told_apart_by_its_cookie():
    events = [transition("SYN_SENT", "ESTABLISHED", cookie="999")]
    assert states_of(handover(found(TcpState.CLOSE_WAIT)).existing(events)) == ["CLOSE_WAIT"]


def test_one_that_was_born_meanwhile_is_not_existing():
    events = [transition("CLOSE", "SYN_SENT")]
    assert handover(found()).existing(events) == []


@pytest.mark.parametrize(
    "filters",
    [
        Filters(states=frozenset({TcpState.CLOSE_WAIT})),
        Filters(family=6),
        Filters(netns=frozenset({1})),
        Filters(ports={81: 1}),
    ],
)
def test_what_the_filters_do_not_want_is_not_told(filters):
    assert handover(found(), filters=filters).existing([]) == []


def test_of_cgroups_the_kernel_half_decides():
    filters = Filters(cgroups=frozenset({7}))
    mine, other, remainder = found(inode=100), found(inode=101), found(inode=0, holders=())
    told = handover(mine, other, remainder, filters=filters, unwanted=[101]).existing([])
    assert [event["inode"] for event in told] == [100]


def test_without_pids_every_transition_is_told():
    events = [transition(), transition(cookie="999", sport=1)]
    assert handover(filters=Filters()).live(events) == events


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"pid": 5}, True),
        ({"listener_pid": 5}, True),
        ({"pid": STRANGER, "sport": 1, "cookie": "999"}, False),
        ({"sport": 1, "cookie": "999"}, False),
        ({"pid": STRANGER, "sport": 1, "cookie": "999", "facts": Fact.TRACKED}, True),
    ],
    ids=["owner", "listener", "stranger", "nobody", "after the window"],
)
def test_with_pids_only_what_concerns_them(more, told):
    assert bool(handover(filters=OURS).live([transition(**more)])) == told


@pytest.mark.parametrize("cookie", [COOKIE, None], ids=["by cookie", "by addresses"])
def test_a_socket_of_the_inventory_is_in_hand_whoever_owns_it_now(cookie):
    held = found(holders=(Holder(5, 9),))
    assert len(handover(held, filters=OURS).live([transition(cookie=cookie)])) == 1


def test_a_transition_without_a_cookie_gets_that_of_the_inventory():
    (told,) = handover(found()).live([transition(cookie=None)])
    assert told["cookie"] == COOKIE


def test_a_transition_of_a_socket_that_the_inventory_does_not_have_stays_without():
    (told,) = handover(found()).live([transition(cookie=None, sport=1)])
    assert told["cookie"] is None


def test_a_number_of_our_own_is_kept():
    (told,) = handover(found()).live([transition(cookie="t5")])
    assert told["cookie"] == "t5"
