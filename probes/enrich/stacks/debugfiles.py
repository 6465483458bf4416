"""Where the debug information is that was split off a binary, and whether it is its own.

libdw's own search is not used: it does not look below a container's root, and asks a
debuginfod server when $DEBUGINFOD_URLS is set. Only files that are there are read.

Whoever owns the traced process may have made these files and the links to them. So
only regular files are opened (no fifo, no device), and a file is used only if it is
the one that belongs to the binary.
"""

from __future__ import annotations

import contextlib
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tcptrace.probes.enrich.stacks.elf import Elf

_CHUNK = 1 << 20  # bytes


class DebugFiles:
    """The search for one binary. ``path`` is the binary's, within each of ``roots``."""

    def __init__(self, elf: Elf, path: str, roots: Sequence[Path]) -> None:
        self._elf = elf
        self._roots = tuple(roots)
        self._path = path.lstrip("/")
        self._alternative: tuple[bytes, str] | None = None
        self.lacks_alternative = False
        """Part of the debug information is in a file that was not found."""
        self._holders = [root / self._path for root in roots] if self._path else []
        self._take_alternative(elf)

    def find(self, name: bytes | None, crc: int) -> int | None:
        """A descriptor of the file that libdw asks for; None: there is none.

        Args:
            name: as .gnu_debuglink or .gnu_debugaltlink give it; None: not given.
            crc: the checksum of the whole file, with .gnu_debuglink only.
        """
        if self._alternative and self._alternative[0] == name:
            return self._shared(*self._alternative)
        return self._separate(name, crc)

    def _separate(self, link: bytes | None, crc: int) -> int | None:
        for path, by_name in self._candidates(link):
            fd = open_regular(path)
            if fd is None:
                continue
            found = Elf(fd)
            if self._belongs(found, crc if by_name else None):
                self._holders = list(self._as_paths(path, fd))
                self._take_alternative(found)
                return fd
            os.close(fd)
        return None

    def _shared(self, name: bytes, identity: str) -> int | None:
        """What several debug files have in common (made by dwz)."""
        for path in (*self._by_build_id(identity), *self._beside_holder(name)):
            fd = open_regular(path)
            if fd is None:
                continue
            if Elf(fd).build_id == identity:
                self.lacks_alternative = False
                return fd
            os.close(fd)
        return None

    def _take_alternative(self, elf: Elf) -> None:
        name, _, identity = elf.section(b".gnu_debugaltlink").partition(b"\0")
        if name and identity:
            self._alternative = name, identity.hex()
            self.lacks_alternative = True

    def _beside_holder(self, name: bytes) -> Iterator[Path]:
        given = Path(os.fsdecode(name))
        if given.is_absolute():
            yield from (root / given.relative_to("/") for root in self._roots)
        else:
            yield from (holder.parent / given for holder in self._holders)

    def _as_paths(self, path: Path, fd: int) -> Iterator[Path]:
        """As it was found, and where a link has led to: below our root, or a container's."""
        yield path
        real = os.readlink(f"/proc/self/fd/{fd}")
        yield from (root / real.lstrip("/") for root in (Path("/"), *self._roots))

    def _candidates(self, link: bytes | None) -> Iterator[tuple[Path, bool]]:
        """In the order of gdb: path, and whether it was named by .gnu_debuglink."""
        identity = self._elf.build_id
        if identity:
            yield from ((path, False) for path in self._by_build_id(identity))
        if link and self._path and b"/" not in link:
            name = os.fsdecode(link)
            folder = Path(self._path).parent
            for root in self._roots:
                for place in (folder, folder / ".debug", "usr/lib/debug" / folder):
                    yield root / place / name, True
        if identity:
            yield _client_cache() / identity / "debuginfo", False

    def _by_build_id(self, identity: str) -> Iterator[Path]:
        place = f"usr/lib/debug/.build-id/{identity[:2]}/{identity[2:]}.debug"
        return (root / place for root in self._roots)

    def _belongs(self, found: Elf, crc: int | None) -> bool:
        if found.machine != self._elf.machine or not found.has_debug_information:
            return False
        if os.path.sameopenfile(found.fd, self._elf.fd):
            return False
        if self._elf.build_id or found.build_id:
            return self._elf.build_id == found.build_id
        return crc is not None and _checksum(found.fd) == crc


def _client_cache() -> Path:
    """Where debuginfod's clients keep what they have downloaded."""
    environment = os.environ
    if place := environment.get("DEBUGINFOD_CACHE_PATH"):
        return Path(place)
    cache = environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME", "/")) / ".cache"
    return Path(cache) / "debuginfod_client"


def _checksum(fd: int) -> int:
    crc = at = 0
    while chunk := os.pread(fd, _CHUNK, at):
        crc, at = zlib.crc32(chunk, crc), at + len(chunk)
    return crc


def open_regular(path: Path) -> int | None:
    """A descriptor to read it; None if it is no regular file, or cannot be opened.

    To open a device or a fifo for reading may do something or wait forever, so the
    first look is through a descriptor that opens nothing.
    """
    with contextlib.suppress(OSError, ValueError):
        look = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if stat.S_ISREG(os.fstat(look).st_mode):
                return os.open(f"/proc/self/fd/{look}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(look)
    return None
