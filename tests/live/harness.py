"""What the live tests share: namespaces, obedient processes, and the tracer itself.

Nothing here sleeps to be in time: every wait is for a line or an event that must
come, and ends with an error when it does not.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import jsonschema

from tcptrace.probes.engine import schema

HERE = Path(__file__).parent
TCPTRACE = [sys.executable, "-m", "tcptrace"]
PATIENCE_S = 30.0
"""How long anything may take before the test says that it did not come."""

_numbers = itertools.count()


@dataclass(frozen=True)
class Family:
    """What differs between IPv4 and IPv6."""

    name: str
    any: str
    loop: str
    number: int
    bits: int


V4 = Family("ipv4", "0.0.0.0", "127.0.0.1", 4, 32)
V6 = Family("ipv6", "::", "::1", 6, 128)


def run(*command, check=True, **options):
    """A short command's output."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=60, **options
    )
    if check and done.returncode:
        raise RuntimeError(f"{command}: {done.returncode} {done.stderr}")
    return done.stdout


class Namespace:
    """A network namespace of the test's own, with lo up."""

    def __init__(self):
        self.name = f"tt{os.getpid()}-{next(_numbers)}"
        run("ip", "netns", "add", self.name)
        run("ip", "-n", self.name, "link", "set", "lo", "up")
        self.path = Path("/run/netns") / self.name
        self.inum = self.path.stat().st_ino

    def enter(self, *command):
        """The command line that runs a command in here (same pid: nsenter execs)."""
        return ["nsenter", f"--net={self.path}", *map(str, command)]

    def run(self, *command):
        return run(*self.enter(*command))

    def sysctl(self, name, value=None):
        if value is None:
            return self.run("sysctl", "-n", name).strip()
        return self.run("sysctl", "-qw", f"{name}={value}")

    def sockets(self, *states):
        """What ss sees, as dicts. The oracle for states, queues and cookies."""
        rows = map(_ss_row, self.run("ss", "-Htaneo").splitlines())
        return [row for row in rows if not states or row["state"] in states]

    def socket(self, sport, dport=None):
        """The one that has these ports, or None."""
        for row in self.sockets():
            if row["sport"] == sport and dport in (None, row["dport"]):
                return row
        return None

    def remove(self):
        run("ip", "netns", "del", self.name, check=False)


_SS_NAMES = {"ESTAB": "ESTABLISHED", "FIN_WAIT_1": "FIN_WAIT1", "FIN_WAIT_2": "FIN_WAIT2"}


def _ss_row(line):
    words = line.split()
    name = words[0].replace("-", "_")
    cookie = re.search(r"\bsk:([0-9a-f]+)", line)
    timer = re.search(r"timer:\((\w+),([^,]+),", line)
    inode = re.search(r"\bino:(\d+)", line)
    return {
        "state": _SS_NAMES.get(name, name),
        "recv_q": int(words[1]),
        "send_q": int(words[2]),
        "sport": int(words[3].rpartition(":")[2]),
        "dport": _port(words[4].rpartition(":")[2]),
        "cookie": cookie[1] if cookie else None,
        "timer": timer[1] if timer else None,
        "expires_s": _seconds(timer[2]) if timer else None,
        "inode": int(inode[1]) if inode else None,
    }


def _port(text):
    return None if text == "*" else int(text)


def _seconds(text):
    """ss writes 59sec, 1.5sec (as 1min30sec above a minute), 200ms."""
    if text.endswith("ms"):
        return int(text[:-2]) / 1000
    minutes, _, rest = text.rpartition("min")
    return 60 * int(minutes or 0) + float(rest.removesuffix("sec") or 0)


class PuppetError(OSError):
    """The command that the puppet was given failed, with this errno."""


class Puppet:
    """A process (tests/live/programs/puppet.c) that does what it is told.

    ``puppet("listen", "::1", 0, 5)`` returns the numbers of its answer.
    """

    def __init__(self, program, namespace, leash=None):
        self.process = subprocess.Popen(
            namespace.enter(program), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._start(self.process.stdin, self.process.stdout, leash or [self])
        (self.pid,) = self.receive()
        assert self.pid == self.process.pid

    def _start(self, to, back, family):
        self._to, self._back, self._buffer, self.family = to, back, b"", family

    def __call__(self, *words):
        self.send(*words)
        return self.receive()

    def send(self, *words):
        self._to.write((" ".join(map(str, words)) + "\n").encode())

    def receive(self):
        word, *rest = self._line().split()
        if word == "error":
            raise PuppetError(int(rest[0]), os.strerror(int(rest[0])))
        return [int(number) for number in rest]

    def cookie(self, fd):
        return f"{self('cookie', fd)[0]:x}"

    def fork(self, pid=0):
        """A child of it that obeys too, and shares all its descriptors."""
        folder = Path(tempfile.mkdtemp(prefix="tcptrace-live-"))
        to, back = folder / "in", folder / "out"
        os.mkfifo(to)
        os.mkfifo(back)
        (number,) = self("fork", to, back, *([pid] if pid else []))
        child = object.__new__(Puppet)
        child.process, child.pid = None, number
        child._start(to.open("wb", 0), back.open("rb", 0), self.family)
        assert child.receive() == [0]
        self.family.append(child)
        for path in (to, back, folder):
            path.unlink() if path != folder else path.rmdir()
        return child

    def kill(self, number=signal.SIGKILL):
        os.kill(self.pid, number)

    def wait(self):
        """Until it has ended and nothing of it is left."""
        if self.process:
            self.process.wait(PATIENCE_S)
        else:
            gone(self.pid)

    def exit(self):
        """Without closing anything."""
        self.send("exit", 0)
        self.wait()

    def end(self):
        """For the tests' tidying up: it and all its forks."""
        for one in self.family:
            for pipe in (one._to, one._back):
                pipe.close()
        if self.process:
            self.process.kill()
            self.process.wait(PATIENCE_S)

    def _line(self):
        deadline = time.monotonic() + PATIENCE_S
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._back], [], [], left)[0]:
                raise TimeoutError(f"no answer from process {self.pid}")
            more = os.read(self._back.fileno(), 65536)
            if not more:
                raise EOFError(f"process {self.pid} ended")
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()


def gone(pid):
    """Wait for the end of a process that is not our child, nor a zombie of ours."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], PATIENCE_S)[0], f"{pid} did not end"
    finally:
        os.close(pidfd)


class Tcptrace:
    """``tcptrace states --format ndjson ...`` from ready to its end."""

    COMMAND = "states"

    def __init__(self, *options, command=(), format="ndjson"):
        ready, ready_end = os.pipe()
        words = [*TCPTRACE, self.COMMAND, "--format", format, "--ready-fd", ready_end, *options]
        words += ["--", *command] if command else []
        self.events, self.lines, self._of, self.transitions = [], [], {}, 0
        self._json = format == "ndjson"
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            [str(word) for word in words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[ready_end],
        )
        self.pid = self.process.pid
        os.close(ready_end)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._wait_ready(ready)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        self.process.stdout.close()
        self.process.stderr.close()

    def _wait_ready(self, fd):
        with open(fd, "rb", 0) as pipe:
            came = select.select([pipe], [], [], PATIENCE_S)[0] and pipe.read(6)
        if came != b"ready\n":
            self.process.kill()
            said = self.process.stderr.read().decode()
            self.kill()
            raise RuntimeError(f"tcptrace did not start: {said}")

    def _read(self):
        for line in self.process.stdout:
            event = json.loads(line) if self._json else None
            with self._news:
                self.lines.append(line)
                self.events.append(event)
                self.transitions += bool(event and event["event"] == "state")
                if event and "cookie" in event:
                    self._of.setdefault(event["cookie"], []).append(event)
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def wait_for(self, predicate, what="the awaited event"):
        """Its first true value over the list of the events so far."""
        return self._wait(lambda: predicate(self.events), what)

    def of(self, cookie):
        """The events of one socket so far."""
        with self._news:
            return list(self._of.get(cookie, ()))

    def story(self, cookie, until="CLOSE"):
        """The socket's events, once the newest leads to the given state."""

        def arrived():
            mine = self._of.get(cookie)
            return list(mine) if mine and mine[-1]["new_state"] == until else None

        return self._wait(arrived, lambda: f"{until} of {cookie}: only {steps(self.of(cookie))}")

    def wait_transitions(self, count):
        """Until so many have come; not an error if they do not, the test says which are missing."""
        with contextlib.suppress(AssertionError):
            self._wait(lambda: self.transitions >= count, f"{count} transitions")

    def wait_ends(self):
        """Until no socket of which a transition was seen is left in any state but CLOSE."""
        with contextlib.suppress(AssertionError):
            self._wait(lambda: all(map(_has_ended, self._of.values())), "all ends")

    def _wait(self, probe, what):
        deadline = time.monotonic() + PATIENCE_S
        with self._news:
            while not (found := probe()):
                left = deadline - time.monotonic()
                if left <= 0 or not self._reader.is_alive():
                    break
                self._news.wait(min(left, 1.0))
        assert found, f"did not come: {what() if callable(what) else what}"
        return found

    def send(self, number):
        self.process.send_signal(number)

    def stop(self, number=signal.SIGINT):
        """End it in the ordinary way; all its events."""
        self.send(number)
        return self.finish()

    def finish(self):
        """Wait for its own end; all its events."""
        self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        self.stderr = self.process.stderr.read().decode()
        return self.events


def _has_ended(events):
    return events[-1]["event"] != "state" or events[-1]["new_state"] == "CLOSE"


def steps(events: Iterable) -> list:
    """``OLD NEW reason`` of each transition, ``existing STATE`` of each find."""
    return [
        f"{one['old_state']} {one['new_state']} {one['reason']}"
        if one["event"] == "state"
        else f"existing {one['new_state']}"
        for one in events
    ]


def states(events):
    return [one for one in events if one["event"] == "state"]


def chains(events):
    """cookie -> its state and existing events, in the order of the stream."""
    found = {}
    for event in events:
        if event["event"] in ("state", "existing"):
            found.setdefault(event["cookie"], []).append(event)
    return found


def broken_chains(events):
    """Where one event of a socket does not begin in the state in which the one before ended."""
    broken = []
    for cookie, chain in chains(events).items():
        for before, after in itertools.pairwise(chain):
            if after.get("old_state", after["new_state"]) != before["new_state"]:
                broken.append((cookie, steps(chain)))
                break
    return broken


@functools.cache
def _validator():
    by_event = {one["title"]: one for one in schema.json_schema()["oneOf"]}
    return {name: jsonschema.Draft202012Validator(one) for name, one in by_event.items()}


_STACK_IDS = [field.name for field in schema.STACK_IDS]
_SUPPRESSED = "[unknown: too many new stacks came in that second]"


def check_stream(events, lost=0):
    """Everything that holds for any complete stream."""
    assert events[0]["event"] == "start"
    assert events[-1]["event"] == "end"
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    for event in events[:2000] + events[-10:]:
        _validator()[event["event"]].validate(event)
    kinds = [event["event"] for event in events]
    end = events[-1]
    assert kinds.count("start") == kinds.count("end") == 1
    assert end["events"] == len(events)
    assert end["states"] == kinds.count("state")
    assert end["existing"] == kinds.count("existing")
    losses = [event for event in events if event["event"] == "loss"]
    assert end["lost"] == lost, losses
    assert sum(event["lost"] for event in losses if event["where"] != "stacks_suppressed") == lost
    check_stacks(events, losses)


def check_stacks(events, losses):
    """Every stack is told once, before it is named; one that was not taken is counted."""
    told = {}
    for event in events:
        if event["event"] == "stack":
            assert event["stack_id"] not in told, event
            told[event["stack_id"]] = event["frames"]
        elif event["event"] == "state" and "user_stack" not in event:
            assert {event[name] for name in _STACK_IDS} - {None} <= told.keys(), event
    if any(_SUPPRESSED in frames for frames in told.values()):
        assert [event for event in losses if event["where"] == "stacks_suppressed"]
