"""Nothing of the tracer stays behind, however it ends."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from harness import run


def bpf_descriptors():
    """Which processes hold BPF objects: pid -> how many of which kind."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*/fd"):
        kinds = Counter(filter(None, map(_bpf_kind, _listed(folder))))
        if kinds:
            found[int(folder.parent.name)] = kinds
    return found


def _listed(folder):
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _bpf_kind(path):
    try:
        target = os.readlink(path)
    except OSError:
        return None
    return target if "bpf" in target or target == "anon_inode:[perf_event]" else None


def family_of(pid):
    """The tracer and its helper processes."""
    children = run("ps", "-o", "pid=", "--ppid", pid, check=False).split()
    return {pid, *map(int, children)}


def tracepoint_switches():
    """Every event that is switched on in tracefs."""
    switches = Path("/sys/kernel/tracing/events").glob("*/*/enable")
    return {str(path) for path in switches if path.read_text().strip() != "0"}


def test_attached_while_it_runs(trace):
    """So that the next test's silence means something."""
    running = trace()
    kinds = sum(
        (bpf_descriptors().get(pid, Counter()) for pid in family_of(running.pid)), Counter()
    )
    assert kinds["anon_inode:bpf-prog"] > 3
    assert kinds["anon_inode:bpf-map"] > 3
    running.stop()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left(trace, puppet, number):
    before = tracepoint_switches()
    server = puppet()
    running = trace("-p", server.pid)
    members = family_of(running.pid)
    running.send(number)
    running.finish()
    for pid in members:
        assert pid not in bpf_descriptors()
        assert not Path(f"/proc/{pid}").exists() or _is_zombie(pid)
    assert tracepoint_switches() <= before | tracepoint_switches_of_others(members)
    assert not list(Path("/sys/fs/bpf").glob("*"))


def _is_zombie(pid):
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def tracepoint_switches_of_others(members):
    """Another tracer may run on this machine at the same time."""
    return tracepoint_switches() if set(bpf_descriptors()) - members else set()


def test_killed_tracer_does_not_hurt_the_traced(trace, puppet, family):
    server, client = puppet(), puppet()
    listener, port = server("listen", family.any, 0, 4)
    running = trace("-p", server.pid)
    running.send(signal.SIGKILL)
    running.finish()
    near, _ = client("connect", family.loop, port)
    far, _ = server("accept", listener)
    client("write", near, 3)
    assert server("read", far, 10) == [3]


def test_killed_tracer_with_a_command(trace, programs, tmp_path):
    """The command runs on or dies with it; it never waits at the gate for ever."""
    done = tmp_path / "pid"
    running = trace(
        command=["sh", "-c", f"echo $$ > {done}.new; mv {done}.new {done}; exec sleep 300"]
    )
    while not done.exists():
        assert running.process.poll() is None
    pid = int(done.read_text())
    running.send(signal.SIGTERM)
    running.finish()
    assert not Path(f"/proc/{pid}").exists() or _is_zombie(pid)
