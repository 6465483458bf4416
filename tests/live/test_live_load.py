"""Exact counts under load, and honest ones when the buffer is too small."""

from __future__ import annotations

import signal
import subprocess
from collections import Counter

import pytest
from harness import PATIENCE_S, broken_chains, check_stream, states

CONNECTIONS = 5000
SERVER_SIDE = [
    "LISTEN SYN_RECV",
    "SYN_RECV ESTABLISHED",
    "ESTABLISHED CLOSE_WAIT",
    "CLOSE_WAIT LAST_ACK",
    "LAST_ACK CLOSE",
]
CLIENT_SIDE = [
    "CLOSE SYN_SENT",
    "SYN_SENT ESTABLISHED",
    "ESTABLISHED FIN_WAIT1",
    "FIN_WAIT1 FIN_WAIT2",
    "FIN_WAIT2 CLOSE",
]
ALL = CONNECTIONS * (len(CLIENT_SIDE) + len(SERVER_SIDE)) + 1
"""With the listener's end."""


class Load:
    """A server and a client (programs/load.c) that wait for the word."""

    def __init__(self, programs, ns, family, *greet, connections=CONNECTIONS):
        self._pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._enter = lambda *words: ns.enter(programs / "load", *words)
        self.server = subprocess.Popen(self._enter("server", family.loop, *greet), **self._pipes)
        self.port = int(self.server.stdout.readline())
        self.listener = ns.socket(self.port)["cookie"]
        self.connections = connections
        words = ("client", family.loop, self.port, connections, *greet)
        self.client = subprocess.Popen(self._enter(*words), **self._pipes)
        self.client.stdout.readline()

    def run(self):
        """All connections, from the first SYN to the server's last close()."""
        for one in (self.server, self.client):
            one.stdin.write("\n")
            one.stdin.flush()
        assert int(self.client.stdout.readline()) == self.connections
        assert int(self.server.communicate(timeout=PATIENCE_S)[0]) == self.connections

    def end(self):
        for one in (self.client, self.server):
            one.kill()
            one.wait()
            for pipe in (one.stdin, one.stdout):
                pipe.close()


@pytest.fixture
def load(programs, ns, family):
    one = Load(programs, ns, family, "greet")
    yield one
    one.end()


@pytest.fixture
def hasty_load(programs, ns, family):
    """The client closes at once, often before the server has accepted."""
    one = Load(programs, ns, family)
    yield one
    one.end()


def sides(events, port):
    """The server's and the client's transitions, without the listener's."""
    children = [one for one in states(events) if one["dport"] is not None]
    server = [one for one in children if one["sport"] == port]
    return server, [one for one in children if one["dport"] == port]


@pytest.mark.parametrize("filtered", [False, True], ids=["unfiltered", "pids"])
def test_exact_under_load(load, ns, trace, filtered):
    pids = f"{load.server.pid},{load.client.pid}"
    running = trace("--ring-mib", 64, *(["-p", pids] if filtered else ["--netns", ns.name]))
    load.run()
    running.wait_transitions(ALL)
    events = running.stop()
    check_stream(events)
    server, client = sides(events, load.port)
    assert moves(client) == dict.fromkeys(CLIENT_SIDE, CONNECTIONS)
    assert moves(server) == dict.fromkeys(SERVER_SIDE, CONNECTIONS)
    assert Counter(one["pid"] for one in server) == {load.server.pid: len(server)}
    assert Counter(one["pid"] for one in client) == {load.client.pid: len(client)}
    assert {one["how"] for one in server} == {"accept"}
    assert events[-1]["owner_unknown"] == 0
    assert not broken_chains(events)


@pytest.mark.parametrize("filtered", [False, True], ids=["unfiltered", "pids"])
def test_exact_when_the_client_is_faster(hasty_load, ns, trace, filtered):
    """Children that get their FIN in the accept queue, or while accept() returns."""
    load = hasty_load
    pids = f"{load.server.pid},{load.client.pid}"
    running = trace("--ring-mib", 64, *(["-p", pids] if filtered else ["--netns", ns.name]))
    load.run()
    running.wait_transitions(ALL)
    events = running.stop()
    check_stream(events)
    server, client = sides(events, load.port)
    assert moves(client) == dict.fromkeys(CLIENT_SIDE, CONNECTIONS)
    assert moves(server) == dict.fromkeys(SERVER_SIDE, CONNECTIONS)
    assert {one["pid"] for one in client} == {load.client.pid}
    for one in server:
        assert load.server.pid in (one["pid"], one["listener_pid"]), one
    assert not broken_chains(events)


def moves(events):
    return Counter(f"{one['old_state']} {one['new_state']}" for one in events)


def test_loss_is_told_exactly(load, ns, trace):
    """The reader stands still and the buffer is tiny: told + lost is what happened."""
    options = ["--netns", ns.name, "--no-existing", "--ring-mib", 1, "--fail-on-loss"]
    running = trace(*options)
    running.send(signal.SIGSTOP)
    load.run()
    running.send(signal.SIGCONT)
    running.wait_for(lambda events: any(one["event"] == "loss" for one in events))
    events = running.stop()
    assert running.process.returncode == 6
    assert running.stderr.startswith("tcptrace: ")
    lost = events[-1]["lost"]
    check_stream(events, lost=lost)
    assert lost > CONNECTIONS
    assert str(lost) in running.stderr
    told = len(states(events))
    assert told + lost == ALL


def test_loss_without_the_option_is_only_told(load, ns, trace):
    running = trace("--netns", ns.name, "--no-existing", "--ring-mib", 1)
    running.send(signal.SIGSTOP)
    load.run()
    running.send(signal.SIGCONT)
    running.wait_for(lambda events: any(one["event"] == "loss" for one in events))
    events = running.stop()
    assert running.process.returncode == 0
    assert f"{events[-1]['lost']} events were lost" in running.stderr


def test_idle_filter_sees_nothing_of_the_load(load, puppet, family, trace):
    """-p of another process while thousands of connections run: not one event."""
    idle = puppet()
    idle("listen", family.any, 0, 4)
    running = trace("-p", idle.pid, "--no-existing")
    load.run()
    assert [one["event"] for one in running.stop()] == ["start", "end"]
