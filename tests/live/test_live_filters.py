"""Each filter lets exactly its own connections through: the oracle knows how many there were."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness import Namespace, check_stream, run, states, steps

ENTIRE = 5
"""Transitions of each side of a connection that the client closes first."""


class Server:
    """A listener of one puppet, and connections to it that run from birth to end."""

    def __init__(self, puppet, family, address=None):
        self.process, self._loop = puppet(), address or family.loop
        self.fd, self.port = self.process("listen", family.any, 0, 32)
        self.pid = self.process.pid

    def serve(self, client, times=1):
        """Whole connections; returns the cookies of the server's and the client's sockets."""
        mine, theirs = [], []
        for _ in range(times):
            near, _ = client("connect", self._loop, self.port)
            far, _ = self.process("accept", self.fd)
            mine.append(self.process.cookie(far))
            theirs.append(client.cookie(near))
            client("close", near)
            self.process("waitin", far)
            self.process("close", far)
        return mine, theirs


@pytest.fixture
def servers(puppet, family):
    return Server(puppet, family), Server(puppet, family)


@pytest.fixture
def client(puppet):
    return puppet()


def finish(running, *cookies):
    """Stop once these sockets have ended; the transitions, grouped by cookie."""
    for cookie in cookies:
        running.story(cookie)
    stream = running.stop()
    assert running.process.returncode == 0
    check_stream(stream)
    return states(stream)


def counted(events, *cookies):
    """Exactly these sockets, each from birth to end."""
    assert {one["cookie"] for one in events} == set(cookies)
    assert len(events) == ENTIRE * len(cookies)


def test_pid(servers, client, trace):
    """Two servers: only one is seen, and not a single event of the other or of the client."""
    first, second = servers
    running = trace("-p", first.pid)
    mine, _ = first.serve(client, 3)
    second.serve(client, 3)
    more, _ = first.serve(client, 1)
    events = finish(running, *mine, *more)
    counted(events, *mine, *more)
    assert {one["pid"] for one in events} == {first.pid}


@pytest.mark.parametrize("repeat", [False, True], ids=["comma", "repeated"])
def test_pid_list(servers, client, puppet, family, trace, repeat):
    first, second = servers
    third = Server(puppet, family)
    options = ["-p", first.pid, "-p", second.pid] if repeat else ["-p", f"{first.pid},{second.pid}"]
    running = trace(*options)
    cookies = first.serve(client)[0] + second.serve(client)[0]
    third.serve(client)
    cookies += first.serve(client)[0]
    counted(finish(running, *cookies), *cookies)


def test_client_pid(servers, client, trace):
    running = trace("-p", client.pid)
    _, theirs = servers[0].serve(client, 2)
    events = finish(running, *theirs)
    counted(events, *theirs)
    assert {one["pid"] for one in events} == {client.pid}


def test_follow(servers, client, trace):
    """Children present and future, and theirs; without -f none of them."""
    first, second = servers
    older = first.process.fork()
    running = trace("-p", first.pid, "-f")
    younger = older.fork()
    cookies = []
    for process in (older, younger):
        near, _ = client("connect", second._loop, first.port)
        far, _ = process("accept", first.fd)
        cookies.append((process, process.cookie(far)))
        client("close", near)
        process("waitin", far)
        process("close", far)
    second.serve(client)
    for process, cookie in cookies:
        assert {one["pid"] for one in running.story(cookie)} == {process.pid}
    counted(finish(running), *[cookie for _, cookie in cookies])


def test_children_without_follow(servers, client, trace):
    """A child that is not traced accepts from the traced parent's listener, unseen."""
    first, _ = servers
    child = first.process.fork()
    running = trace("-p", first.pid)
    near, _ = client("connect", first._loop, first.port)
    far, _ = child("accept", first.fd)
    theirs = child.cookie(far)
    client("close", near)
    child("waitin", far)
    child("close", far)
    mine, _ = first.serve(client)
    events = finish(running, *mine)
    assert {one["cookie"] for one in events if one["pid"]} == set(mine)
    assert not [one for one in events if one["cookie"] == theirs], running.of(theirs)


def test_traced_process_ends(servers, client, trace):
    first, _ = servers
    running = trace("-p", first.pid)
    mine, _ = first.serve(client)
    first.process.exit()
    stream = running.finish()
    assert running.process.returncode == 0
    check_stream(stream)
    assert stream[-1]["why"] == "the traced processes ended"
    assert len([one for one in states(stream) if one["cookie"] in mine]) == ENTIRE


def test_comm(servers, client, trace):
    first, second = servers
    first.process("name", b"leaky srv".hex())
    running = trace("--comm", "leaky srv", "--no-existing")
    mine, _ = first.serve(client, 2)
    second.serve(client)
    more, _ = first.serve(client)
    events = finish(running, *mine, *more)
    counted(events, *mine, *more)
    assert {one["comm"] for one in events} == {"leaky srv"}


def test_port_options(servers, client, trace):
    first, second = servers
    running = {
        "--port": trace("--port", first.port),
        "--lport": trace("--lport", first.port),
        "--rport": trace("--rport", f"{first.port},1"),
    }
    mine, theirs = first.serve(client)
    second.serve(client)
    more, also = first.serve(client)
    server_side, client_side = {*mine, *more}, {*theirs, *also}
    expected = {
        "--port": server_side | client_side,
        "--lport": server_side,
        "--rport": client_side,
    }
    for name, one in running.items():
        events = finish(one, *expected[name])
        counted(events, *expected[name])


def test_port_range(servers, client, trace):
    first, second = servers
    low, high = first.port - 5, first.port + 5
    running = trace("--lport", f"{low}-{high}", "--no-existing")
    mine, _ = first.serve(client)
    other, _ = second.serve(client)
    inside = [*mine, *(other if low <= second.port <= high else [])]
    counted(finish(running, *inside), *inside)


def test_address(puppet, ns, family, client, trace):
    """Two addresses on lo, one of them within the network that is asked for."""
    near, far, network = (
        ("127.1.2.3", "127.9.9.9", "127.1.0.0/16")
        if family.number == 4
        else ("fd01::3", "fd09::9", "fd01::/32")
    )
    if family.number == 6:
        for address in (near, far):
            run("ip", "-n", ns.name, "address", "add", f"{address}/128", "dev", "lo")
    wanted, other = (Server(puppet, family, address) for address in (near, far))
    running = trace("--addr", network, "--netns", ns.name)
    mine, theirs = wanted.serve(client, 2)
    other.serve(client, 2)
    more, also = wanted.serve(client)
    cookies = [*mine, *theirs, *more, *also]
    for cookie in cookies:
        running.story(cookie)
    events = states(running.stop())
    assert {one["cookie"] for one in events} == set(cookies)
    assert {near} <= {one["saddr"] for one in events} | {one["daddr"] for one in events}
    counted(events, *cookies)


@pytest.mark.parametrize("flag", ["-4", "-6"])
def test_family(puppet, ns, family, client, trace, flag):
    """The packets' family decides: v4-mapped on a dual-stack listener counts as IPv4."""
    server = puppet()
    fd, port = server("listen", "::", 0, 8)
    running = trace(flag, "-p", server.pid)
    cookies = {}
    for address in ("127.0.0.1", "::1", family.loop):
        near, _ = client("connect", address, port)
        far, _ = server("accept", fd)
        cookies[server.cookie(far)] = 6 if ":" in address else 4
        client("close", near)
        server("waitin", far)
        server("close", far)
    wanted = [cookie for cookie, number in cookies.items() if number == int(flag[1])]
    events = finish(running, *wanted)
    counted(events, *wanted)
    assert {one["socket_family"] for one in events} == {"inet6"}
    assert {one["family"] for one in events} == {"ipv4" if flag == "-4" else "ipv6"}


def test_state(servers, client, trace):
    first, _ = servers
    running = trace("-p", first.pid, "--state", "CLOSE_WAIT", "--no-existing")
    mine, _ = first.serve(client, 3)
    running.wait_for(lambda events: len(states(events)) >= 6)
    events = states(running.stop())
    for cookie in mine:
        assert steps(one for one in events if one["cookie"] == cookie) == [
            "ESTABLISHED CLOSE_WAIT fin_received",
            "CLOSE_WAIT LAST_ACK local_close",
        ]
    assert len(events) == 6


def test_state_of_existing(servers, client, trace):
    """--state chooses among what is there, too."""
    first, _ = servers
    stream = trace("-p", first.pid, "--state", "close-wait").stop()
    assert [one["event"] for one in stream] == ["start", "end"]
    near, _ = client("connect", first._loop, first.port)
    far, _ = first.process("accept", first.fd)
    client("close", near)
    first.process("waitin", far)
    stream = trace("-p", first.pid, "--state", "tcp_close_wait").stop()
    assert [one.get("new_state") for one in stream] == [None, "CLOSE_WAIT", None]


@pytest.mark.parametrize("by", ["name", "path", "inode"])
def test_netns(programs, ns, puppet, family, trace, by):
    other = Namespace()
    try:
        here, there = Server(puppet, family), Server(lambda: puppet(other), family)
        word = {"name": ns.name, "path": ns.path, "inode": ns.inum}[by]
        running = trace("--netns", word)
        there.serve(puppet(other))
        mine, theirs = here.serve(puppet())
        events = finish(running, *mine, *theirs)
        counted(events, *mine, *theirs)
        assert {one["netns"] for one in events} == {ns.inum}
    finally:
        other.remove()


@pytest.fixture
def cgroup():
    """A cgroup of the test's own in the cgroup2 mount."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    roots = [words[1] for words in mounts if words[2] == "cgroup2"]
    if not roots:
        pytest.skip("no cgroup2 mount")
    folder = Path(roots[0]) / f"tcptrace-live-{os.getpid()}"
    folder.mkdir()
    yield folder
    for pid in (folder / "cgroup.procs").read_text().split():
        Path(roots[0], "cgroup.procs").write_text(pid)
    folder.rmdir()


@pytest.mark.parametrize("by", ["path", "name"])
def test_cgroup(cgroup, puppet, family, client, trace, by):
    """A socket belongs to the cgroup in which it was made."""
    inside = puppet()
    (cgroup / "cgroup.procs").write_text(str(inside.pid))
    outer, inner = Server(puppet, family), Server(lambda: inside, family)
    running = trace("--cgroup", cgroup if by == "path" else cgroup.name, "--no-existing")
    outer.serve(client)
    mine, _ = inner.serve(client, 2)
    _, theirs = outer.serve(inside)
    events = finish(running, *mine, *theirs)
    counted(events, *mine, *theirs)


def test_command(programs, ns, family, trace, puppet):
    """-- CMD: traced from its first socket on; the run ends with it and tells its exit code."""
    server = Server(puppet, family)
    client = f"{programs / 'load'} client {family.loop} {server.port} 3 >&2; exit 7"
    running = trace(command=ns.enter("sh", "-c", client))
    stream = running.finish()
    assert running.process.returncode == 0
    check_stream(stream)
    assert running.stderr.split() == ["client", "3"]
    assert stream[-1]["why"] == "the command exited with 7"
    events = states(stream)
    assert {(one["pid"] is not None, one["how"]) for one in events} == {(True, "connect")}
    assert len({one["pid"] for one in events}) == 1
    assert len({one["cookie"] for one in events}) == 3
    assert steps(events)[:3] == [
        "CLOSE SYN_SENT connect",
        "SYN_SENT ESTABLISHED syn_ack_received",
        "ESTABLISHED FIN_WAIT1 local_close",
    ]


def test_duration(trace, servers):
    running = trace("-p", servers[0].pid, "--duration", 0.3)
    stream = running.finish()
    assert running.process.returncode == 0
    check_stream(stream)
    assert stream[-1]["why"] == "0.3 s are over"
    assert 0.29 < stream[-1]["ran_s"] < 5


@pytest.mark.parametrize("count", [1, 4, 7])
def test_count(servers, client, trace, count):
    first, _ = servers
    running = trace("-p", first.pid, "--count", count)
    first.serve(client, 2)
    stream = running.finish()
    assert running.process.returncode == 0
    check_stream(stream)
    assert len(states(stream)) == count


def test_all_filters_must_hold(servers, client, trace):
    first, second = servers
    running = trace("-p", first.pid, "--lport", second.port)
    both = trace("-p", first.pid, "--lport", first.port)
    second.serve(client)
    mine, _ = first.serve(client)
    counted(finish(both, *mine), *mine)
    assert not states(running.stop())


def test_reused_pid_is_not_followed(servers, client, puppet, family, trace):
    """-p named a process, not a number: who gets the number later is not traced."""
    first, _ = servers
    named = puppet().fork()
    running = trace("-p", f"{named.pid},{first.pid}")
    named.exit()
    stranger = puppet().fork(pid=named.pid)
    assert stranger.pid == named.pid
    stranger_server = Server(lambda: stranger, family)
    stranger_server.serve(client)
    mine, _ = first.serve(client)
    counted(finish(running, *mine), *mine)
