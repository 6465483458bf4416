"""Transitions kept back until the connection's owner is known, or no longer."""

import pytest

from tcptrace.probes import accept_queue
from tcptrace.probes.accept_queue import AcceptQueue
from tcptrace.probes.engine.constants import Fact
from tcptrace.probes.enrich.owner import NOBODY, NOT_ACCEPTED
from tcptrace.probes.states import STACKS

MS = 1_000_000


def waiting(new_state, sk=1, ts_ns=0, cookie="a", **more):
    """A transition of a connection that nobody has accepted."""
    event = {
        "event": "state",
        "sk": sk,
        "cookie": cookie,
        "ts_ns": ts_ns,
        "old_state": "ESTABLISHED",
        "new_state": new_state,
        "reason": "fin_received",
        "accept_wait_us": None,
        "waited_long": False,
        "accepted": False,
        "accepted_ns": 0,
        "facts": Fact.CHILD,
        "uncertain": False,
        "owner_unknown": NOT_ACCEPTED,
        "listener_pid": 5,
        "listener_comm": "server",
    }
    return event | NOBODY | more


def handshake(**more):
    return waiting("ESTABLISHED", old_state="SYN_RECV", reason="handshake", **more)


def owned(pid, sk=1, **more):
    """What comes once a process has it."""
    owner = {"pid": pid, "tid": pid, "comm": "server", "uid": 0, "fd": 7, "how": "accept"}
    event = waiting("LAST_ACK", sk, owner_unknown=None, listener_pid=None)
    return event | owner | {"start_ns": 9, "facts": Fact.TRACKED | Fact.VERIFIED} | more


def accepted(pid, sk=1, **more):
    """The record of accept() itself: its transitions have been told or kept already."""
    return owned(pid, sk, event="existing", accepted=True, accepted_ns=50 * MS, **more)


@pytest.fixture
def queue():
    return AcceptQueue()


def passed(queue, event):
    return list(queue.pass_on(event))


def test_an_event_with_an_owner_passes_at_once(queue):
    event = owned(5)
    assert passed(queue, event) == [event]
    assert len(queue) == 0


def test_an_unaccepted_transition_is_kept(queue):
    assert passed(queue, waiting("CLOSE_WAIT")) == []
    assert len(queue) == 1


def test_accept_releases_what_was_kept_in_order_with_the_owner(queue):
    passed(queue, handshake(ts_ns=10 * MS))
    passed(queue, waiting("CLOSE_WAIT", ts_ns=20 * MS))
    first, second = passed(queue, accepted(5))
    assert [first["new_state"], second["new_state"]] == ["ESTABLISHED", "CLOSE_WAIT"]
    for event in (first, second):
        assert (event["pid"], event["fd"], event["how"]) == (5, 7, "accept")
        assert event["owner_unknown"] is event["listener_pid"] is None
    assert (first["reason"], first["accept_wait_us"]) == ("accept", 40_000)
    assert second["reason"] == "fin_received"
    assert len(queue) == 0


def stacks(**ids):
    return tuple(ids.get(name, 0) for name in STACKS)


def test_accept_tells_earlier_transitions_the_code_path_that_led_to_it(queue):
    passed(queue, handshake(stack_ids=stacks()))
    passed(queue, waiting("CLOSE_WAIT", stack_ids=stacks(kernel=-3)))
    later = owned(5, stack_ids=stacks(user=71, birth=72, last_read=73, eof=73, kernel=-9))
    first, second, last = passed(queue, later)
    assert first["stack_ids"] == stacks(birth=72)
    assert second["stack_ids"] == stacks(birth=72, kernel=-3)
    assert last["stack_ids"] == later["stack_ids"]


def test_a_birth_that_is_known_stays_what_it_is(queue):
    passed(queue, waiting("CLOSE_WAIT", stack_ids=stacks(birth=70)))
    first, _ = passed(queue, owned(5, stack_ids=stacks(birth=72)))
    assert first["stack_ids"] == stacks(birth=70)


def test_without_an_owner_there_is_no_birth_either(queue):
    passed(queue, waiting("CLOSE_WAIT", stack_ids=stacks()))
    first, _ = passed(queue, waiting("CLOSE", stack_ids=stacks(birth=72)))
    assert first["stack_ids"] == stacks()


def test_stacks_stay_where_the_next_event_has_none(queue):
    passed(queue, waiting("CLOSE_WAIT", stack_ids=stacks(kernel=-3)))
    (first,) = passed(queue, accepted(5))
    assert first["stack_ids"] == stacks(kernel=-3)


def test_a_transition_with_an_owner_comes_after_those_that_it_releases(queue):
    passed(queue, waiting("CLOSE_WAIT"))
    last = owned(5)
    told = passed(queue, last)
    assert [event["new_state"] for event in told] == ["CLOSE_WAIT", "LAST_ACK"]
    assert told[-1] == last


def test_without_the_time_of_accept_there_is_no_waiting_time(queue):
    passed(queue, handshake())
    assert passed(queue, owned(5))[0]["accept_wait_us"] is None


def test_other_sockets_stay_kept(queue):
    passed(queue, waiting("CLOSE_WAIT", sk=1))
    passed(queue, waiting("CLOSE_WAIT", sk=2))
    passed(queue, accepted(5, sk=1))
    assert len(queue) == 1


def test_the_owner_of_the_next_socket_at_that_address_is_not_blamed(queue):
    """A child dies un-accepted, and the kernel gives its memory to a new socket at once."""
    told = passed(queue, waiting("CLOSE_WAIT"))
    told += passed(queue, owned(666, cookie="b", reason="connect", new_state="SYN_SENT"))
    assert [event["pid"] for event in told] == [None, 666]


def test_a_socket_that_gets_its_number_late_is_still_the_same(queue):
    """Without cgroup2 the kernel numbers no child; the table's own number comes with accept()."""
    passed(queue, waiting("CLOSE_WAIT", cookie=None))
    (told,) = passed(queue, accepted(5, cookie="t1f"))
    assert told["pid"] == 5


def test_nobody_can_accept_after_close(queue):
    passed(queue, waiting("CLOSE_WAIT"))
    told = passed(queue, waiting("CLOSE"))
    assert [event["new_state"] for event in told] == ["CLOSE_WAIT", "CLOSE"]
    assert len(queue) == 0


def test_one_that_has_waited_long_already_is_not_kept(queue):
    event = handshake(waited_long=True)
    assert passed(queue, event) == [event]


def test_a_socket_of_the_inventory_is_not_kept(queue):
    event = waiting("ESTABLISHED", event="existing")
    assert passed(queue, event) == [event]


def test_when_the_moment_is_over_it_is_told_as_it_stands(queue, monkeypatch):
    now = 100.0
    monkeypatch.setattr(accept_queue.time, "monotonic", lambda: now)
    passed(queue, waiting("CLOSE_WAIT", sk=1))
    now += accept_queue.PATIENCE_S / 2
    passed(queue, waiting("CLOSE_WAIT", sk=2))
    assert list(queue.overdue()) == []
    now += accept_queue.PATIENCE_S / 2
    (told,) = queue.overdue()
    assert (told["sk"], told["pid"], told["listener_pid"]) == (1, None, 5)
    assert len(queue) == 1


def test_the_end_of_the_run_lets_everything_go(queue):
    passed(queue, handshake(sk=1))
    passed(queue, waiting("CLOSE_WAIT", sk=1))
    passed(queue, waiting("CLOSE_WAIT", sk=2))
    told = [(event["sk"], event["new_state"]) for event in queue.rest()]
    assert told == [(1, "ESTABLISHED"), (1, "CLOSE_WAIT"), (2, "CLOSE_WAIT")]
    assert len(queue) == 0
    assert list(queue.overdue()) == []
