"""The stream as a consumer meets it: schema, escaping, endings, files and pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import unicodedata

import pytest
from harness import PATIENCE_S, TCPTRACE, check_stream, states

HOSTILE = {
    "newline": b"a\nb\r",
    "quote": b'"q\\"',
    "escape": b"\x1b[31mred\x1b[0m",
    "invalid-utf8": b"\xff\xfe\xc3x",
    "controls": b"\x01\x08\x7f\x9b31m",
    "json": b'","pid":1,"x":"',
    "spaces": b"two words ) (",
    "markup": "\u202egnp.exe".encode(),
}


SHOWN = {
    "invalid-utf8": r"\xff\xfe\xc3x",
    "controls": "\x01\x08" + r"\x7f\x9b31m",
}
"""Those that JSON text cannot or should not carry as they are; \\x01 JSON itself escapes."""


@pytest.fixture
def served(puppet, family):
    """A listening puppet; calling it makes a whole connection and returns its cookie."""
    server, client = puppet(), puppet()
    listener, port = server("listen", family.any, 0, 16)

    def serve():
        near, _ = client("connect", family.loop, port)
        far, _ = server("accept", listener)
        cookie = server.cookie(far)
        client("close", near)
        server("waitin", far)
        server("close", far)
        return cookie

    serve.server, serve.port = server, port
    return serve


def numbers_in(value):
    if isinstance(value, dict):
        for name, inner in value.items():
            if name != "monotonic_ns":
                yield from numbers_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers_in(inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def test_every_line(served, trace):
    """Flat objects with the same keys in the same order per kind; small numbers; no NUL."""
    running = trace()
    cookies = [served() for _ in range(3)]
    for cookie in cookies:
        running.story(cookie)
    events = running.stop()
    check_stream(events, lost=events[-1]["lost"])
    keys = {}
    for line, event in zip(running.lines, events, strict=True):
        assert line.endswith(b"}\n")
        assert b"\\u0000" not in line
        assert all(abs(number) < 2**53 for number in numbers_in(event)), event
        assert all(not isinstance(value, dict) for value in event.values())
        assert keys.setdefault(event["event"], list(event)) == list(event)
    assert list(events[0])[:3] == ["ts", "seq", "event"]


def test_time_stamps_agree_with_the_clock(served, trace):
    before = subprocess.run(
        ["date", "-u", "+%FT%T.%NZ"], capture_output=True, text=True, check=True
    )
    running = trace("-p", served.server.pid)
    events = running.story(served())
    after = subprocess.run(["date", "-u", "+%FT%T.%NZ"], capture_output=True, text=True, check=True)
    times = [one["ts"] for one in events]
    assert [before.stdout.strip(), *times, after.stdout.strip()] == sorted(
        [before.stdout.strip(), *times, after.stdout.strip()]
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ended_by_a_signal(served, trace, number):
    running = trace("-p", served.server.pid)
    cookie = served()
    running.story(cookie)
    events = running.stop(number)
    assert running.process.returncode == 0
    assert running.stderr == ""
    check_stream(events)
    assert events[-1]["why"] == number.name
    assert len(states(events)) == 5


def test_nothing_is_forgotten_at_the_end(served, trace):
    """Stopped at once after the last close(): what the kernel has told is still drained."""
    running = trace("-p", served.server.pid)
    cookies = {served() for _ in range(20)}
    events = running.stop()
    check_stream(events)
    assert len(states(events)) == 100
    assert {one["cookie"] for one in states(events)} == cookies


def test_children_waiting_at_the_end(puppet, family, ns, trace):
    """Connections that nobody accepted are told at the end, however short the run was."""
    server, client = puppet(), puppet()
    _, port = server("listen", family.any, 0, 16)
    running = trace("-p", server.pid)
    for _ in range(5):
        client("connect", family.loop, port)
    cookies = {row["cookie"] for row in ns.sockets("ESTABLISHED") if row["sport"] == port}
    events = running.stop()
    check_stream(events)
    assert {one["cookie"] for one in states(events)} == cookies
    assert len(states(events)) == 10


def head(*options, lines=1):
    """``tcptrace states ... | head -n 1`` with both exit codes and what went to stderr."""
    command = [*TCPTRACE, "states", *map(str, options)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    second = subprocess.Popen(
        ["head", "-n", str(lines)], stdin=first.stdout, stdout=subprocess.PIPE
    )
    first.stdout.close()
    return first, second


@pytest.mark.parametrize("format_", ["text", "ndjson"])
def test_head(served, format_):
    """The reader leaves; the next write ends the run, quietly."""
    first, second = head("--format", format_, "--lport", served.port)
    try:
        shown = second.communicate(timeout=PATIENCE_S)[0]
        while first.poll() is None:
            served()
        assert (first.wait(), first.stderr.read()) == (0, b"")
        assert len(shown.splitlines()) == 1
    finally:
        first.kill()
        first.communicate()


def test_output_file(served, trace, tmp_path):
    path = tmp_path / "events"
    running = trace("-p", served.server.pid, "-o", path)
    for _ in range(3):
        served()
    assert running.stop() == []
    assert running.process.returncode == 0
    events = [json.loads(line) for line in path.read_text().splitlines()]
    check_stream(events)
    assert len(states(events)) == 15
    assert path.stat().st_mode & 0o007 == 0


def test_ready_file(served, tmp_path, trace):
    path = tmp_path / "ready"
    running = trace("-p", served.server.pid, "--ready-file", path)
    running.story(served())  # by then the file has long been there
    assert path.read_text() == "ready\n"
    assert os.listdir(tmp_path) == ["ready"]


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_name_in_ndjson(served, trace, kind):
    name = HOSTILE[kind]
    served.server("name", name.hex())
    running = trace("-p", served.server.pid)
    events = running.story(served())
    expected = SHOWN.get(kind) or name.decode()
    assert {one["comm"] for one in events} == {expected}
    stream = running.stop()
    check_stream(stream)
    listener = next(one for one in stream if one["event"] == "existing")
    assert listener["comm"] == expected
    for line in running.lines:
        assert not any(byte < 0x20 for byte in line[:-1])
        line.decode("utf-8")


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_hostile_name_in_text(served, trace, name):
    """One line per event, and nothing that a terminal would obey."""
    served.server("name", name.hex())
    running = trace("-p", served.server.pid, format="text")
    served()
    running.wait_for(lambda _: sum(b"LAST_ACK" in line for line in running.lines) >= 2)
    running.stop()
    text = b"".join(running.lines).decode("utf-8")
    assert all(_harmless(letter) for letter in text), text
    count = len([line for line in text.splitlines() if f" {served.server.pid} " in line])
    assert count >= 6, text


def _harmless(letter):
    return letter == "\n" or unicodedata.category(letter) not in ("Cc", "Cf", "Zl", "Zp")


def test_text_names_every_transition(served, trace):
    running = trace("-p", served.server.pid, "--no-existing", format="text")
    served()
    running.wait_for(
        lambda _: any(b"LAST_ACK" in line and b"CLOSE" in line for line in running.lines)
    )
    running.stop()
    mine = [line for line in running.lines if str(served.server.pid).encode() in line]
    assert len(mine) == 5
    assert b"\x1b" not in b"".join(running.lines)
