"""Does the whole chain work on this kernel? One connection of each family tells.

A child process in a network namespace of its own listens, connects, accepts and
closes; every transition of that must arrive, once, with the child as owner. A
probe that has drifted from its kernel fails silently elsewhere: not here.
"""

from __future__ import annotations

import ctypes as ct
import fcntl
import os
import select
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tcptrace.probes.engine.forked import Channel, Forked
from tcptrace.probes.filters import Filters
from tcptrace.probes.plan import Options
from tcptrace.probes.tracer import Tracer

_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_PATIENCE_S = 3.0

_LISTENER = [("CLOSE", "LISTEN"), ("LISTEN", "CLOSE")]
_CLIENT = [
    ("CLOSE", "SYN_SENT"),
    ("SYN_SENT", "ESTABLISHED"),
    ("ESTABLISHED", "FIN_WAIT1"),
    ("FIN_WAIT1", "FIN_WAIT2"),
    ("FIN_WAIT2", "CLOSE"),
]
_SERVER = [
    ("LISTEN", "SYN_RECV"),
    ("SYN_RECV", "ESTABLISHED"),
    ("ESTABLISHED", "CLOSE_WAIT"),
    ("CLOSE_WAIT", "LAST_ACK"),
    ("LAST_ACK", "CLOSE"),
]

Transition = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was expected and did not come, what came and was not expected, and wrong owners."""

    missing: list[str]
    unexpected: list[str]
    wrong_owner: list[str]
    ready_s: float

    @property
    def passed(self) -> bool:
        return not (self.missing or self.unexpected or self.wrong_owner)


def run() -> Outcome:
    """Raises TcptraceError where the tracer does not even start."""
    started = time.monotonic()
    child = Forked("the self-test", _connect_to_itself)
    try:
        pid, families = child.receive()
        with Tracer(Filters(pids=frozenset({pid}), by_pid=True), Options(existing=False)) as tracer:
            tracer.start()
            ready_s = time.monotonic() - started
            child.send("go")
            expected = Counter((_LISTENER + _CLIENT + _SERVER) * families)
            events = _collect(tracer, expected.total())
    finally:
        child.close()
    seen: Counter[Transition] = Counter((e["old_state"], e["new_state"]) for e in events)
    return Outcome(
        missing=_lines(expected - seen),
        unexpected=_lines(seen - expected),
        wrong_owner=[
            f"{e['old_state']} -> {e['new_state']}: {e['pid'] or e['owner_unknown']}"
            for e in events
            if e["pid"] != pid
        ],
        ready_s=round(ready_s, 3),
    )


def _collect(tracer: Tracer, count: int) -> list[dict[str, str]]:
    events: list[dict[str, str]] = []
    deadline = time.monotonic() + _PATIENCE_S
    while len(events) < count and time.monotonic() < deadline:
        select.select([tracer.ring_fd], [], [], 0.05)
        events += [event for event in tracer.read() if event["event"] == "state"]
    return events


def _lines(transitions: Counter[Transition]) -> list[str]:
    return [f"{old} -> {new} ({count})" for (old, new), count in transitions.items()]


def _connect_to_itself(channel: Channel) -> None:
    """The child: its own namespace, then one connection per family."""
    if ct.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise OSError(ct.get_errno(), "cannot make a network namespace")
    _loopback_up()
    families = [socket.AF_INET]
    if socket.has_ipv6 and Path("/proc/sys/net/ipv6").exists():
        families.append(socket.AF_INET6)
    channel.send((os.getpid(), len(families)))
    channel.receive()
    for family in families:
        _one_connection(family)
    channel.receive()  # stay until the parent has seen everything


def _one_connection(family: socket.AddressFamily) -> None:
    with socket.socket(family) as listener:
        listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        listener.listen(1)
        client = socket.create_connection(listener.getsockname()[:2])
        server, _ = listener.accept()
        client.close()
        server.recv(1)
        server.close()


def _loopback_up() -> None:
    with socket.socket() as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))
