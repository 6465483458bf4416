"""``existing`` events: a row of the inventory, as it was before the window's transitions."""

from __future__ import annotations

from typing import Any

from tcptrace.probes.engine.constants import TcpState
from tcptrace.probes.enrich import owner, procfs
from tcptrace.probes.enrich.inventory import Found
from tcptrace.probes.states import Event, cookie_text

_BIRTHS = {"CLOSE", "LISTEN"}
_REMAINDERS = {TcpState.TIME_WAIT, TcpState.FIN_WAIT2}


def existing_event(found: Found, first_transition: Event | None) -> Event | None:
    """The event; None if the socket was born in the window, whose transitions tell it."""
    row = found.row
    state = TcpState(row.state).name
    if first_transition is not None:
        if first_transition["event"] == "existing":  # told by the kernel half itself
            return None
        state = first_transition["old_state"]
        if state in _BIRTHS and first_transition["new_state"] != "CLOSE":
            return None
    return {
        "event": "existing",
        "ts_ns": 0,
        "family": "ipv6" if ":" in row.saddr else "ipv4",
        "socket_family": "inet" if row.family == 2 else "inet6",
        "saddr": row.saddr,
        "sport": row.sport or None,
        "daddr": row.daddr,
        "dport": row.dport or None,
        "netns": row.netns,
        "cookie": cookie_text(row.cookie),
        "inode": row.inode or None,
        "new_state": "SYN_RECV" if state == "NEW_SYN_RECV" else state,
        "recv_q": row.recv_q,
        "send_q": row.send_q,
        "holders": [str(holder) for holder in found.holders],
        "facts": 0,
        "uncertain": False,
    } | _owner(found)


def _owner(found: Found) -> dict[str, Any]:
    listener = found.listener_holders[0] if found.listener_holders else None
    listener_info = procfs.process(listener.pid) if listener else None
    event: dict[str, Any] = owner.NOBODY | {
        "orphan": not found.row.inode and not found.unaccepted,
        "owner_unknown": _unknown(found),
        "listener_pid": listener.pid if listener else None,
        "listener_comm": listener_info.comm if listener_info else None,
    }
    holder = found.holders[0] if found.holders else None
    info = procfs.process(holder.pid) if holder else None
    if not holder or not info:
        return event
    return event | {
        "pid": info.pid,
        "tid": info.pid,
        "comm": info.comm,
        "uid": info.uid,
        "fd": holder.fd,
        "how": "fd_scan",
        "start_ns": info.start_ns,
        "owner_unknown": None,
    }


def _unknown(found: Found) -> str | None:
    if found.unaccepted:
        return owner.NOT_ACCEPTED
    if not found.row.inode:
        remainder = found.row.state in _REMAINDERS
        return owner.CLOSED if remainder else owner.ORPHAN
    return owner.NOBODY_FOUND
