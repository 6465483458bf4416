"""Why a RST was sent: the kernel's own word where it has one, else what is known of the socket.

The kernel's words are enum sk_rst_reason (include/net/rstreason.h, since 6.10).
"""

from __future__ import annotations

import functools

from tcptrace.probes.engine import btf
from tcptrace.probes.engine.constants import Fact

REASONS = {
    "rst_received": "the peer sent it",
    "no_socket": "no socket here has this connection",
    "linger_zero": "closed with SO_LINGER 0",
    "unread_data": "closed before all that had come was read",
    "data_after_close": "data came for a socket that its process had closed",
    "keepalive": "the peer no longer answered keepalive probes",
    "timeout": "retransmissions ran out",
    "disconnect": "connect(AF_UNSPEC) with data on the way",
    "memory": "too many orphans, or no memory for TCP",
    "listener": "a segment for a listener that is no part of a handshake",
    "handshake": "a segment that does not fit the handshake",
    "time_wait": "a segment for a connection in TIME_WAIT",
    "other": "none of the above, or not known",
}

_DISCONNECT = "TCP_STATE"
_KERNELS = {
    "NO_SOCKET": "no_socket",
    "TCP_ABORT_ON_LINGER": "linger_zero",
    "TCP_ABORT_ON_CLOSE": "unread_data",
    "TCP_ABORT_ON_DATA": "data_after_close",
    "TCP_KEEPALIVE_TIMEOUT": "keepalive",
    "TCP_TIMEOUT": "timeout",
    "TCP_ABORT_ON_MEMORY": "memory",
    "TCP_DISCONNECT_WITH_DATA": "disconnect",
    "TCP_STATE": "disconnect",
    "TCP_INVALID_ACK_SEQUENCE": "handshake",
    "INVALID_SYN": "handshake",
}


@functools.cache
def _words() -> dict[int, str]:
    with btf.kernel() as types:
        return {value: name for name, value in types.enum("sk_rst_reason").items()}


def kernels_word(value: int) -> str | None:
    """``TCP_ABORT_ON_CLOSE``; None: this kernel does not say."""
    name = _words().get(value) if value >= 0 else None
    return name.removeprefix("SK_RST_REASON_") if name else None


def reason(kernels: str | None, facts: int, state: str | None, *, sent: bool) -> str:
    """One of REASONS."""
    if not sent:
        return "rst_received"
    if facts & Fact.FILE_CLOSING and facts & Fact.LINGER_ZERO and kernels in (None, _DISCONNECT):
        return "linger_zero"  # by way of tcp_disconnect(), whose word it is then
    if kernels in _KERNELS:
        return _KERNELS[kernels]
    if state in ("LISTEN", "TIME_WAIT"):
        return "listener" if state == "LISTEN" else "time_wait"
    if facts & Fact.FILE_CLOSING:
        return "linger_zero" if facts & Fact.LINGER_ZERO else "unread_data"
    if state in ("SYN_RECV", "NEW_SYN_RECV", "SYN_SENT"):
        return "handshake"
    return "data_after_close" if facts & Fact.ORPHAN else "other"
