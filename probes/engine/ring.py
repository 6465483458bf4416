"""Reading the ring buffer straight from its mapping, in batches.

Layout of BPF_MAP_TYPE_RINGBUF (kernel/bpf/ringbuf.c): a page with the consumer's
position, a page with the producer's, then the data, mapped twice in a row so
that no record wraps. Each record has an 8-byte header: its length with two flag
bits, and a page offset. All of tcptrace's records have one size, so a run of
finished ones is one ``iter_unpack``.
"""

from __future__ import annotations

import mmap
import os
import select
import struct
import threading
from collections import deque
from collections.abc import Sequence

from tcptrace.probes.engine.layout import Layout

_PAGE = os.sysconf("SC_PAGESIZE")
_BUSY, _DISCARDED = 1 << 31, 1 << 30
_BATCH_ROWS = 2048
_BACKLOG_BYTES = 64 << 20
_LENGTH = struct.Struct("=I")

Row = tuple[object, ...]


class Ring:
    """The consumer's end.

    The kernel wakes a sleeping reader only for the first record after it has
    caught up. A reader that lets a few milliseconds pass before it drains is
    therefore woken once per batch, not once per event.
    """

    def __init__(self, fd: int, size: int, layout: Layout) -> None:
        self.fd = fd
        self._size = size
        self._layout = layout
        self._stride = 8 + (layout.size + 7) // 8 * 8
        padding = self._stride - 8 - layout.size
        self._decoder = struct.Struct(f"=I4x{layout.format}{padding}x")
        self._consumer = mmap.mmap(fd, _PAGE)
        self._producer = mmap.mmap(fd, _PAGE + 2 * size, prot=mmap.PROT_READ, offset=_PAGE)
        self._fence = threading.Lock()
        # Whole words: struct would read and write byte by byte, and the kernel, or we, would
        # now and then see half of an old position and half of a new one.
        self._consumed = memoryview(self._consumer).cast("Q")
        self._produced = memoryview(self._producer)[:_PAGE].cast("Q")
        self._at = self._consumed[0]
        self._backlog: deque[bytes] = deque()
        self._waiting = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Field names of a row, in order."""
        return self._layout.names

    def fill(self) -> float:
        """Share of the buffer that waits to be read, 0 to 1."""
        return float((self._produced[0] - self._at) / self._size)

    def drain(self, limit: int = _BATCH_ROWS) -> list[Row]:
        """The next finished records, at most ``limit``, as tuples in the order of ``names``.

        All that the ring holds is first moved to a backlog of raw bytes, which is
        quick: a burst then waits there and does not fill the ring.
        """
        self.pump()
        raw = self._backlog.popleft() if self._backlog else b""
        end = limit * self._stride
        if len(raw) > end:
            self._backlog.appendleft(raw[end:])
        self._waiting -= min(len(raw), end)
        rows = self._decoder.iter_unpack(raw[:end])
        return [row[1:] for row in rows if not row[0] & _DISCARDED]

    def pump(self) -> None:
        """Move what is finished from the ring to the backlog, as long as that has room."""
        while self._waiting < _BACKLOG_BYTES:
            start = _PAGE + self._at % self._size
            behind = (self._produced[0] - self._at) // self._stride
            count = self._finished(start, min(behind, _BATCH_ROWS))
            if not count:
                return
            # The lengths were read above with their busy bit clear; on arm64 the contents must
            # not be read ahead of that. A lock is the acquire barrier that Python can express.
            with self._fence:
                raw = self._producer[start : start + count * self._stride]
            self._backlog.append(raw)
            self._waiting += len(raw)
            self._at += len(raw)
            self._consumed[0] = self._at

    @property
    def has_backlog(self) -> bool:
        """Whether ``drain`` has more to give at once."""
        return bool(self._backlog)

    def close(self) -> None:
        self._consumed.release()
        self._produced.release()
        self._consumer.close()
        self._producer.close()

    def _finished(self, start: int, count: int) -> int:
        """How many of the next records are complete: a writer may still be at one of them."""
        lengths = self._producer[start : start + count * self._stride]
        for index in range(count):
            if _LENGTH.unpack_from(lengths, index * self._stride)[0] & _BUSY:
                return index
        return count


class Waiter:
    """Sleeps until the ring or one of the other descriptors has something."""

    def __init__(self, ring_fd: int, others: Sequence[int]) -> None:
        self._poll = select.epoll()
        self._poll.register(ring_fd, select.EPOLLIN)
        for fd in others:
            self._poll.register(fd, select.EPOLLIN)
        self._ring_fd = ring_fd

    def wait(self, timeout_s: float) -> set[int]:
        """Ready descriptors; empty after the timeout or an interrupted wait."""
        try:
            return {fd for fd, _ in self._poll.poll(timeout_s)}
        except InterruptedError:
            return set()

    def forget(self, fds: set[int]) -> None:
        """Do not report these any more."""
        for fd in fds:
            self._poll.unregister(fd)

    def close(self) -> None:
        self._poll.close()
