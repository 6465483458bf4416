"""A recorded stream read again: whole, cut, of another schema, or none at all."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from tcptrace.cli.main import cli, exit_code
from tcptrace.cli.recording import Recording, diagnose_recording
from tcptrace.probes.diagnose.engine import Diagnosis
from tcptrace.probes.diagnose.rules import RULES
from tcptrace.probes.engine import schema
from tcptrace.probes.engine.errors import UsageError
from tests.unit.test_diagnose import HANDLER, SOCKET

START = {"event": "start", "schema": schema.VERSION, "version": "9.9"}
STACK = {"event": "stack", "stack_id": "h", "frames": HANDLER}
STATE = SOCKET | {"event": "state", "old_state": "ESTABLISHED", "new_state": "CLOSE_WAIT"}
FIN = STATE | {"reason": "fin_received", "recv_q": 1}
EOF = SOCKET | {"event": "eof", "state": "CLOSE_WAIT", "count": 1, "user_stack_id": "h"}
OLD = {"event": "finding", "code": "CW01", "says": "as it was told then", "netns": 1}
END = {"event": "end", "why": "done"}


class Kept(list):
    """A sink."""

    def write(self, events):
        self += events


@pytest.fixture
def file(tmp_path):
    """A recording of these events: numbered, a second between each two, 10 before the last."""

    def write(*events, tail=b"", path=tmp_path / "rec.ndjson"):
        lines = []
        for number, event in enumerate(events, 1):
            second = number + (10 if event is END else 0)
            ts = f"2026-11-21T18:00:{second:02d}.000000000Z"
            lines.append(json.dumps({"ts": ts, "seq": number} | event).encode() + b"\n")
        path.write_bytes(b"".join(lines) + tail)
        return path

    return write


def found(path):
    sink = Kept()
    diagnose_recording(Recording(path), Diagnosis(frozenset(RULES)), sink)
    return sink


def test_what_a_live_run_would_have_found(file):
    (finding,) = found(file(START, STACK, FIN, EOF, END))
    assert finding["code"] == "CW01"
    assert "`leaky_handler srv.c:7`" in finding["says"]
    assert finding["evidence"] == [3, 4]
    assert (finding["seq"], finding["ts"]) == (5, "2026-11-21T18:00:15.000000000Z")


def test_findings_of_the_recording_are_made_anew(file):
    told = found(file(START, STACK, FIN, EOF, OLD, OLD, END))
    assert [one["code"] for one in told] == ["CW01"]
    assert told[0]["says"] != OLD["says"]


def test_nothing_wrong_nothing_said(file, capsys):
    assert found(file(START, END)) == []
    assert capsys.readouterr().err == ""


def test_without_an_end_what_is_there_is_read(file, capsys):
    path = file(
        START, STACK, FIN, EOF, FIN | {"cookie": "c2", "ts": "2026-11-21T18:00:30.000000000Z"}
    )
    assert [one["code"] for one in found(path)] == ["CW01"]
    assert "was cut off" in capsys.readouterr().err


def test_cut_in_the_middle_of_a_line(file, capsys):
    path = file(START, STACK, FIN, EOF, END, tail=b'{"ts":"2026-11-21T18:00:3')
    assert [one["code"] for one in found(path)] == ["CW01"]
    assert f"{path} line 6 is no event: left out" in capsys.readouterr().err


@pytest.mark.parametrize("line", [b"\n", b"[1]\n", b"\xff\xfe\n", b'{"a":1}\n', b"null\n"])
def test_a_line_that_is_no_event_is_left_out(file, capsys, line):
    path = file(START)
    rest = file(STACK, FIN, EOF, END, path=path.with_name("rest"))
    path.write_bytes(path.read_bytes() + line + rest.read_bytes())
    assert [one["code"] for one in found(path)] == ["CW01"]
    assert "line 2 is no event" in capsys.readouterr().err


@pytest.mark.parametrize(
    "broken",
    [
        {"event": "eof", "cookie": "c2"},
        {"event": "state", "cookie": "c2"},
        {"event": "stack"},
        {"event": "write_error", "cookie": "c2", "count": "many", "pid": 1},
        {"event": "eof", "cookie": ["no", "text"]},
        {"event": "state", "ts": "yesterday"},
    ],
)
def test_an_event_that_lacks_fields_is_left_out(file, capsys, broken):
    assert [one["code"] for one in found(file(START, STACK, FIN, EOF, broken, END))] == ["CW01"]
    assert "lacks fields: left out" in capsys.readouterr().err


def test_events_and_fields_of_a_newer_minor_version_are_no_trouble(file, capsys):
    major = schema.VERSION.partition(".")[0]
    newer = START | {"schema": f"{major}.999", "mood": "good"}
    told = found(file(newer, STACK, {"event": "mood"}, FIN | {"mood": 1}, EOF, END))
    assert [one["code"] for one in told] == ["CW01"]
    assert capsys.readouterr().err == ""


def test_a_newer_schema_is_refused(file):
    with pytest.raises(UsageError, match=r"has schema 99\.0; this tcptrace reads \d+\.x") as no:
        found(file(START | {"schema": "99.0"}, END))
    assert "9.9" in no.value.help


@pytest.mark.parametrize("first", [FIN, START | {"schema": ""}, {"event": "start"}])
def test_a_stream_without_its_start_is_refused(file, first):
    with pytest.raises(UsageError, match="does not begin with a start event"):
        found(file(first, END))


@pytest.mark.parametrize("text", [b"TIME (UTC)  PID\n", b"\x7fELF\x02\n", b"{}\n", b"\n", b""])
def test_another_file_is_refused(tmp_path, text):
    path = tmp_path / "other"
    path.write_bytes(text)
    with pytest.raises(UsageError, match="is no recording of tcptrace"):
        found(path)


@pytest.mark.parametrize(
    "events",
    [
        [START | {"ts": "x"}],
        [START, STACK, FIN | {"seq": "x"}, EOF, END],
        [START, STACK, FIN | {"seq": None}, EOF, END],
        [START, STACK, FIN, EOF, END | {"seq": None}],
        [START, STACK, FIN | {"daddr": None}, EOF, END],
        [START, STACK | {"frames": 7}, FIN, EOF, END],
    ],
    ids=["ts", "seq", "no seq", "no seq at the end", "no address", "frames"],
)
def test_nonsense_in_a_field_is_no_crash(file, events):
    found(file(*events))


def test_unreadable(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*: No such file"):
        found(tmp_path / "nosuch")
    with pytest.raises(UsageError, match=r"cannot read .*: Is a directory"):
        found(tmp_path)


def test_a_pipe_is_read_as_it_comes(file):
    """``diagnose --from <(zcat ...)``: no seeking, no size."""
    content = file(START, STACK, FIN, EOF, END).read_bytes()
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    assert [one["code"] for one in found(Path(f"/dev/fd/{reader}"))] == ["CW01"]
    os.close(reader)


def invoke(*arguments):
    return CliRunner().invoke(cli, ["diagnose", "--from", *map(str, arguments)])


def test_the_command_writes_findings_alone(file, tmp_path):
    path, target = file(START, STACK, FIN, EOF, END), tmp_path / "out"
    assert invoke(path, "--format", "ndjson", "-o", target).exit_code == 0
    (finding,) = [json.loads(line) for line in target.read_text().splitlines()]
    assert (finding["event"], finding["code"]) == ("finding", "CW01")
    assert invoke(path, "-o", target, "--older-than", "60").exit_code == 0
    assert target.read_text() == ""


def test_wrong_files_are_wrong_usage(tmp_path, capfd):
    path = str(tmp_path / "nosuch")
    code = exit_code(lambda: cli.main(["diagnose", "--from", path], standalone_mode=False))
    assert code == 2
    assert capfd.readouterr().err.startswith("tcptrace: cannot read ")


def test_a_recording_is_not_written_over(file):
    path = file(START, STACK, FIN, EOF, END)
    before = path.read_bytes()
    invoke(path, "-o", path)
    assert path.read_bytes() == before
