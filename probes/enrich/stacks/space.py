"""What a process has mapped executable, with the files held open from first sight.

So a process that ends, or a file that is deleted or replaced, can still be read.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from tcptrace.probes.engine.constants import Row as RowKind
from tcptrace.probes.enrich.stacks import runtime
from tcptrace.probes.enrich.stacks.binary import Binary
from tcptrace.probes.enrich.stacks.frame import Frame
from tcptrace.probes.enrich.stacks.perfmap import PerfMap, perf_map
from tcptrace.probes.enrich.stacks.row import FRAME_POINTER, LOST, CallRow
from tcptrace.probes.enrich.stacks.trampoline import trampoline_row

_MAX_FILES = 1024
_MAX_NAMED = 32768


class File:
    """A mapped file, held open. Its headers and tables are read at first use.

    Only so are the mappings of a process read quickly enough that lives for a moment.
    """

    def __init__(self, fd: int, path: str, roots: list[Path]) -> None:
        self._open = fd, path, roots

    @functools.cached_property
    def binary(self) -> Binary:
        fd, path, roots = self._open
        self._open = (-1, path, roots)
        return Binary(fd, PurePath(path).name, roots, path)

    def __del__(self) -> None:
        if self._open[0] >= 0:
            os.close(self._open[0])


@dataclass(frozen=True, slots=True)
class Region:
    """One executable mapping. ``start`` and ``end`` are addresses; ``offset`` into the file."""

    start: int
    end: int
    offset: int
    name: str
    file: File | None

    def warm(self) -> None:
        """Have the tables of its file read: the first look up takes longest."""
        address = self.address_in_file((self.start + self.end) // 2)
        if self.file and address is not None:
            self.file.binary.frames(address)

    def address_in_file(self, address: int) -> int | None:
        """As it was linked; None where there is no file, or it does not say."""
        if self.file is None:
            return None
        return self.file.binary.address_of(address - self.start + self.offset)


class Files:
    """Mapped files, shared by all that map them; the same file is recognised by its inode."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[int, ...], File] = OrderedDict()

    def of(self, fd: int, path: str, roots: list[Path]) -> File:
        """Takes over ``fd``."""
        status = os.fstat(fd)
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        known = self._open.get(key)
        if known:
            os.close(fd)
            self._open.move_to_end(key)
            return known
        fresh = self._open[key] = File(fd, path, roots)
        while len(self._open) > _MAX_FILES:
            self._open.popitem(last=False)
        return fresh


class Space:
    """The executable regions of one process image, and where its JIT-compiled functions are told.

    Raises:
        OSError: the process is gone.
    """

    def __init__(self, pid: int, files: Files) -> None:
        self.pid = pid
        self.regions = sorted(_regions(pid, files), key=lambda region: region.start)
        if not self.regions:
            raise ProcessLookupError(pid)
        self._starts = [region.start for region in self.regions]
        self._named: dict[int, list[Frame]] = {}
        self._perf_map: PerfMap | None = None
        self._runtime: runtime.Runtime | None = None
        self.python_trouble: str | None = None
        """Why Python frames cannot be read; empty: they can; None: nobody has tried."""

    def look_closer(self) -> None:
        """What may be read once it is certain that these are the mappings: it takes longer."""
        self._perf_map = perf_map(self.pid)
        self._runtime = runtime.detect(self.pid)

    def region(self, address: int) -> Region | None:
        index = bisect.bisect_right(self._starts, address) - 1
        if index >= 0 and address < self.regions[index].end:
            return self.regions[index]
        return None

    def is_fixed(self, address: int) -> bool:
        """Whether it lies in a file, which stays mapped there as long as the image is the same."""
        region = self.region(address)
        return region is not None and region.file is not None

    def row(self, address: int) -> CallRow:
        """How to leave the function that is executed at this address."""
        region = self.region(address)
        if region is None:
            return LOST
        at = region.address_in_file(address)
        if region.file is None or at is None:
            return self._compiled_row(address)
        row = region.file.binary.row(at) or FRAME_POINTER
        return row if row.fits else LOST

    @property
    def runs_python(self) -> bool:
        return self._runtime is not None and self._runtime.name == "CPython"

    @property
    def note(self) -> str:
        """What the language runtime needs, to tell the names of its own functions; or empty."""
        found = self._runtime
        if found is None or not found.needs or self.python_trouble == "":
            return ""
        named = f"{found.name} {found.version}".strip()
        if self.runs_python and self.python_trouble is None:
            return f"[{named}: its functions are shown with -p, or if --stack user is given]"
        trouble = f"{self.python_trouble}; " if self.python_trouble else ""
        return f"[{named}: {trouble}{found.needs}]"

    def _compiled_row(self, address: int) -> CallRow:
        """Of code that a runtime made: it has no table."""
        entry = self._perf_map.find(address) if self._perf_map else None
        known = entry and trampoline_row(self.pid, entry.start, entry.name, address)
        return known or FRAME_POINTER

    def named(self, address: int) -> list[Frame]:
        """The function at this address, preceded by what was inlined there; empty: no code."""
        region = self.region(address)
        if region is None:
            return []
        at = region.address_in_file(address)
        if region.file is None or at is None:
            compiled = self._perf_map.frame(address) if self._perf_map else None
            return [compiled or Frame(None, region.name, address)]
        known = self._named.get(address)
        if known is None:
            known = region.file.binary.frames(at)
            if len(self._named) >= _MAX_NAMED:
                self._named.clear()
            self._named[address] = known
        return known


def _regions(pid: int, files: Files) -> Iterator[Region]:
    roots = [Path(f"/proc/{pid}/root"), Path("/")]
    for line in Path(f"/proc/{pid}/maps").read_text(errors="backslashreplace").splitlines():
        span, permissions, offset, _device, inode, *rest = line.split(maxsplit=5)
        if "x" not in permissions:
            continue
        start, end = (int(part, 16) for part in span.split("-"))
        path = rest[0].removesuffix(" (deleted)") if rest else "[anonymous]"
        file = None
        if int(inode):
            with contextlib.suppress(OSError):
                # maps pads the addresses of programs below 4 GiB with zeros, map_files does not
                link = f"/proc/{pid}/map_files/{start:x}-{end:x}"
                file = files.of(os.open(link, os.O_RDONLY | os.O_CLOEXEC), path, roots)
        yield Region(start, end, int(offset, 16), PurePath(path).name, file)


def guesses(row: CallRow) -> bool:
    """Whether the frame that it leads to is only probable."""
    return row.kind == RowKind.GUESS
