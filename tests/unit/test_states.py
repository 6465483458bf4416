"""Records of the ring buffer read as events, where the golden files do not reach."""

import errno
import json

import pytest

from tcptrace.probes.engine.constants import Fact, How, Kind, Stack, TcpState
from tcptrace.probes.enrich import owner
from tcptrace.probes.states import STACKS, Interpreter, address, cookie_text
from tests.unit.golden.replay import LAYOUT, recorded_layout

NAMES = recorded_layout().names
HZ = 250
HELD = Fact.HAS_SOCKET | Fact.HAS_FILE
OURS = HELD | Fact.TRACKED | Fact.VERIFIED
MS = 1_000_000


def record(**fields):
    made = dict.fromkeys(NAMES, 0)
    made |= {"kind": Kind.STATE, "family": 2, "facts": OURS, "pid": 5, "tid": 6, "fd": 7}
    made |= {"saddr": b"\0" * 16, "daddr": b"\0" * 16, "comm": b"name\0garbage".ljust(16, b"\0")}
    made |= {"old_state": TcpState.ESTABLISHED, "new_state": TcpState.CLOSE_WAIT}
    made |= {"kernel_stack": -1}
    return tuple((made | fields)[name] for name in NAMES)


def events(**fields):
    return list(Interpreter(NAMES, HZ).interpret(record(**fields)))


def event(**fields):
    (only,) = events(**fields)
    return only


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"\0" * 10 + b"\xff\xff\x0a\0\0\x01", ("ipv4", "10.0.0.1")),
        (b"\0" * 10 + b"\xff\xff\0\0\0\0", ("ipv4", "0.0.0.0")),
        (b"\0" * 16, ("ipv6", "::")),
        (b"\0" * 15 + b"\x01", ("ipv6", "::1")),
        (b"\0" * 12 + b"\x0a\0\0\x01", ("ipv6", "::10.0.0.1")),
    ],
)
def test_addresses(raw, shown):
    assert address(raw) == shown


@pytest.mark.parametrize(
    ("cookie", "text"),
    [(0, None), (0x1234, "1234"), (2**62, f"{2**62:x}"), (1 << 63 | 0xAB, "tab")],
)
def test_a_cookie_is_text_and_our_own_numbers_are_marked(cookie, text):
    assert cookie_text(cookie) == text


def test_the_owner_is_told_when_it_was_verified():
    told = event(how=How.ACCEPT, start_ns=9)
    assert (told["pid"], told["tid"], told["fd"], told["how"]) == (5, 6, 7, "accept")
    assert (told["comm"], told["start_ns"], told["uncertain"]) == ("name", 9, False)


@pytest.mark.parametrize(
    ("facts", "uncertain", "because"),
    [
        (HELD | Fact.TRACKED, True, None),  # somebody else may hold it by now
        (HELD, True, None),
        (HELD | Fact.TRACKED | Fact.FILE_CLOSING, False, owner.KERNEL_CLOSED),
        (Fact.HAS_SOCKET, False, owner.KERNEL_SOCKET),
        (Fact(0), False, owner.NOT_ACCEPTED),
    ],
)
def test_an_owner_that_was_not_verified_is_never_told(facts, uncertain, because):
    told = event(facts=facts, how=How.ACCEPT)
    assert told["pid"] is told["comm"] is told["fd"] is None
    assert (told["uncertain"], told["owner_unknown"]) == (uncertain, because)
    assert told["recorded"] == (5, "accept")


def test_an_orphan_keeps_its_last_owner_but_no_descriptor():
    told = event(facts=Fact.TRACKED | Fact.ORPHAN)
    assert (told["pid"], told["fd"], told["orphan"]) == (5, None, True)


def test_a_descriptor_that_was_not_found_is_null_and_not_minus_one():
    assert event(fd=-1)["fd"] is None


def test_the_time_in_the_old_state():
    assert event(ts_ns=5 * MS, since_ns=2 * MS)["duration_us"] == 3000
    assert event(ts_ns=5 * MS, since_ns=0)["duration_us"] is None


def test_a_childs_first_transitions_come_before_its_next():
    told = events(
        syn_recv_ns=1 * MS, established_ns=2 * MS, ts_ns=9 * MS, since_ns=2 * MS, recv_q=4
    )
    assert [(one["old_state"], one["new_state"]) for one in told] == [
        ("LISTEN", "SYN_RECV"),
        ("SYN_RECV", "ESTABLISHED"),
        ("ESTABLISHED", "CLOSE_WAIT"),
    ]
    assert [one["ts_ns"] for one in told] == [1 * MS, 2 * MS, 9 * MS]
    assert [one["duration_us"] for one in told] == [None, 1000, 7000]
    assert [one["recv_q"] for one in told] == [0, 0, 4]


def test_accept_tells_the_childs_transitions_and_how_long_it_waited():
    told = events(kind=Kind.ACCEPTED, syn_recv_ns=1 * MS, established_ns=2 * MS, accepted_ns=5 * MS)
    assert [one["new_state"] for one in told] == ["SYN_RECV", "ESTABLISHED"]
    assert [one["accept_wait_us"] for one in told] == [None, 3000]
    assert told[1]["reason"] == "accept"


@pytest.mark.parametrize("kind", [Kind.EXISTING, Kind.ACCEPTED])
def test_a_socket_that_was_handed_over_is_told_as_existing(kind):
    told = event(kind=kind, new_state=TcpState.CLOSE_WAIT)
    assert (told["event"], told["new_state"]) == ("existing", "CLOSE_WAIT")
    assert told["holders"] == ["5:7"]


NAMES_OF_STACKS = {
    "user": "user_stack",
    "birth": "birth_stack",
    "last_read": "read_stack",
    "last_write": "write_stack",
    "eof": "eof_stack",
    "close": "close_stack",
}


def stacks(event):
    return {name: id_ for name, id_ in zip(STACKS, event["stack_ids"], strict=True) if id_}


@pytest.mark.parametrize(("name", "field"), NAMES_OF_STACKS.items())
def test_each_stack_of_the_record_is_told_under_its_name(name, field):
    assert stacks(event(**{field: 77})) == {name: 77}


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (0, {"kernel": -1}),
        (4095, {"kernel": -4096}),
        (-1, {}),  # not asked for
        (-errno.EEXIST, {"kernel": Stack.COLLISION}),
        (-errno.EFAULT, {}),
    ],
)
def test_a_kernel_stack_has_a_negative_number(number, told):
    assert stacks(event(kernel_stack=number)) == told


def test_a_childs_first_transitions_have_only_the_stack_of_its_birth():
    every = dict.fromkeys(NAMES_OF_STACKS.values(), 77) | {"birth_stack": 78, "kernel_stack": 5}
    first, second, third = events(syn_recv_ns=1 * MS, established_ns=2 * MS, **every)
    assert stacks(first) == stacks(second) == {"birth": 78}
    assert stacks(third) == dict.fromkeys(STACKS, 77) | {"birth": 78, "kernel": -6}


def closing(**fields):
    state = {"old_state": TcpState.FIN_WAIT2, "new_state": TcpState.CLOSE, "ts_ns": 100 * 10**9}
    facts = Fact.TRACKED | Fact.ORPHAN
    return event(**state, fin_wait2_jiffies=60 * HZ, **{"facts": facts, **fields})


def test_what_close_became_and_how_long_that_lives():
    told = closing(facts=Fact.TRACKED | Fact.ORPHAN | Fact.FIN_RECEIVED)
    assert (told["became"], told["lives_on_s"]) == ("time_wait", 60)
    told = closing(since_ns=99 * 10**9)
    assert (told["became"], told["lives_on_s"]) == ("fin_wait2", 60)
    told = closing(since_ns=39 * 10**9)
    assert (told["became"], told["lives_on_s"], told["reason"]) == ("gone", None, "timeout")


def test_the_recorded_tick_is_the_one_that_was_recorded():
    assert json.loads(LAYOUT.read_text())["hz"] == HZ
