"""What the user wants to see, as the kernel half takes it: -D constants and maps."""

from __future__ import annotations

import ipaddress
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from socket import AF_INET, AF_INET6

from tcptrace.probes.engine.constants import TcpState

PORT_LOCAL, PORT_REMOTE = 1, 2

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Filters:
    """All of them must hold; within one of them any value may match.

    ``family`` is 4 or 6 and means the packets' family: an IPv6 socket that talks
    IPv4 counts as 4. ``netns`` are inode numbers, ``cgroups`` cgroup ids (the
    inode number of the folder in a cgroup2 mount).
    """

    pids: frozenset[int] = frozenset()
    follow: bool = False
    comms: frozenset[str] = frozenset()
    ports: dict[int, int] = field(default_factory=dict)
    networks: tuple[Network, ...] = ()
    family: int | None = None
    states: frozenset[TcpState] = frozenset()
    netns: frozenset[int] = frozenset()
    cgroups: frozenset[int] = frozenset()
    by_pid: bool = False

    def definitions(self) -> dict[str, int]:
        """The constants that switch the kernel's checks on."""
        found = {"TRACE_ALL_OWNERS": 0 if self.by_pid else 1}
        switches = {
            "FILTER_PIDS": self.by_pid,
            "FOLLOW_CHILDREN": self.follow,
            "FILTER_COMMS": self.comms,
            "FILTER_PORTS": self.ports,
            "FILTER_PREFIXES": self.networks,
            "FILTER_NETNS": self.netns,
            "FILTER_CGROUPS": self.cgroups,
        }
        found |= {name: 1 for name, wanted in switches.items() if wanted}
        if self.family:
            found["FILTER_FAMILY"] = int(AF_INET if self.family == 4 else AF_INET6)
        if self.states:
            found["FILTER_STATES"] = sum(1 << state for state in self.states)
        return found

    def map_contents(self) -> Iterator[tuple[str, bytes, bytes]]:
        """(map, key, value) of every set, but for the pids: those come with the inventory."""
        one = struct.pack("=I", 1)
        for port, sides in self.ports.items():
            yield "wanted_ports", struct.pack("=I", port), struct.pack("=I", sides)
        for inum in self.netns:
            yield "wanted_netns", struct.pack("=I", inum), one
        for cgroup in self.cgroups:
            yield "wanted_cgroups", struct.pack("=Q", cgroup), one
        for network in self.networks:
            yield "wanted_prefixes", prefix_key(network), one
        for comm in self.comms:
            yield "wanted_comms", comm_key(comm), one

    def wants_row(self, sport: int, dport: int, saddr: str, daddr: str, netns: int) -> bool:
        """The socket's part of the same decision, for rows of the inventory."""
        wire_family = 6 if ":" in saddr else 4
        return (
            (not self.family or wire_family == self.family)
            and (not self.netns or netns in self.netns)
            and (not self.ports or self._wants_ports(sport, dport))
            and (not self.networks or self._wants_address(saddr) or self._wants_address(daddr))
        )

    def _wants_address(self, text: str) -> bool:
        """As the kernel's map does it: both families in one space of 128 bits."""
        address = _as_ipv6(ipaddress.ip_address(text).packed)
        return any(_contains(prefix_key(network), address) for network in self.networks)

    def wants_state(self, *states: int) -> bool:
        return not self.states or any(state in self.states for state in states)

    def _wants_ports(self, sport: int, dport: int) -> bool:
        local, remote = self.ports.get(sport, 0), self.ports.get(dport, 0)
        return bool(local & PORT_LOCAL or remote & PORT_REMOTE)


def comm_key(comm: str) -> bytes:
    """As the kernel keeps a name: 15 bytes and a NUL."""
    return os.fsencode(comm)[:15].ljust(16, b"\0")


def prefix_key(network: Network) -> bytes:
    """A longest-prefix-match key; IPv4 lies at ::ffff:0:0/96."""
    offset = 96 if network.version == 4 else 0
    packed = _as_ipv6(network.network_address.packed)
    return struct.pack("=I", network.prefixlen + offset) + packed


def _as_ipv6(packed: bytes) -> bytes:
    return packed if len(packed) == 16 else b"\0" * 10 + b"\xff\xff" + packed


def _contains(key: bytes, address: bytes) -> bool:
    shift = 128 - int(struct.unpack_from("=I", key)[0])
    return int.from_bytes(key[4:], "big") >> shift == int.from_bytes(address, "big") >> shift
