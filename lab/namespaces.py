"""Two hosts on one machine: network namespaces joined by a veth pair, removed at the end."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tcptrace.probes.engine.errors import KernelRefusedError, MissingPieceError, TcptraceError

_NAMES = Path("/run/netns")
_OURS = re.compile(r"tcptrace-(\d+)-(server|client)")


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace: its name for ``ip netns exec``, and its addresses."""

    name: str
    ipv4: str
    ipv6: str

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs the arguments on this host."""
        return ["ip", "netns", "exec", self.name, *arguments]

    def address(self, family: int) -> str:
        """For family 4 or 6."""
        return self.ipv6 if family == 6 else self.ipv4

    def inode(self) -> int:
        """The number by which the kernel, and tcptrace, name it."""
        return (_NAMES / self.name).stat().st_ino

    def run(self, *arguments: str) -> str:
        """A short command's output.

        Raises:
            TcptraceError: it failed; with its own words.
        """
        command = self.command(*arguments)
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise TcptraceError(f"{' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def set(self, name: str, value: int) -> None:
        """A sysctl of this namespace alone, ``net.ipv4.tcp_fin_timeout``."""
        path = f"/proc/sys/{name.replace('.', '/')}"
        self.run("sh", "-c", 'echo "$2" > "$1"', "sh", path, str(value))

    def drop(self, *what: str) -> None:
        """From now on packets that come in and match, ``tcp sport 8000``, get lost.

        They are dropped where they arrive: a sender would notice it if its own
        firewall refused a packet.

        Raises:
            MissingPieceError: nft is not installed.
            KernelRefusedError: the kernel has no nftables.
        """
        require("nft", "nftables")
        rules = (
            "add table inet lab",
            "add chain inet lab input { type filter hook input priority 0; }",
            f"add rule inet lab input {' '.join(what)} drop",
        )
        try:
            self.run("nft", "; ".join(rules))
        except TcptraceError as error:
            raise KernelRefusedError(f"nftables: {error.message}") from error


def require(command: str, package: str) -> None:
    """Raises:
    MissingPieceError: the command is not there.
    """
    if shutil.which(command) is None:
        raise MissingPieceError(
            f"{package} is not installed", help=f"sudo apt-get install {package}"
        )


@contextmanager
def pair() -> Iterator[tuple[Host, Host]]:
    """Server and client, connected; nothing else is touched.

    Raises:
        MissingPieceError: iproute2 is not installed.
        TcptraceError: the kernel refuses namespaces or veth.
    """
    require("ip", "iproute2")
    _remove_left_ones()
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
            _remove(host.name)


def _remove_left_ones() -> None:
    """Of runs that were killed with SIGKILL: nobody else could tidy up after them."""
    for path in _NAMES.glob("tcptrace-*"):
        match = _OURS.fullmatch(path.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            _remove(path.name)


def _remove(name: str) -> None:
    """In a session of its own: a second Ctrl-C does not reach it."""
    command = ["ip", "netns", "del", name]
    subprocess.run(command, check=False, capture_output=True, start_new_session=True)


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
