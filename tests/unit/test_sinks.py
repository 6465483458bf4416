"""The ndjson sink and the writer: what a pipeline relies on (whole lines, valid JSON, no NUL)."""

import fcntl
import json
import os
import threading
from pathlib import Path

import jsonschema
import pytest

from tcptrace.cli.sinks.base import ATOMIC_BYTES, LineWriter
from tcptrace.cli.sinks.ndjson import NdjsonSink
from tcptrace.probes.engine import schema
from tcptrace.probes.engine.errors import TcptraceError
from tcptrace.probes.states import Interpreter
from tests.unit.test_states import NAMES, record


def shown_comm(raw):
    """A process's name as it came from the kernel, as the stages after it see it."""
    (event,) = Interpreter(NAMES, 250).interpret(record(comm=raw.ljust(16, b"\0")))
    return event["comm"]


def written(*events):
    fd = os.memfd_create("lines")
    try:
        NdjsonSink(LineWriter(fd, owned=False)).write(events)
        return os.pread(fd, 1 << 24, 0)
    finally:
        os.close(fd)


HOSTILE = [b"a\0b", b"two\nlines", b"\r\t\x08", b"\x1b[31mred", b"\xff\xfe", b'"quoted"', b"\\"]


@pytest.mark.parametrize("raw", HOSTILE)
def test_a_hostile_name_is_one_valid_line(raw):
    line = written({"event": "state", "comm": shown_comm(raw)})
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    json.loads(line.decode("utf-8"))


@pytest.mark.parametrize("raw", HOSTILE)
def test_no_control_character_is_written_as_it_is(raw):
    line = written({"event": "state", "comm": shown_comm(raw)})[:-1]
    assert not any(byte < 0x20 for byte in line)
    assert b"\\u0000" not in line  # an escaped NUL cuts the string in rsyslog and syslog-ng


@pytest.mark.parametrize("raw", [b"\x7f", "\x9b31m".encode()], ids=["DEL", "C1"])
def test_the_control_characters_above_ascii_are_escaped_too(raw):
    """U+009B starts an escape sequence in some terminals, as ESC [ does."""
    line = written({"event": "state", "comm": shown_comm(raw)})[:-1].decode()
    assert not any(char == "\x7f" or "\x80" <= char <= "\x9f" for char in line)


def test_numbers_that_consumers_would_round_are_not_in_the_stream():
    """Above 2^53: cookies are strings, times are text."""
    fields = {field.name: field.kind for kind in schema.EVENTS.values() for field in kind}
    assert fields["cookie"] == "string"
    assert not [name for name, kind in fields.items() if kind == "integer" and "_ns" in name]


def test_each_event_is_one_line_in_order():
    lines = written(*({"seq": number} for number in range(5))).splitlines()
    assert [json.loads(line)["seq"] for line in lines] == list(range(5))


def pieces(lines):
    """What each single write() carried: a packet pipe keeps them apart."""
    read, write = os.pipe2(os.O_DIRECT)
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 20)
    try:
        LineWriter(write, owned=True).write(lines)
        os.close(write)
        found = []
        while piece := os.read(read, 1 << 20):
            found.append(piece)
        return found
    finally:
        os.close(read)


def test_a_write_carries_whole_lines_and_no_more_than_a_pipe_takes_at_once():
    lines = [b"x" * (index % 900) + b"\n" for index in range(200)]
    found = pieces(lines)
    assert b"".join(found) == b"".join(lines)
    assert all(len(piece) <= ATOMIC_BYTES == 4096 for piece in found)
    assert all(piece.endswith(b"\n") for piece in found)


def test_short_lines_share_a_write():
    assert len(pieces([b"x" * 99 + b"\n"] * 40)) == 1


def test_the_longest_line_that_fits_is_not_cut():
    line = b"x" * (ATOMIC_BYTES - 1) + b"\n"
    assert pieces([line, line]) == [line, line]


def test_nothing_to_write_writes_nothing():
    assert pieces([]) == []


def test_a_line_longer_than_a_pipe_takes_at_once_arrives_whole():
    read, write = os.pipe()
    line = b"x" * 300_000 + b"\n"
    writer = threading.Thread(target=lambda: LineWriter(write, owned=True).write([line]))
    writer.start()
    with os.fdopen(read, "rb") as end:
        got = end.read(len(line))
    writer.join()
    os.close(write)
    assert got == line


def test_a_pipe_that_somebody_set_nonblocking_loses_nothing():
    """A terminal or pipe shared with a program that sets O_NONBLOCK (ssh, node) is one."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    lines = [b"x" * 1000 + b"\n"] * 500
    failed = []

    def run():
        try:
            LineWriter(write, owned=False).write(lines)
        except Exception as error:
            failed.append(error)
        finally:
            os.close(write)

    writer = threading.Thread(target=run)
    writer.start()
    writer.join(0.05)  # the pipe is full long before
    with os.fdopen(read, "rb") as end:
        got = end.read()
    writer.join()
    assert failed == []
    assert got == b"".join(lines)


def test_a_reader_that_went_away_is_a_broken_pipe():
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(BrokenPipeError):
        LineWriter(write, owned=False).write([b"x\n"])
    os.close(write)


def test_a_full_disk_says_so():
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(TcptraceError, match="No space left on device"):
            LineWriter(fd, owned=False).write([b"x\n"])
    finally:
        os.close(fd)


@pytest.mark.parametrize("owned", [True, False])
def test_only_a_file_of_its_own_is_closed(owned):
    fd = os.memfd_create("lines")
    NdjsonSink(LineWriter(fd, owned=owned)).close()
    if owned:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    else:
        os.close(fd)


def test_the_published_schema_is_todays():
    """docs/events.schema.json is what consumers validate against."""
    path = Path(__file__).parents[2] / "docs" / "events.schema.json"
    assert json.loads(path.read_text()) == schema.json_schema()
    jsonschema.Draft202012Validator.check_schema(json.loads(path.read_text()))
