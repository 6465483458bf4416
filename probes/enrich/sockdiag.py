"""All TCP sockets of a network namespace, by pyroute2's sock_diag.

Asking also makes the kernel number each socket, so every row has its cookie.
"""

from __future__ import annotations

import ctypes as ct
import importlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from socket import AF_INET, AF_INET6
from typing import Any, TypeVar

_CLONE_NEWNET = 0x40000000
_ALL_STATES = 0xFFFFFFFF
_SIDE_INODE = "idiag_inode"

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class SocketRow:
    """One row of sock_diag. Queues as ``ss`` prints them (for LISTEN: backlog and its limit)."""

    family: int
    state: int
    saddr: str
    sport: int
    daddr: str
    dport: int
    cookie: int
    inode: int
    uid: int
    recv_q: int
    send_q: int
    timer: int
    expires_ms: int
    netns: int

    @property
    def flow(self) -> tuple[int, str, int | None, str, int | None]:
        """Identity where there is no cookie yet."""
        return (self.netns, self.saddr, self.sport or None, self.daddr, self.dport or None)


def dump(netns: int, path: str) -> list[SocketRow]:
    """Every TCP socket, IPv4 and IPv6, in all states, of the namespace at ``path``."""
    return in_namespace(path, lambda: _dump_here(netns))


def warm_up() -> None:
    """Import pyroute2's part (0.2 s); worth doing while something else is waited for."""
    importlib.import_module("pyroute2.netlink.diag")


def _dump_here(netns: int) -> list[SocketRow]:
    from pyroute2.netlink.diag import DiagSocket  # see warm_up

    with DiagSocket() as diag:
        return [
            _row(message, netns)
            for family in (AF_INET, AF_INET6)
            for message in diag.get_sock_stats(family=family, states=_ALL_STATES, extensions=0)
        ]


def _row(message: Any, netns: int) -> SocketRow:
    return SocketRow(
        family=message["idiag_family"],
        state=message["idiag_state"],
        saddr=plain_address(message["idiag_src"]),
        sport=message["idiag_sport"],
        daddr=plain_address(message["idiag_dst"]),
        dport=message["idiag_dport"],
        cookie=message["idiag_cookie"],
        inode=message[_SIDE_INODE],
        uid=message["idiag_uid"],
        recv_q=message["idiag_rqueue"],
        send_q=message["idiag_wqueue"],
        timer=message["idiag_timer"],
        expires_ms=message["idiag_expires"],
        netns=netns,
    )


def plain_address(text: str) -> str:
    """An IPv4 address that came as IPv6 (::ffff:10.0.0.1) written as IPv4."""
    if ":" not in text:
        return text
    address = ip_address(text)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def in_namespace(path: str, action: Callable[[], Result]) -> Result:
    """Run it in the network namespace at ``path``: in a thread, as only that one moves there."""
    outcome: list[Result] = []
    failure: list[BaseException] = []

    def moved() -> None:
        try:
            _enter(path)
            outcome.append(action())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=moved)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _enter(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ct.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
            raise OSError(ct.get_errno(), f"cannot enter the network namespace {path}")
    finally:
        os.close(fd)
