"""The last stage: numbers, times, counts, and the filters on the single transitions."""

import os
import sys

import jsonschema
import pytest

import tcptrace
from tcptrace.cli.sinks.base import LineWriter
from tcptrace.cli.sinks.ndjson import NdjsonSink
from tcptrace.probes import publish
from tcptrace.probes.engine import schema
from tcptrace.probes.engine.constants import TcpState
from tcptrace.probes.filters import Filters
from tcptrace.probes.publish import Publisher
from tests.unit.golden.replay import FixedClock

FRAMES = {field.name for field in schema.STACK_FRAMES}


def event(kind="state", **more):
    """A working event: every field of the stream, and what only the stages know."""
    made = {field.name: None for field in schema.EVENTS[kind]}
    made |= {"event": kind, "ts_ns": 5, "start_ns": 0, "uncertain": False, "sk": 1, "facts": 0}
    if kind == "state":
        made |= {"old_state": "ESTABLISHED", "new_state": "CLOSE_WAIT"}
    if kind == "existing":
        made |= {"new_state": "LISTEN"}
    return made | more


@pytest.fixture
def publisher(monkeypatch):
    monkeypatch.setattr(publish, "Clock", FixedClock)
    return lambda **filters: Publisher(Filters(**filters))


def test_events_are_numbered_without_gaps_from_one(publisher):
    one = publisher()
    told = [one.start([]), *one.publish([event(), event("existing")]), one.end("done", 0)]
    assert [event["seq"] for event in told] == [1, 2, 3, 4]


def test_only_the_fields_of_the_schema_leave_in_its_order(publisher):
    for kind in ("state", "existing"):
        (told,) = publisher().publish([event(kind)])
        assert list(told) == [field.name for field in schema.EVENTS[kind]]


def without_frames(one):
    """As the stage before makes it, unless --inline-stacks was given."""
    return {name: value for name, value in one.items() if name not in FRAMES}


def test_the_frames_of_stacks_leave_only_if_they_come(publisher):
    one = publisher()
    (told,) = one.publish([event(user_stack=["f (srv)"])])
    assert told["user_stack"] == ["f (srv)"]
    assert told["birth_stack"] is None
    (told,) = one.publish([without_frames(event(user_stack_id="ab"))])
    assert FRAMES & set(told) == set()
    assert told["user_stack_id"] == "ab"


def test_a_stack_passes_and_is_no_transition(publisher):
    one = publisher(comms=frozenset({"nginx"}))
    stack = {"event": "stack", "ts_ns": 5, "stack_id": "ab", "frames": ["f (srv)"]}
    first, second = one.publish([stack, event(comm="nginx")], limit=1)
    assert (first["event"], first["seq"], first["frames"]) == ("stack", 1, ["f (srv)"])
    assert (second["event"], second["seq"]) == ("state", 2)
    assert one.end("done", 0)["states"] == 1


def test_times_are_written_out(publisher):
    (told,) = publisher().publish([event(ts_ns=1_500_000_000, start_ns=70_000_000)])
    assert told["ts"] == "2025-11-21T14:00:01.500000000Z"
    assert told["start_time"] == "2025-11-21T14:00:00.070000000Z"
    (told,) = publisher().publish([event()])
    assert told["start_time"] is None


def test_start_and_end_are_as_the_schema_promises(publisher):
    one = publisher()
    validator = jsonschema.Draft202012Validator(schema.json_schema())
    start, end = one.start(["a: b"]), one.end("SIGINT", 3)
    validator.validate(start)
    validator.validate(end)
    assert (start["schema"], start["version"]) == (schema.VERSION, tcptrace.__version__)
    assert (end["why"], end["lost"], end["events"]) == ("SIGINT", 3, 2)


def test_the_end_counts_what_was_written(publisher):
    one = publisher()
    one.publish([event(), event("existing"), event(pid=5), event(uncertain=True)])
    end = one.end("done", 0)
    assert (end["states"], end["existing"], end["owner_unknown"]) == (3, 1, 1)
    assert end["events"] == end["seq"] == 5
    assert one.states == 3


def test_an_owner_that_was_searched_for_and_found_is_not_unknown(publisher):
    one = publisher()
    one.publish([event(uncertain=True, pid=7)])
    assert one.end("done", 0)["owner_unknown"] == 0


def test_after_the_limit_nothing_more_is_written(publisher):
    one = publisher()
    assert len(one.publish([event(), event(), event()], limit=2)) == 2
    assert one.publish([event()], limit=2) == []


def test_existing_sockets_do_not_use_up_the_limit(publisher):
    told = publisher().publish([event("existing"), event("existing"), event()], limit=1)
    assert [event["event"] for event in told] == ["existing", "existing", "state"]


def test_of_one_record_only_the_wanted_transitions_are_told(publisher):
    expanded = [
        event(old_state="LISTEN", new_state="SYN_RECV"),
        event(old_state="SYN_RECV", new_state="ESTABLISHED"),
        event(old_state="ESTABLISHED", new_state="CLOSE_WAIT"),
    ]
    one = publisher(states=frozenset({TcpState.CLOSE_WAIT}))
    assert [told["new_state"] for told in one.publish(expanded)] == ["CLOSE_WAIT"]
    one = publisher(states=frozenset({TcpState.SYN_RECV}))
    assert len(one.publish(expanded)) == 2  # to it and from it


def test_a_name_is_wanted_of_the_owner_or_of_the_listener(publisher):
    one = publisher(comms=frozenset({"nginx"}))
    told = one.publish(
        [
            event(comm="nginx"),
            event(comm="curl", listener_comm="nginx"),
            event(listener_comm="nginx"),
            event(),
        ]
    )
    assert [(event["comm"], event["listener_comm"]) for event in told] == [
        ("nginx", None),
        (None, "nginx"),
    ]


def test_losses_always_pass(publisher):
    one = publisher(comms=frozenset({"x"}), states=frozenset({TcpState.LISTEN}))
    loss = event("loss", lost=1, where="ring_full", lost_total=1)
    assert one.publish([loss])[0]["lost"] == 1


@pytest.mark.parametrize("argument", ["caf\udce9", "two\nlines", "\x1b[31m"])
def test_any_command_line_can_be_told(publisher, argument, monkeypatch):
    """Arguments are bytes: Latin-1 file names exist."""
    monkeypatch.setattr(sys, "argv", ["tcptrace", "states", "-o", argument])
    fd = os.memfd_create("lines")
    NdjsonSink(LineWriter(fd, owned=True)).write([publisher().start([])])
    assert os.pread(fd, 1 << 16, 0).count(b"\n") == 1
    os.close(fd)


@pytest.mark.parametrize("kind", ["eof", "write_error", "reset", "exit", "finding"])
def test_deeds_and_findings_pass_the_filters_and_are_no_transitions(publisher, kind):
    """The kernel has filtered deeds; a finding is about events that have passed."""
    one = publisher(comms=frozenset({"nginx"}), states=frozenset({TcpState.LISTEN}))
    (told,) = one.publish([event(kind)])
    assert list(told) == [
        field.name
        for field in schema.EVENTS[kind]
        if field.name not in FRAMES or field.name in told
    ]
    assert one.end("done", 0)["states"] == 0


def test_a_finding_is_numbered_as_the_next_event(publisher):
    one = publisher()
    (state,) = one.publish([event()])
    (finding,) = one.publish([dict.fromkeys(event("finding")) | {"event": "finding"}])
    assert (state["seq"], finding["seq"]) == (1, 2)
    assert finding["ts"]
