"""Symbols of a running process, read from its memory alone.

A program's dynamic symbols are mapped with it, so no file is needed: it may lie in a
container, or be deleted or replaced since. Format: the ELF gABI, and for DT_GNU_HASH
binutils' bfd/elflink.c. Nothing is ever written.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

_PT_LOAD, _PT_DYNAMIC = 1, 2
_ET_EXEC = 2
_DT_STRTAB, _DT_SYMTAB, _DT_GNU_HASH = 5, 6, 0x6FFFFEF5
_ELF_64_LITTLE = b"\x7fELF\x02\x01"
_MOST_HEADERS, _MOST_TAGS, _MOST_CHAINED = 64, 256, 4096
_U32, _U64, _S64 = struct.Struct("=I"), struct.Struct("=Q"), struct.Struct("=q")
_ELF_HEADER = struct.Struct("=16xH14xQ14xHH6x")  # type; program headers: where, size, count
_PROGRAM_HEADER = struct.Struct("=I12xQ16xQ8x")  # type, address, size in memory
_DYNAMIC = struct.Struct("=QQ")
_SYMBOL = struct.Struct("=I4xQ8x")  # name, value
_GNU_HASH = struct.Struct("=IIII")  # buckets, first symbol, words of the filter, its shift


class Memory:
    """What a process has in memory, and only as long as it runs this very program.

    Raises:
        OSError: the process is gone, or the kernel does not allow it.
    """

    def __init__(self, pid: int) -> None:
        self._fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._fd)

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes.

        Raises:
            OSError: nothing, or less, is mapped there.
        """
        if not 0 <= address < 1 << 63:
            raise OSError(f"no address: {address:#x}")
        raw = os.pread(self._fd, size, address)
        if len(raw) != size:
            raise OSError(f"{size} bytes at {address:#x} are not mapped")
        return raw

    def u32(self, address: int) -> int:
        return int(_U32.unpack(self.read(address, _U32.size))[0])

    def s64(self, address: int) -> int:
        return int(_S64.unpack(self.read(address, _S64.size))[0])

    def u64(self, address: int) -> int:
        return int(_U64.unpack(self.read(address, _U64.size))[0])


def modules(pid: int) -> list[tuple[int, str]]:
    """Where each mapped file begins, and its path, the program first."""
    found: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/maps").read_text(errors="backslashreplace").splitlines():
        span, _, offset, _, inode, *path = line.split(maxsplit=5)
        if path and int(inode) and not int(offset, 16):
            found.setdefault(path[0].removesuffix(" (deleted)"), int(span.split("-")[0], 16))
    return [(base, path) for path, base in found.items()]


class Symbols:
    """The dynamic symbols of the ELF file that is mapped at ``base``.

    Raises:
        OSError: it is none, or has no such symbols.
    """

    def __init__(self, memory: Memory, base: int) -> None:
        self._memory = memory
        kind, self._headers = _program_headers(memory, base)
        loaded = [address for what, address, _ in self._headers if what == _PT_LOAD]
        self._bias = 0 if kind == _ET_EXEC or not loaded else base - (min(loaded) & ~0xFFF)
        tags = self._tags()
        if not {_DT_STRTAB, _DT_SYMTAB, _DT_GNU_HASH} <= tags.keys():
            raise OSError("no dynamic symbols")
        self._names, self._symbols = tags[_DT_STRTAB], tags[_DT_SYMTAB]
        self._hash = tags[_DT_GNU_HASH]

    def address(self, name: str) -> int | None:
        """Where it is in memory; None: there is no such symbol.

        Raises:
            OSError: the process ended.
        """
        wanted, hashed = name.encode() + b"\0", _gnu_hash(name)
        raw = self._memory.read(self._hash, _GNU_HASH.size)
        buckets, first, filter_words, _ = _GNU_HASH.unpack(raw)
        table = self._hash + _GNU_HASH.size + filter_words * _U64.size
        index = self._memory.u32(table + hashed % max(buckets, 1) * _U32.size)
        chain = table + (buckets - first) * _U32.size
        for at in range(index, index + _MOST_CHAINED if index >= first else 0):
            other = self._memory.u32(chain + at * _U32.size)
            if other | 1 == hashed | 1 and (found := self._named(at, wanted)):
                return found
            if other & 1:
                break
        return None

    def _named(self, index: int, wanted: bytes) -> int | None:
        raw = self._memory.read(self._symbols + index * _SYMBOL.size, _SYMBOL.size)
        name, value = _SYMBOL.unpack(raw)
        if not value or self._memory.read(self._names + name, len(wanted)) != wanted:
            return None
        return int(value) + self._bias

    def _tags(self) -> dict[int, int]:
        """The dynamic section; addresses in memory, which glibc has already put there."""
        for what, address, size in self._headers:
            if what == _PT_DYNAMIC:
                count = min(size // _DYNAMIC.size, _MOST_TAGS)
                raw = self._memory.read(address + self._bias, count * _DYNAMIC.size)
                return {
                    tag: value if value >= self._bias else value + self._bias
                    for tag, value in _DYNAMIC.iter_unpack(raw)
                }
        return {}


def _program_headers(memory: Memory, base: int) -> tuple[int, list[tuple[int, int, int]]]:
    raw = memory.read(base, _ELF_HEADER.size)
    kind, where, size, count = _ELF_HEADER.unpack(raw)
    if not raw.startswith(_ELF_64_LITTLE) or size != _PROGRAM_HEADER.size:
        raise OSError("no 64-bit ELF file")
    raw = memory.read(base + where, min(count, _MOST_HEADERS) * size)
    return kind, list(_PROGRAM_HEADER.iter_unpack(raw))


def _gnu_hash(name: str) -> int:
    value = 5381
    for byte in name.encode():
        value = value * 33 + byte & 0xFFFFFFFF
    return value
