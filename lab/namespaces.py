"""Two hosts on one machine: network namespaces joined by a veth pair, removed at the end."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tcptrace.probes.engine.errors import MissingPieceError, TcptraceError


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace: its name for ``ip netns exec``, and its addresses."""

    name: str
    ipv4: str
    ipv6: str

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs the arguments on this host."""
        return ["ip", "netns", "exec", self.name, *arguments]


@contextmanager
def pair() -> Iterator[tuple[Host, Host]]:
    """Server and client, connected; nothing else is touched.

    Raises:
        MissingPieceError: iproute2 is not installed.
        TcptraceError: the kernel refuses namespaces or veth.
    """
    if shutil.which("ip") is None:
        raise MissingPieceError("iproute2 is not installed", help="sudo apt-get install iproute2")
    tag = f"tcptrace-{os.getpid()}"
    server = Host(f"{tag}-server", "10.7.0.1", "fd07::1")
    client = Host(f"{tag}-client", "10.7.0.2", "fd07::2")
    try:
        for host in (server, client):
            _ip("netns", "add", host.name)
        _connect(server, client)
        yield server, client
    finally:
        for host in (server, client):
            subprocess.run(["ip", "netns", "del", host.name], check=False, capture_output=True)


def _connect(server: Host, client: Host) -> None:
    _ip("-n", server.name, "link", "add", "eth0", "type", "veth",
        "peer", "name", "eth0", "netns", client.name)  # fmt: skip
    for host in (server, client):
        _ip("-n", host.name, "address", "add", f"{host.ipv4}/24", "dev", "eth0")
        _ip("-n", host.name, "address", "add", f"{host.ipv6}/64", "dev", "eth0", "nodad")
        for device in ("lo", "eth0"):
            _ip("-n", host.name, "link", "set", device, "up")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise TcptraceError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
