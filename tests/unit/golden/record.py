"""Record the golden files anew, with the real tracer (root; a kernel that runs BPF).

    sudo .venv/bin/python -m tests.unit.golden.record

Wanted when struct state_record or the meaning of a field has changed. A process
in a network namespace of its own makes a few connections while it is traced; the
bytes that the kernel put into the ring buffer go to states.bin as they are,
headers included, the layout to layout.json, the frames of the stacks that the
records name to stacks.json, and what the pipeline makes of all of it to
states.ndjson. Read the difference of the last one before you commit it: the
test only says that nothing changed, not that it was right.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import time

from tcptrace.probes.engine.forked import Channel, Forked
from tcptrace.probes.enrich.clock import ticks_per_second
from tcptrace.probes.filters import Filters
from tcptrace.probes.plan import Options
from tcptrace.probes.selftest import _loopback_up
from tcptrace.probes.tracer import Tracer
from tests.unit.golden.replay import LAYOUT, LINES, RECORDS, STACKS, replay

_CLONE_NEWNET = 0x40000000
_PR_SET_NAME = 15
_NAME = b'a"\xff\x1b\t\xc3\xa9)'
"""A hostile name of a process: a quote, no UTF-8, an escape, a tab, a letter outside ASCII."""


def main() -> None:
    outside, inside = socket.socketpair()
    child = Forked("the recorded process", lambda channel: _play(channel, inside))
    pid = child.receive()
    options = Options(existing=False, user_stacks=True, kernel_stacks=True)
    with Tracer(Filters(pids=frozenset({pid}), by_pid=True), options) as tracer:
        tracer.start()
        time.sleep(0.5)  # the helper for stacks reads the child's mappings
        child.send("go")
        child.receive()
        with _connection(socket.AF_INET, "127.0.0.1") as (_, _, server):
            socket.send_fds(outside, [b"x"], [server.fileno()])
            child.receive()
        time.sleep(0.4)
        tracer.tell_waiting_children()
        child.send("end")
        child.receive()
        _save(tracer)
    child.close()
    LINES.write_bytes(replay())


def _save(tracer: Tracer) -> None:
    ring = tracer._ring
    layout = ring._layout
    ring.pump()
    raw = b"".join(ring._backlog)
    finished = [
        raw[at : at + ring._stride]
        for at in range(0, len(raw), ring._stride)
        if struct.unpack_from("=I", raw, at)[0] == layout.size
    ]
    RECORDS.write_bytes(b"".join(finished))
    told = {
        "names": layout.names,
        "format": layout.format,
        "size": layout.size,
        "hz": ticks_per_second(),
    }
    LAYOUT.write_text(json.dumps(told, indent=1) + "\n")
    _save_stacks(tracer)


def _save_stacks(tracer: Tracer) -> None:
    """What the helper process says to the ids of the records."""
    tracer.rest()
    known = sorted(tracer._stacks._known.items())
    lines = (f"{json.dumps(str(number))}: {json.dumps(one.frames)}" for number, one in known)
    STACKS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _play(channel: Channel, passed: socket.socket) -> None:
    """The traced process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    libc.prctl(_PR_SET_NAME, _NAME, 0, 0, 0)
    _loopback_up()
    channel.send(os.getpid())
    channel.receive()
    _client_closes_first(socket.AF_INET, "127.0.0.1")
    _client_closes_first(socket.AF_INET6, "::1")
    _client_closes_first(socket.AF_INET6, "::ffff:127.0.0.1")
    _reset_by_linger()
    _reset_by_unread_data()
    _refused()
    waiting = _never_accepted()
    channel.send("played")
    _, fds, _, _ = socket.recv_fds(passed, 1, 1)
    with socket.socket(fileno=fds[0]) as handed:  # on_io: a socket passed by SCM_RIGHTS
        handed.send(b"hello")
    channel.send("used")
    channel.receive()
    for one in waiting:
        one.close()
    channel.send("closed")
    channel.receive()


class _connection:  # noqa: N801 (a context manager, as open() is)
    """(listener, client, server) over loopback."""

    def __init__(self, family: socket.AddressFamily, address: str) -> None:
        self.listener = socket.socket(family)
        if family == socket.AF_INET6:
            self.listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.listener.bind((address, 0))
        self.listener.listen(2)
        self.client = socket.create_connection(self.listener.getsockname()[:2])
        self.server = self.listener.accept()[0]

    def __enter__(self) -> tuple[socket.socket, socket.socket, socket.socket]:
        return self.listener, self.client, self.server

    def __exit__(self, *_: object) -> None:
        for one in (self.client, self.server, self.listener):
            one.close()


def _client_closes_first(family: socket.AddressFamily, address: str) -> None:
    with _connection(family, address) as (_, client, server):
        client.close()
        server.recv(1)


def _reset_by_linger() -> None:
    with _connection(socket.AF_INET, "127.0.0.1") as (_, client, _):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()


def _reset_by_unread_data() -> None:
    with _connection(socket.AF_INET, "127.0.0.1") as (_, client, server):
        client.send(b"nobody reads this")
        server.close()


def _refused() -> None:
    with socket.socket() as free, socket.socket() as client:
        free.bind(("127.0.0.1", 0))
        client.connect_ex(free.getsockname())


def _never_accepted() -> list[socket.socket]:
    listener = socket.create_server(("127.0.0.1", 0))
    return [socket.create_connection(listener.getsockname()), listener]


if __name__ == "__main__":
    main()
