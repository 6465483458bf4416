"""Why a transition happened, and what CLOSE really was.

The kernel half reports what was true of the socket at that moment (Fact, sk_err);
here that is read as the kernel's own code does (net/ipv4/tcp.c, tcp_input.c,
tcp_timer.c, tcp_minisocks.c). Pure functions over small integers, cached.
"""

from __future__ import annotations

import errno
import functools
from dataclasses import dataclass

from tcptrace.probes.engine.constants import Fact, TcpState

_S = TcpState

TIME_WAIT_S = 60
"""TCP_TIMEWAIT_LEN of include/net/tcp.h: a compile-time constant."""

REASONS = {
    "connect": "connect() sent the SYN",
    "listen": "listen()",
    "syn_received": "the handshake's last ACK came and the kernel made the child socket",
    "accept": "the handshake was completed, and a process accepted the connection",
    "handshake": "the handshake was completed; no process has accepted the connection yet",
    "syn_ack_received": "the peer answered connect()",
    "fin_received": "the peer closed its side",
    "ack_received": "the peer acknowledged our FIN",
    "local_close": "close() of the last descriptor",
    "shutdown": "shutdown()",
    "process_exit": "the process ended and the kernel closed its descriptors",
    "disconnect": "connect() was given up, or connect(AF_UNSPEC)",
    "rst_received": "the peer sent a RST",
    "refused": "connect() was answered by a RST or an ICMP error (connection refused)",
    "rst_sent_unread": "closed with unread data: the kernel sent a RST",
    "rst_sent_linger": "closed with SO_LINGER 0: the kernel sent a RST",
    "reset": "RST received, or sent because data came after close()",
    "timeout": "retransmissions, keepalive or FIN_WAIT2 ran out",
    "unreachable": "ICMP said the peer cannot be reached",
    "aborted": "destroyed from outside (ss -K, tcp_abort)",
    "listener_closed": "the listener was closed before anybody accepted the connection",
    "orphan_fin_wait2": "nobody holds it any more: the kernel waits for the peer's FIN alone",
    "other": "none of the above",
}


@dataclass(frozen=True, slots=True)
class Cause:
    """``became`` (only for CLOSE): time_wait, fin_wait2 or gone."""

    reason: str
    became: str | None = None


@functools.lru_cache(maxsize=4096)
def cause(old: int, new: int, facts: int, error: int, accepted: bool, outlived: bool) -> Cause:
    """Explain one transition.

    Args:
        old: TcpState before.
        new: TcpState after.
        facts: Fact bits.
        error: sk_err, a positive errno or 0.
        accepted: a process has accepted the child.
        outlived: the time in FIN_WAIT2 reached its limit.
    """
    if new != _S.CLOSE:
        return Cause(_opening_or_closing(old, new, facts, accepted))
    if old == _S.LISTEN:
        return Cause(_local(facts), "gone")
    return _closed(old, facts, error, outlived)


def _opening_or_closing(old: int, new: int, facts: int, accepted: bool) -> str:
    if old == new:  # close() after shutdown(): tcp_close_state() stays where it is
        return _local(facts)
    simple = {
        _S.SYN_SENT: "connect",
        _S.LISTEN: "listen",
        _S.SYN_RECV: "syn_received",
        _S.CLOSE_WAIT: "fin_received",
        _S.CLOSING: "fin_received",
        _S.FIN_WAIT2: "ack_received",
    }
    if new in simple:
        return simple[TcpState(new)]
    if new == _S.ESTABLISHED:
        if old == _S.SYN_SENT:
            return "syn_ack_received"
        return "accept" if accepted else "handshake"
    if new in (_S.FIN_WAIT1, _S.LAST_ACK):
        return _local(facts)
    return "other"


def _local(facts: int) -> str:
    """Which of our own doings: the transition was made by a system call."""
    if facts & Fact.FILE_CLOSING:
        return "process_exit" if facts & Fact.CURRENT_EXITING else "local_close"
    return "shutdown"


_ERRORS = {
    errno.ECONNRESET: "rst_received",
    errno.EPIPE: "rst_received",  # a RST in CLOSE_WAIT: tcp_reset() of tcp_input.c
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "timeout",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.ECONNABORTED: "aborted",
}


def _closed(old: int, facts: int, error: int, outlived: bool) -> Cause:
    if facts & Fact.FILE_CLOSING and not error and _needs_reset(old, facts):
        linger = facts & Fact.LINGER_ZERO
        return Cause("rst_sent_linger" if linger else "rst_sent_unread", "gone")
    if error == errno.ECONNRESET and facts & Fact.ORPHAN and old in (_S.FIN_WAIT1, _S.FIN_WAIT2):
        return Cause("reset", "gone")
    if error in _ERRORS:
        return Cause(_ERRORS[error], "gone")
    if old in (_S.FIN_WAIT1, _S.FIN_WAIT2, _S.CLOSING):
        return _active_close_ended(old, facts, outlived)
    if old == _S.LAST_ACK:
        return Cause("ack_received", "gone")
    return Cause(_without_error(old, facts), "gone")


def _without_error(old: int, facts: int) -> str:
    if facts & Fact.FILE_CLOSING:
        return _local(facts)
    if not facts & (Fact.HAS_SOCKET | Fact.ORPHAN):
        return "listener_closed"
    if facts & Fact.LOCKED_BY_CURRENT:
        return "disconnect"
    # A poller may take the error, and so clear it, before the timer closes the socket:
    # tcp_write_err() of tcp_timer.c reports first.
    return "timeout" if old == _S.SYN_SENT else "other"


def _needs_reset(old: int, facts: int) -> bool:
    """Closed straight from here: by a RST (tcp_need_reset() of tcp.c).

    After close() itself FIN_WAIT1 and FIN_WAIT2 end in other ways; after
    shutdown() alone, which leaves no orphan, they do not.
    """
    if old in (_S.FIN_WAIT1, _S.FIN_WAIT2):
        return not facts & Fact.ORPHAN
    return old in (_S.ESTABLISHED, _S.CLOSE_WAIT, _S.SYN_RECV)


def _active_close_ended(old: int, facts: int, outlived: bool) -> Cause:
    if facts & Fact.FIN_RECEIVED:
        full = facts & Fact.TIME_WAIT_FULL
        reason = "ack_received" if old == _S.CLOSING else "fin_received"
        return Cause(reason, "gone" if full else "time_wait")
    if not facts & (Fact.ORPHAN | Fact.FILE_CLOSING):
        return Cause("disconnect", "gone")
    if outlived:
        return Cause("timeout", "gone")
    return Cause("orphan_fin_wait2", "fin_wait2")
