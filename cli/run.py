"""The loop of a tracing command: read in batches, publish, write, until something ends it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from tcptrace.cli.sinks.base import Sink
from tcptrace.cli.spawned import Spawned
from tcptrace.probes.diagnose.engine import Diagnosis
from tcptrace.probes.engine.errors import UsageError
from tcptrace.probes.engine.ring import Waiter
from tcptrace.probes.publish import Publisher
from tcptrace.probes.states import Event
from tcptrace.probes.tracer import Tracer

_BATCH_S = 0.003
"""After a wake-up, time for more records to come: one wake-up per batch, not per record."""
_BUSY_FILL = 0.25
"""With so much of the ring buffer in use there is no waiting."""
_CHUNK = 1000
"""Existing sockets written at a time: meanwhile the ring buffer fills."""
_TICK_S = 0.2
_KEPT_BACK_S = 0.02
_GRACE_S = 1.0
"""After the last traced process ended: time for its sockets to finish."""


@dataclass(slots=True)
class Limits:
    """What ends the run by itself."""

    duration_s: float | None = None
    count: int | None = None


@dataclass(slots=True)
class Ready:
    """Whom to tell that everything is attached."""

    fd: int | None = None
    file: Path | None = None

    def signal(self) -> None:
        if self.fd is not None:
            os.write(self.fd, b"ready\n")
            os.close(self.fd)
        if self.file is not None:
            fresh = self.file.with_name(f".{self.file.name}.{os.getpid()}")
            fresh.write_text("ready\n")
            fresh.replace(self.file)


@dataclass
class Run:
    """One tracing run. ``go`` returns what ended it."""

    tracer: Tracer
    publisher: Publisher
    sink: Sink
    limits: Limits
    ready: Ready
    pids: Iterable[int] = ()
    spawned: Spawned | None = None
    diagnosis: Diagnosis | None = None
    _why: str | None = field(default=None, init=False)

    def go(self) -> str:
        """Trace until a limit, a signal or a closed pipe; writes the ``end`` event."""
        wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        old_wakeup = signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        old = {number: signal.signal(number, self._on_signal) for number in _ENDING}
        try:
            return self._go(wake_r)
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(old_wakeup)
            os.close(wake_r)
            os.close(wake_w)

    def _go(self, wake_fd: int) -> str:
        pidfds = _pidfds(self.pids)
        others = [wake_fd, *pidfds, *([self.spawned.pidfd] if self.spawned else [])]
        waiter = Waiter(self.tracer.ring_fd, others)
        try:
            self._begin()
            self._loop(waiter, pidfds)
            self._drain()
            self.sink.write([self.publisher.end(self._why or "", self.tracer.lost)])
        except BrokenPipeError:
            self._why = "the reader went away"
        finally:
            waiter.close()
            for fd in pidfds:
                os.close(fd)
        return self._why or ""

    def _begin(self) -> None:
        if self.spawned:
            self.tracer.trace_also(self.spawned.pid)
        first = self.tracer.start()
        start = self.publisher.start(self.tracer.standing.described())
        self.ready.signal()  # before the first write, which may block on a full pipe
        self.sink.write([start])
        for at in range(0, len(first), _CHUNK):
            self._write_events(first[at : at + _CHUNK])
            self.tracer.stash()
        if self.spawned:
            self.spawned.go()

    def _loop(self, waiter: Waiter, pidfds: set[int]) -> None:
        started = time.monotonic()
        deadline = started + self.limits.duration_s if self.limits.duration_s else None
        next_tick, alive = started + _TICK_S, set(pidfds)
        ends_at: float | None = None
        while self._why is None:
            ready = waiter.wait(self._patience(next_tick, deadline, ends_at))
            if self.tracer.ring_fd in ready and self.tracer.fill() < _BUSY_FILL:
                time.sleep(_BATCH_S)
            self._write_batch()
            now = time.monotonic()
            if now >= next_tick:
                self._tick()
                next_tick = now + _TICK_S
            alive -= ready
            if ends_at is None and self._all_ended(pidfds, alive):
                ends_at = now + _GRACE_S
            waiter.forget(ready & pidfds)
            self._check_limits(now, deadline, ends_at)

    def _patience(self, *moments: float | None) -> float:
        """How long nothing needs to be done, unless something happens."""
        left = max(min(filter(None, moments)) - time.monotonic(), 0.0)
        return min(left, _KEPT_BACK_S) if self.tracer.keeps_back else left

    def _all_ended(self, pidfds: set[int], alive: set[int]) -> bool:
        return bool(pidfds) and not alive and not self.tracer.traces_anybody()

    def _check_limits(self, now: float, deadline: float | None, ends_at: float | None) -> None:
        if self.spawned and (how := self.spawned.ended()):
            self._why = how
        elif deadline is not None and now >= deadline:
            self._why = f"{self.limits.duration_s:g} s are over"
        elif ends_at is not None and now >= ends_at:
            self._why = "the traced processes ended"
        elif self.limits.count and self.publisher.states >= self.limits.count:
            self._why = f"{self.limits.count} transitions seen"

    def _write_batch(self) -> None:
        self._write_events(self.tracer.read())
        while self.tracer.is_behind and self._why is None:
            self._write_events(self.tracer.read())

    def _write_events(self, events: list[Event]) -> None:
        published = self.publisher.publish(events, self.limits.count)
        if published and self.diagnosis:
            published += self.publisher.publish(self.diagnosis.feed(published))
        if published:
            self.sink.write(published)

    def _write_findings(self, findings: list[Event]) -> None:
        if findings:
            self.sink.write(self.publisher.publish(findings))

    def _tick(self) -> None:
        self.tracer.tell_waiting_children()
        if self.diagnosis:
            self._write_findings(self.diagnosis.tick(time.time()))
        self._write_losses()

    def _drain(self) -> None:
        """What was on its way when the end came: hooks off first, so that it does end."""
        self.tracer.tell_waiting_children(at_once=True)
        self.tracer.detach()
        self._write_events(self.tracer.rest())
        if self.diagnosis:
            self._write_findings(self.diagnosis.finish())
        self._write_losses()

    def _write_losses(self) -> None:
        losses = self.tracer.losses()
        if losses:
            self.sink.write(self.publisher.publish(losses))

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._why = self._why or signal.Signals(number).name


def _pidfds(pids: Iterable[int]) -> set[int]:
    """To wait for their ends."""
    found = set()
    for pid in pids:
        try:
            found.add(os.pidfd_open(pid))
        except ProcessLookupError as error:
            for fd in found:
                os.close(fd)
            raise UsageError(f"process {pid} has ended before tracing began") from error
    return found


_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
