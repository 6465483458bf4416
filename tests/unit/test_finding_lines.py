"""Findings and RSTs as lines for a person."""

import os

import pytest

from tcptrace.cli.sinks.base import LineWriter
from tcptrace.cli.sinks.finding_lines import finding_lines, reset_line
from tcptrace.cli.sinks.text import TextSink

FINDING = {
    "event": "finding",
    "ts": "2026-11-21T18:31:27.129000001Z",
    "code": "CW01",
    "rule": "close-wait-eof-never-closed",
    "severity": "warning",
    "says": "1 socket of srv (pid 7) in CLOSE_WAIT. read() returned 0. fd 4 from 10.0.0.2:9.",
    "advice": "Close it.",
    "unknown": [],
}
RESET = {
    "event": "reset",
    "ts": "2026-11-21T18:31:26.063503001Z",
    "pid": 7,
    "comm": "rude",
    "direction": "sent",
    "saddr": "10.0.0.1",
    "sport": 80,
    "daddr": "10.0.0.2",
    "dport": 9,
    "state": "CLOSE",
    "reason": "unread_data",
    "kernel_reason": None,
}


def test_who_and_how_many_stand_alone():
    lines = [text for text, _ in finding_lines(FINDING)]
    assert lines == [
        "18:31:27.129  WARNING CW01 close-wait-eof-never-closed",
        "    1 socket of srv (pid 7) in CLOSE_WAIT.",
        "    read() returned 0. fd 4 from 10.0.0.2:9.",
        "    Close it.  (tcptrace explain CW01)",
    ]


def test_one_sentence_is_one_line():
    lines = finding_lines(FINDING | {"says": "That is all."})
    assert [text.strip() for text, _ in lines[1:-1]] == ["That is all."]


def test_what_is_not_known_is_said():
    lines = finding_lines(FINDING | {"unknown": ["when", "how"]})
    assert [text for text, _ in lines[3:5]] == ["    Not known: when.", "    Not known: how."]


@pytest.mark.parametrize("severity", ["info", "warning", "error"])
def test_every_severity_has_a_colour(severity):
    assert finding_lines(FINDING | {"severity": severity})[0][0].split()[1] == severity.upper()


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ({}, ["RST sent", "7 rude", "10.0.0.1:80 -> 10.0.0.2:9", "CLOSE  unread data"]),
        ({"direction": "received"}, ["RST received", "10.0.0.1:80 <- 10.0.0.2:9"]),
        ({"pid": None, "comm": None}, ["RST sent     -  "]),
        ({"saddr": "::1", "daddr": "::2"}, ["[::1]:80 -> [::2]:9"]),
        ({"state": None}, ["no socket"]),
        ({"kernel_reason": "TCP_TIMEOUT"}, ["unread data (TCP_TIMEOUT)"]),
        ({"dport": None}, ["10.0.0.2:*"]),
    ],
)
def test_a_rst_is_one_line(more, parts):
    line = reset_line(RESET | more)
    assert line.startswith("18:31:26.063503  RST ")
    for part in parts:
        assert part in line


def written(*events, shows=None, terminal=False):
    fd = os.memfd_create("text")
    try:
        writer = LineWriter(fd, owned=False)
        TextSink(writer, terminal=terminal, shows=shows).write(events)
        return os.pread(fd, 1 << 16, 0).decode()
    finally:
        os.close(fd)


def test_only_what_the_command_shows():
    shows = frozenset({"finding"})
    assert written(RESET, shows=shows) == ""
    assert written(RESET, shows=shows | {"reset"}).count("\n") == 1
    assert written(FINDING, shows=shows).count("\n") == 4


def test_names_of_functions_cannot_command_the_terminal():
    text = written(FINDING | {"says": "In `\x1b[31mevil\n srv.c:7`."})
    assert "\x1b" not in text
    assert text.count("\n") == 3
    assert r"\x1b[31mevil\x0a srv.c:7" in text


def test_on_a_terminal_an_error_is_red():
    assert written(FINDING | {"severity": "error"}, terminal=True).startswith("\x1b[31m")
