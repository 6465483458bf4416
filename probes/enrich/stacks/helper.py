"""The helper process's life: copies of stacks from the ring buffer, questions from the tracer.

It sends ``(id, Stack)`` pairs: unasked for each copy, and for each id it was asked about.
Negative numbers are kernel stacks: -1 is number 0.
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections import deque
from dataclasses import dataclass

from tcptrace.probes.engine.forked import Channel
from tcptrace.probes.engine.ring import Ring, Row, Waiter
from tcptrace.probes.enrich.stacks.kernel import KernelStacks
from tcptrace.probes.enrich.stacks.kernelside import KernelSide
from tcptrace.probes.enrich.stacks.resolver import Job, Resolver
from tcptrace.probes.enrich.stacks.space import Region

_BATCH = 256
_NAMING_S = 0.002
"""After so long it is looked whether another copy has come."""
_FOREVER_S = 3600.0


def serve(channel: Channel, kernel: KernelSide) -> None:
    """Until the tracer closes its end of the channel."""
    _lift_file_limit()
    helper = _Helper(channel, kernel)
    with contextlib.suppress(EOFError):
        while True:
            helper.turn()


@dataclass(frozen=True, slots=True)
class Hold:
    """A message to the helper: read the mappings of these processes now."""

    pids: frozenset[int]
    warm: bool
    """Also read the tables of their programs, when there is nothing else to do."""


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


class _Helper:
    """Copies come first: the kernel half waits for their rows. Names come last, one at a time."""

    def __init__(self, channel: Channel, kernel: KernelSide) -> None:
        self._channel = channel
        self._resolver = Resolver(kernel)
        self._kernel_stacks = KernelStacks(kernel.kernel_stacks)
        self._copies = _Copies(kernel)
        self._waiter = Waiter(channel.fd, self._copies.fds)
        self._jobs: deque[Job] = deque()
        self._cold: deque[Region] = deque()

    def turn(self) -> None:
        """Wait for something to do, and do it."""
        busy = self._jobs or self._cold or self._copies.has_more
        idle = not self._waiter.wait(0.0 if busy else _FOREVER_S)
        self._jobs += [self._resolver.snapshot(row) for row in self._copies.drain()]
        if self._channel.has_news():
            self._hear(self._channel.receive())
        if not self._copies.has_more:
            self._name_some()
        if idle and not self._jobs and self._cold:
            self._cold.popleft().warm()

    def _hear(self, message: Hold | list[int]) -> None:
        if isinstance(message, Hold):
            for pid in message.pids:
                regions = self._resolver.hold(pid)
                self._cold += [one for one in regions if message.warm or _is_libc(one)]
            if message.warm:
                self._channel.send([])  # the tracer waits for that
            return
        if kernel := [number for number in message if number < 0]:
            self._channel.send([(one, self._kernel_stacks.stack(-1 - one)) for one in kernel])
        self._jobs += [self._resolver.chain(number) for number in message if number >= 0]

    def _name_some(self) -> None:
        until, named = time.monotonic() + _NAMING_S, []
        while self._jobs and time.monotonic() < until:
            job = self._jobs.popleft()
            named.append((job.number, job.stack()))
        if named:
            self._channel.send(named)


def _is_libc(region: Region) -> bool:
    """In nearly every stack, and large."""
    return region.name.startswith("libc.")


def _lift_file_limit() -> None:
    """Binaries of many processes are held open."""
    with contextlib.suppress(ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
