"""What /proc says about processes: who they are and which sockets they hold.

Every reader treats a process that ends meanwhile as absent, never as an error.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tcptrace.probes.enrich.clock import TICK_NS

PROC = Path("/proc")
_UID = re.compile(rb"^Uid:\s*(\d+)", re.MULTILINE)
_INIT_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO, include/linux/proc_ns.h


@dataclass(frozen=True, slots=True)
class Process:
    """One process. ``start_ns``: boot time in ns, only as exact as a clock tick (10 ms)."""

    pid: int
    comm: str
    start_ns: int
    uid: int
    parent: int


@dataclass(frozen=True, slots=True)
class Holder:
    """A descriptor that keeps a socket open."""

    pid: int
    fd: int

    def __str__(self) -> str:
        return f"{self.pid}:{self.fd}"


@functools.lru_cache(maxsize=4096)
def comm_text(raw: bytes) -> str:
    """A process name: cut at NUL; bytes that are no UTF-8, and DEL and C1 controls, as \\xNN.

    The controls below 0x20 are left to JSON, which escapes them itself.
    """
    text = raw.split(b"\0", 1)[0].decode(errors="backslashreplace")
    return "".join(f"\\x{ord(char):02x}" if "\x7f" <= char <= "\x9f" else char for char in text)


def process(pid: int) -> Process | None:
    """None if there is no such process (any more)."""
    try:
        raw = (PROC / str(pid) / "stat").read_bytes()
        status = (PROC / str(pid) / "status").read_bytes()
    except OSError:
        return None
    head, _, tail = raw.rpartition(b")")  # comm may itself contain brackets and spaces
    fields = tail.split()
    comm = comm_text(head.partition(b"(")[2])
    return Process(pid, comm, int(fields[19]) * TICK_NS, _real_uid(status), int(fields[1]))


def _real_uid(status: bytes) -> int:
    """The real user id, as the kernel half reports it (the owner of /proc/PID is the effective)."""
    match = _UID.search(status)
    return int(match[1]) if match else 0


def pids() -> list[int]:
    """Every process of this pid namespace."""
    return [int(name) for name in os.listdir(PROC) if name.isdigit()]


def sockets_of(pid: int) -> Iterator[tuple[int, int]]:
    """(fd, inode) of each socket that the process holds."""
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        try:
            target = os.readlink(f"{folder}/{name}")
        except OSError:
            continue
        if target.startswith("socket:["):
            yield int(name), int(target[8:-1])


def holders(of: Iterable[int] | None = None) -> dict[int, list[Holder]]:
    """Inode -> who holds it, over the given processes (default: all)."""
    found: dict[int, list[Holder]] = {}
    for pid in sorted(of if of is not None else pids()):
        for fd, inode in sockets_of(pid):
            found.setdefault(inode, []).append(Holder(pid, fd))
    return found


def descendants(roots: Iterable[int]) -> set[int]:
    """The given processes and all their children, as of now."""
    children: dict[int, list[int]] = {}
    for pid in pids():
        if info := process(pid):
            children.setdefault(info.parent, []).append(pid)
    family, todo = set(), list(roots)
    while todo:
        pid = todo.pop()
        if pid not in family:
            family.add(pid)
            todo += children.get(pid, [])
    return family


def namespace(pid: int | str, kind: str = "net") -> int | None:
    """The inode number of a process's namespace."""
    try:
        return os.stat(PROC / str(pid) / "ns" / kind).st_ino
    except OSError:
        return None


def sees_host_pids() -> bool:
    """False in a container with its own pid namespace: its pids are not the kernel's."""
    try:
        return os.readlink("/proc/self/ns/pid") == _INIT_PID_NAMESPACE
    except OSError:
        return True


def network_namespaces(of: Iterable[int]) -> dict[int, list[str]]:
    """Inode number -> paths that lead there, for each namespace of the processes.

    Several, as a process may end before its path is used.
    """
    found: dict[int, list[str]] = {}
    for pid in of:
        inum = namespace(pid)
        if inum is not None:
            found.setdefault(inum, []).append(f"/proc/{pid}/ns/net")
    return found
