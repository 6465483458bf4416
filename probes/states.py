"""Every TCP state transition, with the process that owns the socket."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Any

from tcptrace.probes.engine.constants import Fact, How, Kind, Stack, TcpState
from tcptrace.probes.engine.ring import Row
from tcptrace.probes.enrich import owner, reason
from tcptrace.probes.enrich.procfs import comm_text

SOURCES = (
    "states.c",
    "births.c",
    "io.c",
    "stacks.c",
    "resets.c",
    "signals.c",
    "processes.c",
    "cookies.c",
)
COPIED = ("on_state_change",)
ON_DEMAND = ("adopt", "adopt_children", "tell_child")

STACKS = ("user", "birth", "last_read", "last_write", "eof", "close", "kernel")
"""In the order of an event's ``stack_ids``; the stream's fields are ``user_stack`` and so on."""

Event = dict[str, Any]

_STATE = {int(state): state.name for state in TcpState}
_HOW = {int(how): how.name.lower() for how in How} | {0: None}
_OWN_NUMBER = 1 << 63  # bpf/table.h
_MAPPED = b"\0" * 10 + b"\xff\xff"


def address(raw: bytes) -> tuple[str, str]:
    """(family, text) of 16 address bytes; a mapped IPv4 address is written as IPv4."""
    if raw.startswith(_MAPPED):
        return "ipv4", f"{raw[12]}.{raw[13]}.{raw[14]}.{raw[15]}"
    return "ipv6", inet_ntop(AF_INET6, raw)


class Interpreter:
    """Turns rows of the ring buffer into events, without the stream's ts and seq.

    An event carries ``ts_ns`` and ``start_ns`` in kernel time; the last stage of
    the pipeline writes them out. ``uncertain`` says that the owner must still be
    searched for.
    """

    def __init__(self, names: tuple[str, ...], hz: int) -> None:
        self._names = names
        self._hz = hz

    def interpret(self, row: Row) -> Iterator[Event]:
        """The events of one record, in the order in which they happened: one to three."""
        record = dict(zip(self._names, row, strict=True))
        kind = record["kind"]
        if kind == Kind.EXISTING or (kind == Kind.ACCEPTED and not record["syn_recv_ns"]):
            yield self._existing(record)
            return
        if record["syn_recv_ns"]:
            yield from self._held_back(record)
        if kind == Kind.STATE:
            yield self._state(record)

    def _held_back(self, record: dict[str, Any]) -> Iterator[Event]:
        """A child's first two transitions: at that time its queues were empty."""
        first = dict(record)
        first |= {"recv_q": 0, "send_q": 0, "cpu_pid": record["held_cpu_pid"], "sk_err": 0}
        first |= {"since_ns": 0, "accepted_ns": 0, "ts_ns": record["syn_recv_ns"]}
        first |= _NOT_YET
        first |= {"old_state": TcpState.LISTEN, "new_state": TcpState.SYN_RECV}
        yield self._state(first)
        if not record["established_ns"]:
            return
        first |= {"old_state": TcpState.SYN_RECV, "new_state": TcpState.ESTABLISHED}
        first |= {"ts_ns": record["established_ns"], "since_ns": record["syn_recv_ns"]}
        yield self._state(first | {"accepted_ns": record["accepted_ns"]})

    def _state(self, record: dict[str, Any]) -> Event:
        event = self._common(record)
        since, ts = record["since_ns"], record["ts_ns"]
        old, new = record["old_state"], record["new_state"]
        lives_on = record["fin_wait2_jiffies"] / self._hz
        outlived = bool(since and (ts - since) / 1e9 >= lives_on)
        accepted_ns = record["accepted_ns"]
        why = reason.cause(
            old, new, record["facts"], record["sk_err"], record["kind"] == Kind.ACCEPTED, outlived
        )
        return event | {
            "event": "state",
            "old_state": _STATE[old],
            "new_state": _STATE[new],
            "reason": why.reason,
            "duration_us": (ts - since) // 1000 if since else None,
            "accept_wait_us": (accepted_ns - ts) // 1000 if accepted_ns else None,
            "cpu_pid": record["cpu_pid"],
            "became": why.became,
            "lives_on_s": _lives_on(why.became, lives_on),
            "stack_ids": _stack_ids(record),
        }

    def _existing(self, record: dict[str, Any]) -> Event:
        event = self._common(record)
        return event | {
            "event": "existing",
            "new_state": _STATE[record["new_state"]],
            "holders": [f"{event['pid']}:{event['fd']}"] if event["pid"] else [],
            "stack_ids": _stack_ids(record),
        }

    def _common(self, record: dict[str, Any]) -> Event:
        return socket_fields(record) | {
            "accepted": record["kind"] == Kind.ACCEPTED,
            "accepted_ns": record["accepted_ns"],
            "waited_long": record["kind"] == Kind.WAITING,
            "recv_q": record["recv_q"],
            "send_q": record["send_q"],
            "listener_pid": record["listener_pid"] or None,
            "listener_start_ns": record["listener_start_ns"],
        }


def socket_fields(record: dict[str, Any]) -> Event:
    """What a record of any kind tells of its socket: time, addresses, identity, owner."""
    family, saddr = address(record["saddr"])
    return {
        "ts_ns": record["ts_ns"],
        "sk": record["sk"],
        "family": family,
        "socket_family": "inet" if record["family"] == AF_INET else "inet6",
        "saddr": saddr,
        "sport": record["sport"] or None,
        "daddr": address(record["daddr"])[1],
        "dport": record["dport"] or None,
        "netns": record["netns"],
        "cookie": cookie_text(record["cookie"]),
        "inode": record["inode"] or None,
        "facts": record["facts"],
        "listener_comm": None,
    } | owner_fields(record)


def owner_fields(record: dict[str, Any]) -> Event:
    """Who owns the socket, or why that is not known."""
    facts = record["facts"]
    orphan = bool(facts & Fact.ORPHAN)
    known = record["pid"] and (
        facts & Fact.VERIFIED or orphan or (not facts & Fact.HAS_FILE and facts & Fact.TRACKED)
    )
    if not known:
        because = owner.unknown_because(facts)
        return owner.NOBODY | {
            "orphan": orphan,
            "owner_unknown": because,
            "uncertain": because is None,
            "recorded": (record["pid"], _HOW[record["how"]]),
        }
    return {
        "pid": record["pid"],
        "tid": record["tid"],
        "comm": comm_text(record["comm"]),
        "uid": record["uid"],
        "fd": record["fd"] if record["fd"] >= 0 and not orphan else None,
        "how": _HOW[record["how"]],
        "start_ns": record["start_ns"],
        "owner_unknown": None,
        "orphan": orphan,
        "uncertain": False,
    }


_NOT_YET = dict.fromkeys(("user_stack", "read_stack", "write_stack", "eof_stack", "close_stack"), 0)
_NOT_YET["kernel_stack"] = -1
"""What a child had no stack of before it was accepted."""


def _stack_ids(record: dict[str, Any]) -> tuple[int, ...]:
    """0: none. Kernel stacks, which the kernel numbers from 0, as -1, -2, ..."""
    kernel = record["kernel_stack"]
    return (
        record["user_stack"],
        record["birth_stack"],
        record["read_stack"],
        record["write_stack"],
        record["eof_stack"],
        record["close_stack"],
        -1 - kernel if kernel >= 0 else _KERNEL_ERRORS.get(kernel, 0),
    )


_KERNEL_ERRORS = {-errno.EEXIST: int(Stack.COLLISION)}


def cookie_text(cookie: int) -> str | None:
    """As ``ss -e`` prints it; a number of our own, marked t, where the kernel gave none."""
    if cookie & _OWN_NUMBER:
        return f"t{cookie & ~_OWN_NUMBER:x}"
    return f"{cookie:x}" if cookie else None


def _lives_on(became: str | None, fin_wait2_s: float) -> int | None:
    if became == "time_wait":
        return reason.TIME_WAIT_S
    return round(fin_wait2_s) if became == "fin_wait2" else None
