"""Records of the ring of deeds read as events."""

import errno
import signal

import jsonschema
import pytest

from tcptrace.probes import deeds
from tcptrace.probes.deeds import DeedInterpreter
from tcptrace.probes.engine import schema
from tcptrace.probes.engine.constants import Deed, Fact, How, Pipe, TcpState
from tcptrace.probes.enrich import owner, resetreason
from tcptrace.probes.filters import Filters
from tcptrace.probes.publish import Publisher
from tests.unit.c_text import c_struct, sources

FIELDS = dict(c_struct(sources()["deeds.h"], "deed")._fields_)
NAMES = tuple(FIELDS)
OURS = Fact.HAS_SOCKET | Fact.HAS_FILE | Fact.TRACKED | Fact.VERIFIED
LOOP = b"\0" * 10 + b"\xff\xff\x7f\0\0\x01"


def event(kind, **fields):
    made = dict.fromkeys(NAMES, 0)
    made |= {"kind": kind, "ts_ns": 9, "family": 2, "saddr": LOOP, "daddr": LOOP, "sport": 80}
    made |= {"dport": 4000, "cookie": 0xC1, "netns": 1, "facts": OURS, "how": How.ACCEPT}
    made |= {"pid": 7, "tid": 8, "uid": 5, "fd": 4, "start_ns": 3, "count": 1, "recv_q": 1}
    made |= {"state": TcpState.CLOSE_WAIT, "comm": b"srv\0garbage", "user_stack": 11}
    made |= {"birth_stack": 12, "close_stack": 13}
    return DeedInterpreter(NAMES).interpret(tuple((made | fields)[name] for name in NAMES))


@pytest.fixture(autouse=True)
def kernels_words(monkeypatch):
    words = {4: "SK_RST_REASON_TCP_ABORT_ON_CLOSE"}
    monkeypatch.setattr(resetreason, "_words", lambda: words)


@pytest.mark.parametrize("kind", list(Deed))
def test_every_kind_is_published_as_the_schema_promises(kind):
    made = event(kind)
    made |= {name: made.get(name) for name in ("user_stack_id", "birth_stack_id")}
    (told,) = Publisher(Filters()).publish([made])
    jsonschema.Draft202012Validator(schema.json_schema()).validate(told)


def test_end_of_file():
    told = event(Deed.EOF, count=3)
    assert (told["event"], told["count"], told["recv_q"]) == ("eof", 3, 1)
    assert (told["pid"], told["tid"], told["fd"], told["comm"]) == (7, 8, 4, "srv")
    assert (told["cookie"], told["state"], told["how"]) == ("c1", "CLOSE_WAIT", "accept")
    assert (told["family"], told["saddr"], told["dport"]) == ("ipv4", "127.0.0.1", 4000)


def test_the_stacks_stand_in_the_places_of_a_transitions():
    assert event(Deed.EOF)["stack_ids"] == (11, 12, 0, 0, 0, 13, 0)


@pytest.mark.parametrize(
    ("number", "name"), [(errno.EPIPE, "EPIPE"), (errno.ECONNRESET, "ECONNRESET"), (9999, "9999")]
)
def test_a_failed_write_has_its_error(number, name):
    told = event(Deed.WRITE_ERROR, result=-number)
    assert (told["event"], told["error"]) == ("write_error", name)
    assert told["sigpipe"] is told["handler"] is None


@pytest.mark.parametrize(
    ("pipe", "handler", "expected"),
    [
        (Pipe.DEFAULT, 0, ("default", None)),
        (Pipe.IGNORED, 1, ("ignored", None)),  # SIG_IGN is no address
        (Pipe.HANDLED, 0x55D0, ("handled", "0x55d0")),
        (Pipe.BLOCKED, 0, ("blocked", None)),
    ],
)
def test_what_sigpipe_does(pipe, handler, expected):
    told = event(Deed.WRITE_ERROR, result=-errno.EPIPE, disposition=pipe, handler=handler)
    assert (told["sigpipe"], told["handler"]) == expected


def test_a_rst_that_came():
    told = event(Deed.RESET_RECEIVED, result=-1)
    assert (told["event"], told["direction"]) == ("reset", "received")
    assert (told["reason"], told["kernel_reason"]) == ("rst_received", None)
    assert told["by_call"] is False


def test_a_rst_that_was_sent_has_the_kernels_word():
    told = event(Deed.RESET_SENT, result=4)
    assert (told["direction"], told["reason"]) == ("sent", "unread_data")
    assert told["kernel_reason"] == "TCP_ABORT_ON_CLOSE"


@pytest.mark.parametrize(
    ("kind", "facts", "stack", "by_call"),
    [
        (Deed.RESET_SENT, Fact.LOCKED_BY_CURRENT, 11, True),
        (Deed.RESET_SENT, Fact.LOCKED_BY_CURRENT, 0, False),  # somebody else ran
        (Deed.RESET_SENT, Fact(0), 11, False),
        (Deed.RESET_RECEIVED, Fact.LOCKED_BY_CURRENT, 11, False),
    ],
)
def test_whether_a_call_brought_the_rst(kind, facts, stack, by_call):
    assert event(kind, facts=OURS | facts, user_stack=stack)["by_call"] is by_call


def test_a_remainder_belongs_to_nobody():
    told = event(Deed.RESET_SENT, result=-1, state=TcpState.TIME_WAIT, facts=0, pid=0, fd=-1)
    assert (told["pid"], told["orphan"], told["reason"]) == (None, True, "time_wait")
    assert (told["owner_unknown"], told["uncertain"]) == (owner.CLOSED, False)


def test_an_owner_that_was_not_verified_is_not_told():
    told = event(Deed.RESET_RECEIVED, facts=Fact.HAS_SOCKET | Fact.HAS_FILE | Fact.TRACKED)
    assert told["pid"] is told["comm"] is told["fd"] is None
    assert told["uncertain"]


@pytest.mark.parametrize(
    ("status", "code", "name"),
    [
        (0, 0, None),
        (3 << 8, 3, None),
        (255 << 8, 255, None),
        (signal.SIGPIPE, None, "SIGPIPE"),
        (signal.SIGSEGV | 0x80, None, "SIGSEGV"),  # with a core
        (40, None, "signal 40"),  # a real-time signal
    ],
)
def test_how_a_process_ended(status, code, name):
    told = event(Deed.EXIT, result=status)
    assert (told["event"], told["code"], told["signal"]) == ("exit", code, name)
    assert (told["pid"], told["tid"], told["comm"], told["uid"]) == (7, 8, "srv", 5)
    assert "cookie" not in told


def test_every_deed_and_disposition_has_a_word():
    assert {deeds._PIPE[pipe] for pipe in Pipe} == {"default", "ignored", "handled", "blocked"}
    (field,) = [one for one in schema.WRITE_ERROR if one.name == "sigpipe"]
    assert set(field.values) == set(deeds._PIPE.values())
