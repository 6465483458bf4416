"""Recorded ring-buffer bytes -> golden JSON lines, without root.

The files are made by ``python -m tests.unit.golden.record``, see there.
"""

import json
import re
from pathlib import Path

import jsonschema
import pytest

from tcptrace.probes.engine.layout import Layout
from tcptrace.probes.engine.schema import json_schema
from tcptrace.probes.states import STACKS
from tests.unit.c_text import c_struct
from tests.unit.golden.replay import LINES, RECORDS, recorded_layout, replay, rows

RECORD_H = Path(__file__).parents[2] / "bpf" / "record.h"


def lines():
    return [json.loads(line) for line in LINES.read_text().splitlines()]


def test_the_recorded_bytes_give_the_golden_lines():
    assert replay().decode().splitlines() == LINES.read_text().splitlines()


def test_every_recorded_record_is_decoded():
    layout = recorded_layout()
    assert len(rows(layout)) == len(RECORDS.read_bytes()) // (8 + layout.size)


def test_every_golden_line_is_as_the_schema_promises():
    validator = jsonschema.Draft202012Validator(json_schema())
    for event in lines():
        validator.validate(event)


def test_seq_has_no_gaps():
    assert [event["seq"] for event in lines()] == list(range(1, len(lines()) + 1))


def paths(events):
    """Cookie -> the states that the socket went through."""
    found = {}
    for event in events:
        if event["event"] == "state":
            states = found.setdefault(event["cookie"], [event["old_state"]])
            assert states[-1] == event["old_state"]
            states.append(event["new_state"])
    return found


def test_the_recording_holds_what_it_was_made_for():
    told = {" ".join(path) for path in paths(lines()).values()}
    assert "CLOSE SYN_SENT ESTABLISHED FIN_WAIT1 FIN_WAIT2 CLOSE" in told
    assert "LISTEN SYN_RECV ESTABLISHED CLOSE_WAIT LAST_ACK CLOSE" in told
    assert "CLOSE LISTEN CLOSE" in told
    families = {(event["family"], event["socket_family"]) for event in lines() if "family" in event}
    assert families == {("ipv4", "inet"), ("ipv6", "inet6"), ("ipv4", "inet6")}
    reasons = {event.get("reason") for event in lines()}
    assert reasons >= {"rst_sent_linger", "rst_sent_unread", "rst_received", "refused"}
    assert reasons >= {"accept", "handshake", "listener_closed", "fin_received"}


def test_the_recording_has_stacks_of_each_kind():
    named = {name for event in lines() for name, value in event.items() if value is not None}
    assert {f"{name}_stack_id" for name in STACKS} - named == set()
    functions = {event["frames"][0].split()[0] for event in lines() if event["event"] == "stack"}
    assert functions >= {"listen", "connect", "accept4", "recv", "send", "close"}


def test_every_stack_is_told_before_it_is_named_and_once():
    told = []
    for event in lines():
        if event["event"] == "stack":
            told.append(event["stack_id"])
        named = {value for name, value in event.items() if name.endswith("_stack_id")} - {None}
        assert named <= set(told), event
    assert len(told) == len(set(told))


def layout_of(text):
    """Padding written out: BCC and our own reading of C count it differently."""
    return spelled_out(Layout.of(c_struct(text, "state_record")))


def spelled_out(layout):
    padded = re.sub(r"(\d+)x", lambda match: "x" * int(match[1]), layout.format)
    return Layout(layout.names, padded, layout.size)


def test_the_struct_of_the_c_half_is_still_the_recorded_one():
    """Else record anew: the golden bytes no longer show what the kernel half writes."""
    assert layout_of(RECORD_H.read_text()) == spelled_out(recorded_layout())


@pytest.mark.parametrize(("old", "new"), [("u32 pid;", "u64 pid;"), ("u16 sport;", "")])
def test_a_change_of_the_struct_would_be_noticed(old, new):
    text = RECORD_H.read_text().replace(old, new, 1)
    assert layout_of(text) != spelled_out(recorded_layout())
