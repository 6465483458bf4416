"""All TCP sockets of a network namespace, by pyroute2's sock_diag.

Asking also makes the kernel number each socket, so every row has its cookie.
"""

from __future__ import annotations

import ctypes as ct
import importlib
import os
import struct
import threading
from collections.abc import Callable
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, IPPROTO_TCP, inet_ntop, ntohs
from typing import Any, NamedTuple, TypeVar

from tcptrace.probes.engine.constants import TcpState

_CLONE_NEWNET = 0x40000000
_ALL_STATES = 0xFFFFFFFF
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_MESSAGE = struct.Struct("=4BHH16s16sIQ5I")

_TAKEN = {"header": {"type": 20, "flags": 2, "error": None, "sequence_number": 0}}

Result = TypeVar("Result")


class SocketRow(NamedTuple):
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


def dump(netns: int, path: str, *, remainders: bool) -> list[SocketRow]:
    """Every TCP socket, IPv4 and IPv6, of the namespace at ``path``.

    ``remainders``: also TIME_WAIT, of which a busy host has tens of thousands
    and which no process holds.
    """
    states = _ALL_STATES if remainders else _ALL_STATES & ~(1 << TcpState.TIME_WAIT)
    return in_namespace(path, lambda: _dump_here(netns, states))


def warm_up() -> None:
    """Import pyroute2's part (0.2 s); worth doing while something else is waited for."""
    importlib.import_module("pyroute2.netlink.diag")


def _dump_here(netns: int, states: int) -> list[SocketRow]:
    rows: list[SocketRow] = []
    for family in (AF_INET, AF_INET6):
        _request(family, states, lambda data, at: rows.append(_row(data, at, netns)))
    return rows


def _request(family: int, states: int, take: Callable[[bytes, int], None]) -> None:
    """Have pyroute2 ask; decode the answers here, as its general decoder takes 70 us a row."""
    from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST, nlmsg  # see warm_up
    from pyroute2.netlink import diag as sock_diag

    def parse(data: bytes, offset: int, _length: int) -> Any:
        if _HEADER.unpack_from(data, offset)[1] == sock_diag.SOCK_DIAG_BY_FAMILY:
            take(data, offset + _HEADER.size)
            return _TAKEN  # None would make pyroute2 0.9 stop at the end of the first datagram
        message = nlmsg(data, offset=offset)  # the end of the answer, or an error
        message.decode()
        return message

    class Marshal(sock_diag.MarshalDiag):  # type: ignore[misc,unused-ignore]
        def get_parser(self, *_: object) -> Any:
            return parse

    request = sock_diag.inet_diag_req()
    request["sdiag_family"], request["sdiag_protocol"] = family, IPPROTO_TCP
    request["idiag_states"] = states
    with sock_diag.DiagSocket() as socket:
        socket.set_marshal(Marshal())
        flags = NLM_F_REQUEST | NLM_F_DUMP
        for _ in socket.nlm_request(request, sock_diag.SOCK_DIAG_BY_FAMILY, flags):
            pass


def _row(data: bytes, at: int, netns: int) -> SocketRow:
    """struct inet_diag_msg of include/uapi/linux/inet_diag.h."""
    (family, state, timer, _retrans, sport, dport, source, target, _device, cookie,
     expires_ms, recv_q, send_q, uid, inode) = _MESSAGE.unpack_from(data, at)  # fmt: skip
    return SocketRow(
        family, state, _text(family, source), ntohs(sport), _text(family, target), ntohs(dport),
        cookie, inode, uid, recv_q, send_q, timer, expires_ms, netns,
    )  # fmt: skip


def _text(family: int, raw: bytes) -> str:
    if family == AF_INET:
        return inet_ntop(AF_INET, raw[:4])
    return plain_address(inet_ntop(AF_INET6, raw))


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
