"""Sockets that are older than the tracer, and the hand-over to the live stream."""

from __future__ import annotations

import subprocess
import time

import pytest
from harness import (
    PATIENCE_S,
    Namespace,
    PuppetError,
    Tcptrace,
    broken_chains,
    chains,
    check_stream,
    states,
    steps,
)

WAITS = "not accepted yet: it waits in the accept queue"
CLOSED = ["CLOSE_WAIT LAST_ACK local_close", "LAST_ACK CLOSE ack_received"]


class Older:
    """A server with one accepted connection, before any tracer."""

    def __init__(self, puppet, family):
        self.family, self.server, self.client = family, puppet(), puppet()
        self.listener, self.port = self.server("listen", family.any, 0, 16)
        self.near, self.near_port = self.connect()
        self.far, _ = self.server("accept", self.listener)

    def connect(self):
        return self.client("connect", self.family.loop, self.port)


@pytest.fixture
def older(puppet, family):
    return Older(puppet, family)


def existing(events):
    return {one["cookie"]: one for one in events if one["event"] == "existing"}


def holder(event):
    return event["pid"], event["fd"], event["how"]


def test_server_older_than_the_tracer(older, ns, trace):
    """The main job: a running server, then -p; new connections carry its pid on every line."""
    server, client = older.server, older.client
    running = trace("-p", server.pid)
    near, near_port = older.connect()
    far, _ = server("accept", older.listener)
    client("write", near, 58)
    client("close", near)
    cookie = ns.socket(older.port, near_port)["cookie"]
    events = running.story(cookie, until="CLOSE_WAIT")
    assert steps(events) == [
        "LISTEN SYN_RECV syn_received",
        "SYN_RECV ESTABLISHED accept",
        "ESTABLISHED CLOSE_WAIT fin_received",
    ]
    assert {holder(one) for one in events} == {(server.pid, far, "accept")}
    assert events[-1]["recv_q"] == 59
    stream = running.stop()
    check_stream(stream)
    assert len(states(stream)) == 3


def test_listener_and_connections_are_shown(older, ns, trace):
    """LISTEN with its queue, ESTABLISHED, CLOSE_WAIT with Recv-Q; the oracle is ss."""
    server, client = older.server, older.client
    client("write", older.near, 58)
    client("close", older.near)
    _, second_port = older.connect()
    kept, _ = server("accept", older.listener)
    _, waiting_port = older.connect()
    rows = {row["cookie"]: row for row in ns.sockets() if row["sport"] == older.port}
    assert sorted(row["state"] for row in rows.values()) == [
        "CLOSE_WAIT", "ESTABLISHED", "ESTABLISHED", "LISTEN",
    ]  # fmt: skip
    stream = trace("-p", server.pid).stop()
    check_stream(stream)
    shown = existing(stream)
    assert set(shown) == set(rows)
    for cookie, row in rows.items():
        check_row(shown[cookie], row)
    by_peer = {one["dport"]: one for one in shown.values()}
    assert holder(by_peer[older.near_port]) == (server.pid, older.far, "fd_scan")
    assert by_peer[older.near_port]["recv_q"] == 59
    assert holder(by_peer[second_port]) == (server.pid, kept, "fd_scan")
    assert holder(by_peer[None]) == (server.pid, older.listener, "fd_scan")
    assert (by_peer[None]["recv_q"], by_peer[None]["send_q"]) == (1, 16)
    waiting = by_peer[waiting_port]
    assert (waiting["pid"], waiting["listener_pid"]) == (None, server.pid)
    assert (waiting["owner_unknown"], waiting["listener_comm"]) == (WAITS, "puppet")


def check_row(event, row):
    for name in ("sport", "recv_q", "send_q"):
        assert event[name] == row[name]
    assert event["new_state"] == row["state"]
    assert event["inode"] == (row["inode"] or None)


def test_older_socket_and_its_transitions(older, trace):
    server, client = older.server, older.client
    cookie, near = server.cookie(older.far), client.cookie(older.near)
    running = trace("-p", server.pid)
    client("close", older.near)
    running.story(cookie, until="CLOSE_WAIT")
    server("close", older.far)
    events = running.story(cookie)
    assert steps(events) == [
        "existing ESTABLISHED",
        "ESTABLISHED CLOSE_WAIT fin_received",
        *CLOSED,
    ]
    assert {holder(one) for one in events[:3]} == {(server.pid, older.far, "fd_scan")}
    assert {one["pid"] for one in events} == {server.pid}
    assert events[1]["duration_us"] is None
    assert events[2]["duration_us"] > 0
    assert not running.of(near)
    check_stream(running.stop())


def test_older_close_wait(older, trace):
    """Found in CLOSE_WAIT; then the process dies and takes it along."""
    server = older.server
    cookie = server.cookie(older.far)
    older.client("close", older.near)
    server("waitin", older.far)
    running = trace("-p", server.pid)
    server.kill()
    events = running.story(cookie)
    assert steps(events) == [
        "existing CLOSE_WAIT",
        "CLOSE_WAIT LAST_ACK process_exit",
        "LAST_ACK CLOSE ack_received",
    ]
    assert {one["pid"] for one in events} == {server.pid}
    assert existing(events)[cookie]["recv_q"] == 1


def test_older_listener_closes(older, ns, trace):
    listener = ns.socket(older.port)["cookie"]
    running = trace("-p", older.server.pid)
    older.server("close", older.listener)
    events = running.story(listener)
    assert steps(events) == ["existing LISTEN", "LISTEN CLOSE local_close"]
    assert {holder(one) for one in events} == {(older.server.pid, older.listener, "fd_scan")}


def test_all_holders_are_listed(older, trace):
    server = older.server
    child = server.fork()
    (copy,) = server("dup", older.far)
    cookie = server.cookie(older.far)
    stream = trace("-p", server.pid).stop()
    expected = {f"{server.pid}:{older.far}", f"{server.pid}:{copy}", f"{child.pid}:{older.far}"}
    assert set(existing(stream)[cookie]["holders"]) == expected


def test_older_socket_inherited_later(older, trace):
    server = older.server
    cookie = server.cookie(older.far)
    running = trace("-p", server.pid, "-f")
    child = server.fork()
    server("close", older.far)
    older.client("close", older.near)
    events = running.story(cookie, until="CLOSE_WAIT")
    assert holder(events[-1]) == (child.pid, older.far, "fork")


def test_older_unaccepted_child(older, ns, trace):
    """It waits at attach time, gets its FIN, and is accepted at last."""
    server, client = older.server, older.client
    near, near_port = older.connect()
    cookie = ns.socket(older.port, near_port)["cookie"]
    running = trace("-p", server.pid)
    client("close", near)
    events = running.story(cookie, until="CLOSE_WAIT")
    assert steps(events) == ["existing ESTABLISHED", "ESTABLISHED CLOSE_WAIT fin_received"]
    assert {(one["pid"], one["listener_pid"]) for one in events} == {(None, server.pid)}
    far, _ = server("accept", older.listener)
    server("close", far)
    events = running.story(cookie)
    assert steps(events)[-2:] == CLOSED
    assert [one["pid"] for one in events[-2:]] == [server.pid] * 2
    assert events[-2]["fd"] == far
    stream = running.stop()
    check_stream(stream)
    assert not broken_chains(stream)


def test_older_child_accepted_then_closed(older, ns, trace):
    server = older.server
    _, near_port = older.connect()
    cookie = ns.socket(older.port, near_port)["cookie"]
    running = trace("-p", server.pid)
    far, _ = server("accept", older.listener)
    server("close", far)
    events = running.story(cookie)
    transitions = states(events)
    assert steps(transitions) == [
        "ESTABLISHED FIN_WAIT1 local_close",
        "FIN_WAIT1 FIN_WAIT2 ack_received",
        "FIN_WAIT2 CLOSE orphan_fin_wait2",
    ]
    assert {one["pid"] for one in transitions} == {server.pid}
    assert (transitions[0]["fd"], transitions[0]["how"]) == (far, "accept")


def test_long_accept_queue(older, ns, trace):
    """More waiting children than one adoption step takes."""
    server, client = older.server, older.client
    listener, port = server("listen", older.family.loop, 0, 400)
    for _ in range(150):
        client("connect", older.family.loop, port)
    cookies = {row["cookie"] for row in ns.sockets("ESTABLISHED") if row["sport"] == port}
    running = trace("-p", server.pid)
    assert len(cookies) == 150
    running.wait_for(lambda events: cookies <= set(existing(events)))
    client.kill()
    for cookie in cookies:
        events = running.story(cookie, until="CLOSE_WAIT")
        assert [one["listener_pid"] for one in events] == [server.pid] * 2
    server("close", listener)
    for cookie in cookies:
        assert running.story(cookie)[-1]["reason"] == "listener_closed"


def test_reuseport_queues_at_attach_time(puppet, family, ns, trace):
    servers, client = [puppet(), puppet()], puppet()
    first, port = servers[0]("listen", family.loop, 0, 64, "reuseport")
    second, _ = servers[1]("listen", family.loop, port, 64, "reuseport")
    for _ in range(24):
        client("connect", family.loop, port)
    running = trace("--port", port)
    client.kill()
    rows = [row for row in ns.sockets() if row["sport"] == port and row["state"] != "LISTEN"]
    said = {row["cookie"]: running.story(row["cookie"], until="CLOSE_WAIT") for row in rows}
    assert len(said) == 24
    for server, listener in zip(servers, (first, second), strict=True):
        for cookie in taken(server, listener):
            blamed = {one["listener_pid"] for one in said.pop(cookie)}
            assert server.pid in blamed
            assert blamed <= {server.pid, None}  # the inventory alone cannot tell
    assert not said


def taken(server, listener):
    while True:
        try:
            yield server.cookie(server("tryaccept", listener)[0])
        except PuppetError:
            return


def test_remainders_are_shown(older, ns, trace):
    """TIME_WAIT and the orphan in FIN_WAIT2: nobody's any more, without -p."""
    older.client("close", older.near)
    other, other_port = older.connect()
    far, _ = older.server("accept", older.listener)
    older.client("shutdown", other)
    older.server("waitin", far)
    older.server("close", far)
    stream = trace("--netns", ns.name).stop()
    found = {one["sport"]: one for one in existing(stream).values() if one["dport"] == older.port}
    assert found[older.near_port]["new_state"] == "FIN_WAIT2"
    assert found[other_port]["new_state"] == "TIME_WAIT"
    for one in (found[older.near_port], found[other_port]):
        assert (one["pid"], one["orphan"]) == (None, True)
        assert one["owner_unknown"]


def test_no_existing(older, trace):
    cookie = older.server.cookie(older.far)
    running = trace("-p", older.server.pid, "--no-existing")
    older.client("close", older.near)
    events = running.story(cookie, until="CLOSE_WAIT")
    assert steps(events) == ["ESTABLISHED CLOSE_WAIT fin_received"]
    assert holder(events[0]) == (older.server.pid, older.far, "fd_scan")
    stream = running.stop()
    check_stream(stream)
    assert stream[-1]["existing"] == 0


def test_other_namespaces_of_the_process(puppet, ns, family, trace):
    """One process, sockets in the namespace in which it was started; the tracer is elsewhere."""
    other = Namespace()
    try:
        both = [puppet(ns), puppet(other)]
        ports = [one("listen", family.loop, 0, 4)[1] for one in both]
        stream = trace("-p", f"{both[0].pid},{both[1].pid}").stop()
        shown = {(one["netns"], one["sport"]) for one in existing(stream).values()}
        assert shown == set(zip((ns.inum, other.inum), ports, strict=True))
    finally:
        other.remove()


def test_passed_on_before_attach(older, trace):
    """The child alone holds it; -p of the parent does not show it, -p of the child does."""
    server = older.server
    child = server.fork()
    server("close", older.far)
    cookie = child.cookie(older.far)
    stream = trace("-p", child.pid).stop()
    assert holder(existing(stream)[cookie]) == (child.pid, older.far, "fd_scan")
    assert cookie not in existing(trace("-p", server.pid).stop())


class Churn:
    """Connections without a pause, from before the tracer until told to stop."""

    def __init__(self, programs, ns, family):
        load = programs / "load"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.server = subprocess.Popen(ns.enter(load, "server", family.loop), **pipes)
        self.port = int(self.server.stdout.readline())
        self.client = subprocess.Popen(ns.enter(load, "client", family.loop, self.port, 0), **pipes)
        self.client.stdout.readline()
        for one in (self.server, self.client):
            one.stdin.write("\n")
            one.stdin.flush()

    def finish(self):
        """(connections made, connections served)."""
        made = int(self.client.communicate("enough\n", timeout=PATIENCE_S)[0])
        return made, int(self.server.communicate(timeout=PATIENCE_S)[0])

    def kill(self):
        for one in (self.server, self.client):
            if one.poll() is None:
                one.kill()
                one.communicate()


@pytest.mark.parametrize("filtered", [False, True], ids=["unfiltered", "pids"])
def test_handover_under_churn(programs, ns, family, trace, filtered):
    """No gap and no duplicate: each socket's chain is unbroken from its first event to CLOSE."""
    churn = Churn(programs, ns, family)
    try:
        pids = ["-p", f"{churn.server.pid},{churn.client.pid}"]
        listener = ns.socket(churn.port)["cookie"]
        running = trace("--ring-mib", 64, *(pids if filtered else ["--netns", ns.name]))
        made, served = churn.finish()
    finally:
        churn.kill()
    assert made == served > 100
    running.story(listener)
    running.wait_ends()
    stream = running.stop()
    check_stream(stream)
    broken = broken_chains(stream)
    assert not broken, "\n".join(map(str, broken[:20]))
    check_ends(stream)
    check_owners(stream, churn)


def check_ends(stream):
    """Nothing stays open but what the inventory found already ended."""
    for cookie, chain in chains(stream).items():
        if any(one["event"] == "state" for one in chain):
            assert chain[-1]["new_state"] == "CLOSE", (cookie, steps(chain))


def check_owners(stream, churn):
    """Never a wrong owner, and none missing but where nobody could know it."""
    for chain in chains(stream).values():
        seen_born = chain[0]["event"] == "state" and chain[0]["old_state"] in ("CLOSE", "LISTEN")
        for one in states(chain):
            mine = churn.server if one["sport"] == churn.port else churn.client
            if one["pid"] is None:
                check_unknown(one, churn, seen_born)
            else:
                assert one["pid"] == mine.pid, one


def check_unknown(event, churn, seen_born):
    """Not accepted yet; or older than the tracer, and gone before it could look."""
    assert event["owner_unknown"], event
    if event["sport"] == churn.port and event["owner_unknown"] == WAITS:
        assert event["listener_pid"] in (churn.server.pid, None), event
    else:
        assert not seen_born, event


def test_ready_comes_after_the_inventory(older, trace):
    """What happens after ready is told live, even if it happens at once."""
    cookie = older.server.cookie(older.far)
    begun = time.monotonic()
    with Tcptrace("-p", older.server.pid) as running:
        older.server("close", older.far)
        assert [one["event"] for one in running.story(cookie)] == ["existing"] + ["state"] * 3
    assert time.monotonic() - begun < PATIENCE_S
