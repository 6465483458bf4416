"""The helper process's life: copies of stacks from the ring buffer, questions from the tracer.

It sends ``(id, Stack)`` pairs: unasked for each copy, and for each id it was asked about.
Negative numbers are kernel stacks: -1 is number 0.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterable
from dataclasses import dataclass

from tcptrace.probes.engine.forked import Channel
from tcptrace.probes.engine.ring import Ring, Row, Waiter
from tcptrace.probes.enrich.stacks.kernel import KernelStacks
from tcptrace.probes.enrich.stacks.resolver import KernelSide, Resolver
from tcptrace.probes.enrich.stacks.stack import Stack

_BATCH = 16
_FOREVER_S = 3600.0


def serve(channel: Channel, kernel: KernelSide) -> None:
    """Until the tracer closes its end of the channel."""
    _lift_file_limit()
    resolver, kernel_stacks = Resolver(kernel), KernelStacks(kernel.kernel_stacks)
    copies = _Copies(kernel)
    waiter = Waiter(channel.fd, copies.fds)
    while True:
        waiter.wait(0.0 if copies.has_more else _FOREVER_S)
        rows = copies.drain()
        if rows:
            channel.send([resolver.snapshot(row) for row in rows])
        if channel.has_news():
            try:
                asked = channel.receive()
            except EOFError:
                return
            if isinstance(asked, Hold):
                for pid in asked.pids:
                    resolver.hold(pid)
            else:
                channel.send(list(_answers(asked, resolver, kernel_stacks)))


@dataclass(frozen=True, slots=True)
class Hold:
    """A message to the helper: read the mappings of these processes now."""

    pids: frozenset[int]


class _Copies:
    """The ring buffer of copied stacks, if there is one."""

    def __init__(self, kernel: KernelSide) -> None:
        self._ring = (
            Ring(kernel.snapshots, kernel.snapshots_bytes, kernel.snapshot)
            if kernel.snapshot
            else None
        )

    @property
    def fds(self) -> list[int]:
        return [self._ring.fd] if self._ring else []

    @property
    def has_more(self) -> bool:
        return self._ring is not None and self._ring.has_backlog

    def drain(self) -> list[Row]:
        return self._ring.drain(_BATCH) if self._ring else []


def _answers(
    asked: Iterable[int], resolver: Resolver, kernel_stacks: KernelStacks
) -> Iterable[tuple[int, Stack]]:
    for id_ in asked:
        yield id_, kernel_stacks.stack(-1 - id_) if id_ < 0 else resolver.chain(id_)


def _lift_file_limit() -> None:
    """Binaries of many processes are held open."""
    with contextlib.suppress(ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
