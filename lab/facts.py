"""What the kernel itself must say at a moment of a story: by ss and /proc, never by tcptrace."""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from tcptrace.lab import sockets
from tcptrace.lab.actors import Actor
from tcptrace.lab.namespaces import Host
from tcptrace.lab.sockets import Seen


@dataclass(frozen=True, slots=True)
class Look:
    """Whether it holds just now, and what was seen."""

    holds: bool
    seen: str


class Cast(Protocol):
    """Who plays where."""

    @property
    def hosts(self) -> dict[str, Host]: ...

    @property
    def actors(self) -> dict[str, Actor]: ...


class Fact(Protocol):
    """``says`` is the sentence that the story shows."""

    @property
    def says(self) -> str: ...

    def look(self, cast: Cast) -> Look: ...


@dataclass(frozen=True, slots=True)
class Row:
    """A line of ss. ``timer`` None: any; ``tries``: at least; ``holder``: role and descriptor."""

    state: str
    recv_q: int
    send_q: int
    timer: str | None = None
    tries: int = 0
    holder: tuple[str, int] | None = None

    def fits(self, seen: Seen, cast: Cast) -> bool:
        return (
            (self.state, self.recv_q, self.send_q) == (seen.state, seen.recv_q, seen.send_q)
            and self.timer in (None, seen.timer)
            and self.tries <= seen.tries
            and (self.holder is None or _holds(cast, *self.holder) == seen.inode)
        )


@dataclass(frozen=True, slots=True)
class Sockets:
    """The host's sockets with this local port (and this peer's) are exactly these rows."""

    says: str
    host: str
    port: int
    rows: tuple[Row, ...]
    peer: int | None = None

    def look(self, cast: Cast) -> Look:
        found = [
            one
            for one in sockets.on(cast.hosts[self.host])
            if one.port == self.port and self.peer in (None, one.peer_port)
        ]
        return Look(self._are(found, cast), "; ".join(map(str, found)) or "no such socket")

    def _are(self, found: list[Seen], cast: Cast) -> bool:
        left = list(found)
        for row in self.rows:
            fitting = next((one for one in left if row.fits(one, cast)), None)
            if fitting is None:
                return False
            left.remove(fitting)
        return not left


@dataclass(frozen=True, slots=True)
class Counts:
    """So many of the host's sockets to or from this port are in each state; LISTEN apart."""

    says: str
    host: str
    port: int
    states: tuple[tuple[str, int], ...]
    tries: int = 0

    def look(self, cast: Cast) -> Look:
        found = [
            one
            for one in sockets.on(cast.hosts[self.host])
            if self.port in (one.port, one.peer_port) and one.state != "LISTEN"
        ]
        states = Counter(one.state for one in found)
        tried = all(one.tries >= self.tries for one in found)
        seen = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        return Look(states == dict(self.states) and tried, seen or "none")


@dataclass(frozen=True, slots=True)
class Unlisted:
    """A process holds a TCP socket that ss does not list: it is closed, but for the descriptor."""

    says: str
    role: str
    fd: int

    def look(self, cast: Cast) -> Look:
        actor = cast.actors[self.role]
        inode = _holds(cast, self.role, self.fd)
        listed = inode in {one.inode for one in sockets.on(actor.host)}
        seen = f"fd {self.fd} of pid {actor.pid} is {'no socket' if inode is None else 'a socket'}"
        return Look(inode is not None and not listed, f"{seen}, in ss: {'yes' if listed else 'no'}")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended: ``SIGPIPE``, ``exit 0``."""

    says: str
    role: str
    how: str

    def look(self, cast: Cast) -> Look:
        actor = cast.actors[self.role]
        how = actor.ended()
        return Look(how == self.how, f"pid {actor.pid}: {how or 'running'}")


@dataclass(frozen=True, slots=True)
class Alive:
    """A program runs: its state letter, what it does with SIGPIPE, CPU seconds used at least."""

    says: str
    role: str
    state: str
    sigpipe: str | None = None
    cpu_s: float = 0.0

    def look(self, cast: Cast) -> Look:
        actor = cast.actors[self.role]
        try:
            state, cpu_s = _state(actor.pid)
            sigpipe = _disposition(actor.pid, signal.SIGPIPE)
        except OSError:
            return Look(False, f"pid {actor.pid}: {actor.ended()}")
        holds = state in self.state and cpu_s >= self.cpu_s and self.sigpipe in (None, sigpipe)
        used = f", {cpu_s:.1f} s of CPU" if self.cpu_s else ""
        does = f", SIGPIPE {sigpipe}" if self.sigpipe else ""
        return Look(holds, f"pid {actor.pid} is in state {state}{does}{used}")


@dataclass(frozen=True, slots=True)
class Counted:
    """A counter of the host's kernel since the story began, of /proc/net/netstat or snmp."""

    says: str
    host: str
    name: str
    least: int
    most: int | None = None

    def look(self, cast: Cast) -> Look:
        value = _counters(cast.hosts[self.host]).get(self.name)
        most = value if self.most is None else self.most
        holds = value is not None and most is not None and self.least <= value <= most
        return Look(holds, f"{self.name} {'is not there' if value is None else value}")


def _holds(cast: Cast, role: str, fd: int) -> int | None:
    """Inode of the socket under this descriptor."""
    try:
        target = os.readlink(f"/proc/{cast.actors[role].pid}/fd/{fd}")
    except OSError:
        return None
    return int(target[8:-1]) if target.startswith("socket:[") else None


def _state(pid: int) -> tuple[str, float]:
    """Its letter, and the CPU seconds that it has used."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _disposition(pid: int, number: signal.Signals) -> str:
    with open(f"/proc/{pid}/status") as file:
        masks = dict(line.split(":") for line in file.read().splitlines() if line[:3] == "Sig")
    for name, word in (("SigIgn", "ignored"), ("SigCgt", "handled")):
        if int(masks[name], 16) >> (number - 1) & 1:
            return word
    return "default"


def _counters(host: Host) -> dict[str, int]:
    """Each file has pairs of lines: names, then values."""
    found: dict[str, int] = {}
    lines = host.run("cat", "/proc/net/netstat", "/proc/net/snmp").splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        found.update(zip(names.split()[1:], map(int, values.split()[1:]), strict=True))
    return found
