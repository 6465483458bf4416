"""The laboratory's oracle: rows of ss, counters, processes."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from tcptrace.lab import sockets
from tcptrace.lab.facts import Alive, Counted, Counts, Ended, Row, Sockets, Unlisted
from tcptrace.lab.sockets import row

LISTEN = "LISTEN 2 1 10.7.0.1:12345 0.0.0.0:* ino:77 sk:5 cgroup:/ <->"
OLD = "CLOSE-WAIT 4 0 10.7.0.1:12345 10.7.0.2:40001 ino:0 sk:6 --> "
WAITS = "FIN-WAIT-2 0 0 10.7.0.2:40001 10.7.0.1:8000 timer:(timewait,1.9sec,0) ino:0 sk:1001"
RETRIES = "FIN-WAIT-1 0 1 [fd07::2]:40001 [fd07::1]:8000 timer:(on,980ms,2) ino:0 sk:7"
PLAIN = "ESTAB 0 0 [fd07::1]:6379 [fd07::2]:40006 timer:(keepalive,4min59sec,0) ino:91 sk:8"


class FakeHost:
    name = "nowhere"

    def __init__(self, text=""):
        self.text = text

    def run(self, *_command):
        return self.text


@dataclass
class FakeActor:
    pid: int = 0
    host: object = None
    how: str | None = None

    def ended(self):
        return self.how


@dataclass
class FakeCast:
    hosts: dict = field(default_factory=lambda: {"server": FakeHost()})
    actors: dict = field(default_factory=dict)


@pytest.fixture
def listed(monkeypatch):
    def put(*lines):
        monkeypatch.setattr(sockets, "on", lambda host: [row(line) for line in lines])

    return put


def test_listener_row():
    seen = row(LISTEN)
    assert (seen.state, seen.recv_q, seen.send_q) == ("LISTEN", 2, 1)
    assert (seen.port, seen.peer_port, seen.inode) == (12345, None, 77)
    assert (seen.timer, seen.tries) == (None, 0)


def test_states_have_the_kernels_names_and_timers_their_counts():
    assert row(OLD).state == "CLOSE_WAIT"
    assert (row(WAITS).state, row(WAITS).timer, row(WAITS).tries) == ("FIN_WAIT2", "timewait", 0)
    seen = row(RETRIES)
    assert (seen.state, seen.timer, seen.tries) == ("FIN_WAIT1", "on", 2)
    assert (seen.port, seen.peer_port) == (40001, 8000)
    assert (row(PLAIN).state, row(PLAIN).timer) == ("ESTABLISHED", "keepalive")


def test_a_row_in_words():
    assert str(row(RETRIES)) == "FIN_WAIT1 Recv-Q 0 Send-Q 1 timer on (2 times)"
    assert str(row(OLD)) == "CLOSE_WAIT Recv-Q 4 Send-Q 0"


def test_sockets_are_exactly_these(listed):
    listed(LISTEN, OLD, PLAIN)
    wanted = (Row("LISTEN", 2, 1), Row("CLOSE_WAIT", 4, 0))
    assert Sockets("", "server", 12345, wanted).look(FakeCast()).holds
    assert Sockets("", "server", 12345, wanted[::-1]).look(FakeCast()).holds
    assert Sockets("", "server", 12345, wanted[1:], peer=40001).look(FakeCast()).holds


@pytest.mark.parametrize(
    "rows",
    [
        (),
        (Row("LISTEN", 2, 1),),
        (Row("LISTEN", 1, 1), Row("CLOSE_WAIT", 4, 0)),
        (Row("LISTEN", 2, 1), Row("CLOSE_WAIT", 4, 0), Row("CLOSE_WAIT", 4, 0)),
        (Row("LISTEN", 2, 1), Row("CLOSE_WAIT", 4, 0, timer="on")),
        (Row("LISTEN", 2, 1), Row("CLOSE_WAIT", 4, 0, tries=1)),
    ],
)
def test_any_other_rows_do_not_hold(listed, rows):
    listed(LISTEN, OLD)
    look = Sockets("", "server", 12345, rows).look(FakeCast())
    assert not look.holds
    assert look.seen == "LISTEN Recv-Q 2 Send-Q 1; CLOSE_WAIT Recv-Q 4 Send-Q 0"


def test_nothing_listed_is_what_gone_means(listed):
    listed(OLD)
    look = Sockets("", "server", 12345, (), peer=40002).look(FakeCast())
    assert (look.holds, look.seen) == (True, "no such socket")


def test_the_holder_is_asked(listed):
    with socket.socket() as mine:
        inode = os.fstat(mine.fileno()).st_ino
        listed(OLD.replace("ino:0", f"ino:{inode}"))
        cast = FakeCast(actors={"server": FakeActor(os.getpid(), FakeHost())})
        for fd, holds in ((mine.fileno(), True), (0, False), (99, False)):
            rows = (Row("CLOSE_WAIT", 4, 0, holder=("server", fd)),)
            assert Sockets("", "server", 12345, rows).look(cast).holds == holds


def test_counts_by_state(listed):
    listed(LISTEN.replace("12345", "8000"), WAITS, RETRIES)
    states = (("FIN_WAIT1", 1), ("FIN_WAIT2", 1))
    assert Counts("", "server", 8000, states).look(FakeCast()).holds
    assert not Counts("", "server", 8000, states, tries=1).look(FakeCast()).holds
    assert not Counts("", "server", 8000, states[:1]).look(FakeCast()).holds
    assert Counts("", "server", 1, ()).look(FakeCast()).holds


def test_a_descriptor_without_a_row(listed):
    with socket.socket() as mine:
        cast = FakeCast(actors={"one": FakeActor(os.getpid(), FakeHost())})
        listed(OLD)
        assert Unlisted("", "one", mine.fileno()).look(cast).holds
        assert not Unlisted("", "one", 99).look(cast).holds
        listed(OLD.replace("ino:0", f"ino:{os.fstat(mine.fileno()).st_ino}"))
        assert not Unlisted("", "one", mine.fileno()).look(cast).holds


def test_how_a_program_ended():
    cast = FakeCast(actors={"one": FakeActor(5, how="SIGPIPE")})
    assert Ended("", "one", "SIGPIPE").look(cast).holds
    assert not Ended("", "one", "exit 0").look(cast).holds
    cast.actors["one"].how = None
    look = Ended("", "one", "SIGPIPE").look(cast)
    assert (look.holds, look.seen) == (False, "pid 5: running")


def sleeper(disposition):
    code = f"import signal\nsignal.signal(signal.SIGPIPE, {disposition})\nprint(1, flush=True)"
    code += "\ninput()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child.stdout.readline()
    return child


@pytest.mark.parametrize(
    ("disposition", "word"),
    [("signal.SIG_DFL", "default"), ("signal.SIG_IGN", "ignored"), ("print", "handled")],
)
def test_what_a_process_does_with_sigpipe(disposition, word):
    with sleeper(disposition) as child:
        cast = FakeCast(actors={"one": FakeActor(child.pid)})
        words = {
            one
            for one in ("default", "ignored", "handled")
            if Alive("", "one", "SR", sigpipe=one).look(cast).holds
        }
        assert words == {word}
        child.send_signal(signal.SIGKILL)


def test_a_process_that_has_ended_is_not_alive():
    child = subprocess.Popen(["true"])
    child.wait()
    cast = FakeCast(actors={"one": FakeActor(child.pid, how="exit 0")})
    assert not Alive("", "one", "SRT").look(cast).holds


def test_cpu_time_counts():
    cast = FakeCast(actors={"one": FakeActor(os.getpid())})
    assert Alive("", "one", "RS", cpu_s=0.001).look(cast).holds
    assert not Alive("", "one", "RS", cpu_s=1e6).look(cast).holds
    assert not Alive("", "one", "T").look(cast).holds


def test_counters_of_a_host():
    text = "TcpExt: TCPChallengeACK ListenOverflows\nTcpExt: 1 0\nTcp: OutRsts\nTcp: 3\n"
    cast = FakeCast({"server": FakeHost(text)})
    assert Counted("", "server", "TCPChallengeACK", 1, 1).look(cast).holds
    assert Counted("", "server", "OutRsts", 1).look(cast).holds
    assert not Counted("", "server", "OutRsts", 1, 2).look(cast).holds
    assert not Counted("", "server", "ListenOverflows", 1).look(cast).holds
    assert Counted("", "server", "ListenOverflows", 0, 0).look(cast).holds
    assert not Counted("", "server", "Nosuch", 0).look(cast).holds
