"""The sockets that were there before tcptrace: state, queues, and every holder.

sock_diag gives the sockets of each network namespace, /proc the descriptors;
joined by inode. A row that no descriptor leads to is an orphan, a remainder
(TIME_WAIT), or a connection in somebody's accept queue.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from tcptrace.probes.engine.constants import TcpState
from tcptrace.probes.engine.forked import Channel
from tcptrace.probes.enrich import procfs, sockdiag
from tcptrace.probes.enrich.procfs import Holder
from tcptrace.probes.enrich.sockdiag import SocketRow

_WAITS_FOR_ACCEPT = {TcpState.ESTABLISHED, TcpState.CLOSE_WAIT, TcpState.SYN_RECV}


class Found(NamedTuple):
    """One socket of the inventory; ``listener`` if it waits in that socket's accept queue."""

    row: SocketRow
    holders: tuple[Holder, ...] = ()
    listener: SocketRow | None = None
    listener_holders: tuple[Holder, ...] = ()

    def concerns(self, pids: Collection[int]) -> bool:
        """Whether one of these processes holds it, or its listener."""
        return any(holder.pid in pids for holder in self.holders or self.listener_holders)

    @property
    def unaccepted(self) -> bool:
        """Held by nobody in a state that close() never leaves behind."""
        return not self.row.inode and self.row.state in _WAITS_FOR_ACCEPT


@dataclass(slots=True)
class Inventory:
    """Everything found, and what could not be looked at."""

    found: list[Found] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def scout(channel: Channel) -> None:
    """Child process: be ready to look, look when told for which processes, report."""
    sockdiag.warm_up()
    pids = channel.receive()
    channel.send(take(pids))
    channel.receive()


def take(pids: Collection[int] | None) -> Inventory:
    """The sockets of the given processes, or all sockets of all namespaces."""
    holders = procfs.holders()
    inventory = Inventory()
    for inum, paths in procfs.network_namespaces(pids or procfs.pids()).items():
        try:
            rows = _rows(inum, paths, remainders=not pids)
        except OSError as error:
            inventory.unreadable.append(f"network namespace {inum}: {error}")
            continue
        found = join(rows, holders)
        inventory.found += [one for one in found if not pids or one.concerns(pids)]
    return inventory


def _rows(inum: int, paths: list[str], *, remainders: bool) -> list[SocketRow]:
    """By the first path that still leads there; none left: the namespace is gone."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            return sockdiag.dump(inum, path, remainders=remainders)
    return []


def join(rows: list[SocketRow], holders: dict[int, list[Holder]]) -> list[Found]:
    """Rows of one namespace with their holders and, where un-accepted, their listener."""
    listeners: dict[int, list[SocketRow]] = {}
    for row in rows:
        if row.state == TcpState.LISTEN:
            listeners.setdefault(row.sport, []).append(row)
    return [_found(row, holders, listeners.get(row.sport, [])) for row in rows]


def _found(row: SocketRow, holders: dict[int, list[Holder]], candidates: list[SocketRow]) -> Found:
    found = Found(row, tuple(holders.get(row.inode, ())) if row.inode else ())
    listener = _listener_of(row, candidates) if found.unaccepted else None
    if listener is None:
        return found
    return Found(row, (), listener, tuple(holders.get(listener.inode, ())))


def _listener_of(row: SocketRow, candidates: list[SocketRow]) -> SocketRow | None:
    """The listener that it belongs to: only if there is no other that it could be."""
    exact = [one for one in candidates if one.saddr == row.saddr]
    general = [one for one in candidates if one.saddr in _wildcards(row.saddr)]
    fitting = exact or general
    if row.state != TcpState.SYN_RECV:  # a request is not in the queue yet
        fitting = [one for one in fitting if one.recv_q] or fitting
    return fitting[0] if len(fitting) == 1 else None


def _wildcards(address: str) -> tuple[str, ...]:
    """What a listener may be bound to that takes connections to this address."""
    return ("::",) if ":" in address else ("0.0.0.0", "::")  # noqa: S104
