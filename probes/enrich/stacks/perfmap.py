"""Perf maps: the names of code that a language runtime makes while it runs.

A runtime that was asked to appends a line ``HEXSTART HEXSIZE NAME`` for each piece of
code to a file. Nothing is taken out again: code that is moved or freed is told by a
later line over the same addresses.

The file stays open, so it is readable after the process has ended. Only an index of
the newest MAX_LINES lines is kept, 16 bytes each. Reading back through a large file
takes at most a fifth of one CPU; the names there are unknown until it is done.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import io
import os
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
"""Read in one go, in about 50 ms."""
RETRY_S = 0.2
_PAUSE = 4
"""After a step nothing is read for so many times as long as it took."""
_MARK_BYTES = 64
_LONGEST_LINE = 2048
_LARGEST_CODE = 1 << 28


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
        status = os.fstat(self._fd)
        if not status.st_nlink:
            self._open()  # another one may stand in its place
        elif status.st_size != self._seen:
            self._seen = status.st_size
            if self._blocks and self._is_longer(status.st_size):
                self._append(status.st_size)
            else:
                self._restart(status.st_size)

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
        self._next_step = after + _PAUSE * (after - before)
        return True

    def _lines(self) -> int:
        return sum(len(block.starts) for block in self._blocks)

    def _indexed(self, address: int) -> Entry | None:
        newer: list[_Block] = []
        for block in reversed(self._blocks):
            index = block.at(address)
            if index is not None:
                start, end = block.starts[index], block.starts[index] + block.sizes[index]
                replaced = any(other.touches(start, end) for other in newer)
                return None if replaced else self._entry(block, index)
            newer.append(block)
        return None

    def _entry(self, block: _Block, index: int) -> Entry | None:
        """With its name from the file, if that still says the same."""
        line = os.pread(self._fd, _LONGEST_LINE, block.begin + block.places[index])
        words = line.partition(b"\n")[0].split(b" ", 2)
        if _span(words) == (block.starts[index], block.sizes[index]):
            return Entry(block.starts[index], block.sizes[index], procfs.comm_text(words[2]))
        self._restart(os.fstat(self._fd).st_size)
        return None


class _Block:
    """The whole lines of a stretch of the file, without those that a later one replaces."""

    def __init__(self, fd: int, begin: int, end: int) -> None:
        before = min(begin, 1)  # that byte tells whether a line starts here
        data = os.pread(fd, end - begin + before, begin - before)
        first = data.find(b"\n") + 1 if before else 0
        last = max(first, data.rfind(b"\n") + 1)
        self.begin, self.end = begin - before + first, begin - before + last
        self.mark = data[max(0, last - _MARK_BYTES) : last]
        kept = _unreplaced(sorted(_parsed(data[first:last])))
        self.starts = array("Q", [start for start, _, _ in kept])
        self.places = array("I", [place for _, place, _ in kept])
        self.sizes = array("I", [size for _, _, size in kept])

    def __len__(self) -> int:
        return self.end - self.begin

    def at(self, address: int) -> int | None:
        index = bisect.bisect_right(self.starts, address) - 1
        return index if index >= 0 and address < self.starts[index] + self.sizes[index] else None

    def touches(self, start: int, end: int) -> bool:
        """Whether any code here lies between the two addresses."""
        index = bisect.bisect_left(self.starts, end) - 1
        return index >= 0 and start < self.starts[index] + self.sizes[index]


_Line = tuple[int, int, int]  # start, place in the block, size


def _parsed(data: bytes) -> Iterator[_Line]:
    place = 0
    for line in io.BytesIO(data):
        span = _span(line.split(b" ", 2))
        if span:
            yield span[0], place, span[1]
        place += len(line)


def _span(words: list[bytes]) -> tuple[int, int] | None:
    """None if it is no line of a perf map."""
    try:
        start, size = int(words[0], 16), int(words[1], 16)
    except (ValueError, IndexError):
        return None
    if len(words) < 3 or not 0 < size <= _LARGEST_CODE or not 0 <= start < 1 << 63:
        return None
    return start, size


def _unreplaced(lines: list[_Line]) -> list[_Line]:
    """Of those that overlap the one that stands last; sorted by address before and after."""
    kept: list[_Line] = []
    for line in lines:
        while kept and kept[-1][0] + kept[-1][2] > line[0] and kept[-1][1] < line[1]:
            kept.pop()
        if not kept or kept[-1][0] + kept[-1][2] <= line[0]:
            kept.append(line)
    return kept
