"""Perf maps: the names of code that a language runtime makes while it runs.

A runtime that was asked to appends a line ``HEXSTART HEXSIZE NAME`` for each piece of
code to a file. Nothing is taken out again: code that is moved or freed is told by a
later line over the same addresses.

The file stays open, so it is readable after the process has ended. Only an index of
the newest MAX_LINES lines is kept, 16 bytes each (8 MB a process). A large file is
read from its end backwards, with pauses; the names there are unknown until it is done.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import heapq
import os
import re
import time
from array import array
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from tcptrace.probes.enrich import procfs
from tcptrace.probes.enrich.stacks import runtime
from tcptrace.probes.enrich.stacks.frame import Frame

MAX_LINES = 500_000
STEP_BYTES = 4 << 20
"""Read in one go, in about 0.1 s. Then nothing is read for as long as it took."""
RETRY_S = 0.2
_MARK_BYTES = 64
_LONGEST_LINE = 2048
_LINE = re.compile(
    rb"^(?:0x)?0*([\da-fA-F]{1,15}) (?:0x)?0*([1-9a-fA-F][\da-fA-F]{,6}) (.+)", re.MULTILINE
)


class Entry(NamedTuple):
    """One piece of code: its address, its bytes, and what the runtime calls it."""

    start: int
    size: int
    name: str


@functools.lru_cache(maxsize=256)
def _shared(process: tuple[int, int]) -> PerfMap:
    return PerfMap(process[0])


def perf_map(pid: int) -> PerfMap:
    """One for all who ask about the same process."""
    process = procfs.process(pid)
    return _shared((pid, process.start_ns if process else 0))


class PerfMap:
    """The perf map of one process, which need not have one yet."""

    def __init__(self, pid: int) -> None:
        self._fd = -1
        self._pid, self._module = pid, "jit"
        process = procfs.process(pid)
        self._start_ns = process.start_ns if process else 0
        parent = runtime.forked_from(pid)
        self._parent = perf_map(parent) if parent else None
        self._next_try = self._next_step = 0.0
        self.hold()

    def hold(self) -> bool:
        """Whether there is one. From then on it is open, whatever becomes of the process."""
        if self._fd < 0:
            self._open()
        return self._fd >= 0

    def lookup(self, address: int) -> str | None:
        """What the runtime calls the code at this address."""
        entry = self.find(address)
        return entry.name if entry else None

    def frame(self, address: int) -> Frame | None:
        """The function at this address; marked as guessed if only the parent has told of it.

        A forked child runs on in code that was named before the fork, in its parent's file.
        """
        entry = self.find(address)
        if entry:
            return runtime.named(entry.name, self._module)
        above = self._parent.frame(address) if self._parent else None
        return replace(above, guessed="by its parent's perf map") if above else None

    def find(self, address: int) -> Entry | None:
        """The newest code at this address, unless something newer overwrote a part of it."""
        if not self.hold():
            return None
        self._follow()
        return self._indexed(address) or (self._indexed(address) if self._step_back() else None)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __del__(self) -> None:
        self.close()

    def _open(self) -> None:
        now = time.monotonic()
        if now < self._next_try:
            return
        self._next_try = now + RETRY_S
        with contextlib.suppress(OSError):
            fd = runtime.open_perf_map(self._pid, self._start_ns)
            self.close()
            self._fd = fd
            self._restart(os.fstat(fd).st_size)
            if known := runtime.detect(self._pid):
                self._module = known.module

    def _restart(self, size: int) -> None:
        """Forget everything; read from here on in both directions."""
        self._blocks: list[_Block] = []  # in the file's order
        self._head = self._seen = size

    def _follow(self) -> None:
        """Take in what was written since."""
        if not os.fstat(self._fd).st_nlink:
            self._open()  # another one may stand in its place
        size = os.fstat(self._fd).st_size
        if size != self._seen:
            self._seen = size
            if self._blocks and self._is_longer(size):
                self._append(size)
            else:
                self._restart(size)

    def _is_longer(self, size: int) -> bool:
        """By an amount that can be read in one go, and with the same text before that."""
        last = self._blocks[-1]
        known = os.pread(self._fd, len(last.mark), last.end - len(last.mark))
        return known == last.mark and 0 <= size - last.end <= STEP_BYTES

    def _append(self, size: int) -> None:
        """Blocks of like size are joined, so that there are few of them."""
        blocks = self._blocks
        begin = blocks[-1].end
        while blocks and len(blocks[-1]) <= size - begin <= STEP_BYTES - len(blocks[-1]):
            begin = blocks.pop().begin
        blocks.append(_Block(self._fd, begin, size))
        while len(blocks) > 1 and self._lines() > MAX_LINES:
            del blocks[0]
            self._head = 0

    def _step_back(self) -> bool:
        """Read on towards the head of the file, if it is time for that."""
        before = time.monotonic()
        if not self._head or before < self._next_step or self._lines() >= MAX_LINES:
            return False
        block = _Block(self._fd, max(0, self._head - STEP_BYTES), self._head)
        self._blocks.insert(0, block)
        self._head = block.begin
        after = time.monotonic()
        self._next_step = after + (after - before)
        return True

    def _lines(self) -> int:
        return sum(len(block.starts) for block in self._blocks)

    def _indexed(self, address: int) -> Entry | None:
        newer: list[_Block] = []
        for block in reversed(self._blocks):
            place = block.place(address)
            if place is not None:
                return self._entry(address, block, place, newer)
            newer.append(block)
        return None

    def _entry(self, address: int, block: _Block, place: int, newer: list[_Block]) -> Entry | None:
        """With its name from the file, if that still says the same."""
        line = _LINE.match(os.pread(self._fd, _LONGEST_LINE, block.begin + place))
        start, size = (int(line[1], 16), int(line[2], 16)) if line else (0, 0)
        if not line or not start <= address < start + size:
            self._restart(os.fstat(self._fd).st_size)
            return None
        others = [other.overlaps(start, start + size) for other in newer]
        if any(others) or block.overlaps(start, start + size, place):
            return None
        return Entry(start, size, procfs.comm_text(line[3]))


class _Block:
    """The whole lines of a stretch of the file, as pieces of memory that do not overlap.

    Of each address only the newest line is kept, by its place in the stretch.
    """

    def __init__(self, fd: int, begin: int, end: int) -> None:
        before = min(begin, 1)  # that byte tells whether a line starts here
        data = os.pread(fd, end - begin + before, begin - before)
        first = data.find(b"\n") + 1 if before else 0
        last = max(first, data.rfind(b"\n") + 1)
        self.begin, self.end = begin - before + first, begin - before + last
        self.mark = data[max(0, last - _MARK_BYTES) : last]
        self.starts, self._sizes, self._places = array("Q"), array("I"), array("I")
        for start, size, place in _pieces(data[first:last]):
            self.starts.append(start)
            self._sizes.append(size)
            self._places.append(place)

    def __len__(self) -> int:
        return self.end - self.begin

    def place(self, address: int) -> int | None:
        index = bisect.bisect_right(self.starts, address) - 1
        if index < 0 or address >= self.starts[index] + self._sizes[index]:
            return None
        return self._places[index]

    def overlaps(self, start: int, end: int, but: int = -1) -> bool:
        """Whether another line than that at ``but`` is the newest anywhere between the two."""
        first = max(0, bisect.bisect_right(self.starts, start) - 1)
        return any(
            self._places[index] != but and start < self.starts[index] + self._sizes[index]
            for index in range(first, bisect.bisect_left(self.starts, end))
        )


def _pieces(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(start, size, place of the newest line there), in order."""
    lines = [(int(line[1], 16), line.start(), int(line[2], 16)) for line in _LINE.finditer(data)]
    over: list[tuple[int, int]] = []  # that reach beyond ``at``: (-place, end), the newest first
    at = 0
    for start, place, size in [*sorted(lines), (1 << 64, 0, 0)]:
        while over and at < start:
            newest, end = over[0]
            if end > at:
                yield at, min(end, start) - at, -newest
                at = min(end, start)
            if end <= at:
                heapq.heappop(over)
        at = start
        heapq.heappush(over, (-place, start + size))
