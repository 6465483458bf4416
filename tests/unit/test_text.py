"""Lines for a person: aligned, cut to the terminal, colour only there, names made harmless."""

import os
import re
import unicodedata

import pytest

from tcptrace.cli.sinks.base import LineWriter
from tcptrace.cli.sinks.stack_lines import Depth
from tcptrace.cli.sinks.text import TextSink, end_line, safe
from tcptrace.probes.engine import schema

COLOUR = re.compile(r"\x1b\[\d+m")


def event(kind="state", **more):
    made = {field.name: None for field in schema.EVENTS[kind]}
    made |= {"event": kind, "ts": "2025-11-21T14:05:09.000000001Z", "orphan": False}
    made |= {"pid": 2791, "comm": "nginx", "fd": 9, "saddr": "10.0.0.1", "sport": 80}
    made |= {"daddr": "10.0.0.2", "dport": 54321, "recv_q": 0, "send_q": 0}
    if kind == "state":
        made |= {"old_state": "ESTABLISHED", "new_state": "CLOSE_WAIT", "reason": "fin_received"}
        made |= {"duration_us": 1500}
    else:
        made |= {"new_state": "LISTEN", "holders": ["2791:9"]}
    return made | more


def lines(*events, terminal=False, depth=None):
    fd = os.memfd_create("text")
    try:
        TextSink(LineWriter(fd, owned=False), terminal=terminal, depth=depth).write(events)
        return os.pread(fd, 1 << 20, 0).decode().splitlines()
    finally:
        os.close(fd)


def line(**more):
    return lines(event(**more))[1]


def test_one_line_tells_it_all_below_one_header():
    header, first, second = lines(event(), event())
    assert header.split()[:3] == ["TIME", "(UTC)", "PID"]
    assert first.split()[:5] == ["14:05:09.000000", "2791", "nginx", "9", "ESTABLISHED"]
    assert "10.0.0.1:80" in first
    assert first.endswith("fin received")
    assert first == second


def test_columns_stand_below_their_headings():
    header, first = lines(event())
    for heading, value in (("COMM", "nginx"), ("STATE", "ESTABLISHED"), ("LOCAL", "10.0.0.1")):
        assert header.index(heading) == first.index(value)
    assert header.index("WHY") == first.index("fin received")


def test_off_a_terminal_nothing_is_cut_and_nothing_coloured(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = "\n".join(lines(event(reason="rst_received"), event(new_state="CLOSE")))
    assert not COLOUR.search(text)
    assert "rst received" in text


def cells(text):
    """How many columns a terminal gives it."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


@pytest.mark.parametrize("comm", ["nginx", "\x1b[31m\n", "日本語です"])
@pytest.mark.parametrize("width", [30, 80, 140])
def test_a_terminals_width_is_respected(width, comm, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    told = lines(
        event(comm=comm, owner_unknown="x" * 100), event("existing", comm=comm), terminal=True
    )
    for text in told:
        assert cells(COLOUR.sub("", text)) <= width


def test_a_terminal_gets_colours_that_are_switched_off_again(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    first = lines(event(reason="rst_received"), terminal=True)[1]
    assert first.startswith("\x1b[31m")
    assert first.endswith("\x1b[0m")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("nginx", "nginx"),
        ("café", "café"),
        ("a\nb", "a\\x0ab"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("\x7f", "\\x7f"),
        ("gpj\u202egod", "gpj\\x202egod"),  # right-to-left override
    ],
)
def test_hostile_names_are_shown_and_not_obeyed(name, shown):
    assert safe(name) == shown
    assert shown in line(comm=name)


def test_a_hostile_name_adds_no_line():
    assert len(lines(event(comm="a\nb\rc\u2028d"))) == 2


def test_ipv6_is_in_brackets_and_no_port_is_a_star():
    text = line(saddr="2001:db8::1", daddr="::", dport=None)
    assert "[2001:db8::1]:80" in text
    assert "[::]:*" in text


@pytest.mark.parametrize(
    ("us", "shown"),
    [(None, "-"), (0, "0us"), (999, "999us"), (1000, "1.0ms"), (1_500_000, "1.5s")],
)
def test_durations(us, shown):
    assert shown in line(duration_us=us).split()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"became": "time_wait", "lives_on_s": 60}, "lives on in TIME_WAIT for 60 s"),
        ({"recv_q": 5}, "Recv-Q 5 Send-Q 0"),
        ({"orphan": True}, "orphan"),
        ({"pid": None, "comm": None, "listener_pid": 7}, "in the accept queue of pid 7"),
        ({"pid": None, "owner_unknown": "it was gone"}, "owner unknown: it was gone"),
    ],
)
def test_the_end_of_the_line_says_what_matters(more, says):
    assert says in line(**more)


def test_an_unaccepted_connection_shows_the_listeners_name_in_brackets():
    assert "(nginx)" in line(pid=None, comm=None, listener_pid=7, listener_comm="nginx")


def test_an_existing_socket_with_several_holders_names_them():
    text = lines(event("existing", holders=["5:3", "6:3"]))[1]
    assert "LISTEN (existing)" in text
    assert "held by 5:3 6:3" in text


END = {"why": "SIGINT", "states": 1, "existing": 2, "owner_unknown": 0, "lost": 0, "ran_s": 1.25}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({}, "SIGINT: 1 transition, 2 existing sockets, none lost"),
        ({"lost": 3}, "3 LOST"),
        ({"owner_unknown": 4}, "4 with unknown owner"),
    ],
)
def test_the_last_line_has_the_counts(more, says):
    assert says in end_line(END | more)


def test_a_loss_is_a_line_of_its_own():
    loss = {"event": "loss", "lost": 5, "where": "ring_full"}
    assert lines(loss) == ["LOST 5 events (ring_full)"]


def test_stacks_that_were_not_taken_are_no_lost_events():
    loss = {"event": "loss", "lost": 5, "where": "stacks_suppressed"}
    assert lines(loss) == ["5 stacks not taken: too many new ones came in one second"]


STACKS = {
    "birth_stack": ["accept (libc.so.6)", "take_client (srv) /src/srv.c:20", "main (srv)"],
    "last_read_stack": ["read (libc.so.6)", "leaky_handler (srv) /src/srv.c:41", "main (srv)"],
}


def test_stacks_stand_below_the_line_that_they_explain():
    told = lines(event(**STACKS), event())[1:]
    assert [line.strip() for line in told[1:3]] == [
        "made in take_client srv.c:20 < main (srv)",
        "last read in leaky_handler srv.c:41 < main (srv)",
    ]
    assert "ESTABLISHED" in told[0]
    assert "ESTABLISHED" in told[3]


def test_how_deep_is_the_users_choice():
    assert lines(event(**STACKS), depth=Depth(1))[2].endswith("take_client srv.c:20 < ... 1 more")
    full = lines(event(**STACKS), depth=Depth(None))
    assert [line.strip() for line in full[2:6]] == ["made in:", *STACKS["birth_stack"]]


def test_an_existing_socket_has_no_stacks():
    assert len(lines(event("existing"))) == 2


def test_hostile_names_of_functions_are_shown_and_not_obeyed():
    frames = ["\x1b[31mf\n (a\u202eb) /src/\x9b31m.c:7"]
    told = lines(event(last_read_stack=frames))
    assert len(told) == 3
    assert "\\x1b[31mf\\x0a" in told[2]
    assert "\\x9b31m.c:7" in told[2]


@pytest.mark.parametrize("width", [30, 80])
def test_stacks_respect_the_terminals_width(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    frames = [f"a_function_with_a_long_name_{number} (srv)" for number in range(9)]
    for text in lines(event(last_read_stack=frames), terminal=True, depth=Depth(9)):
        assert cells(COLOUR.sub("", text)) <= width
