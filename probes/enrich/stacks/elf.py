"""The headers, sections and notes of an ELF file, read with nothing but pread.

Format: elf(5). libdw reads the rest; what decides whether a file may be used at all
is read here, where a hostile one can do nothing but be empty.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

_HEADER = struct.Struct("<16xHHIQQQIHHHHHH")
_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian: all that tcptrace traces
_SEGMENT, _SECTION, _NOTE = struct.Struct("<IIQQQQQQ"), struct.Struct("<IIQQQQIIQQ"), "<III"
_PT_LOAD, _PT_NOTE, _SHT_NOTE, _SHT_NOBITS = 1, 4, 7, 8
_LINKED = {2, 3}  # ET_EXEC, ET_DYN
_NT_GNU_BUILD_ID = 3
_EXECUTABLE = 1
_MOST_BYTES = 1 << 20  # of a table or section that is read here
_DEBUG_SECTIONS = {b".debug_info", b".zdebug_info", b".symtab"}


class Segment(NamedTuple):
    """A program header. Offsets, addresses and sizes in bytes."""

    type: int
    flags: int
    offset: int
    address: int
    physical: int
    file_size: int
    memory_size: int
    align: int


class Section(NamedTuple):
    """A section header."""

    name: bytes
    type: int
    offset: int
    size: int
    align: int


class Elf:
    """The headers of an ELF file; of one that is damaged, as much as can be read.

    ``machine`` is 0 if it is no program or library of a 64-bit little-endian machine.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        raw = self.read(0, _HEADER.size)
        self.machine, self.segments = 0, list[Segment]()
        self._section_table = 0, 0, 0, 0
        if len(raw) == _HEADER.size and raw.startswith(_MAGIC):
            self._header(_HEADER.unpack(raw))

    def _header(self, header: tuple[int, ...]) -> None:
        if header[0] in _LINKED:  # not so the files that dwz makes
            self.machine = header[1]
        segments_at, sections_at = header[4:6]
        size, count, section_size, section_count, names = header[8:13]
        self.segments = [Segment(*row) for row in self._table(_SEGMENT, segments_at, size, count)]
        self._section_table = sections_at, section_size, section_count, names

    def _table(
        self, row: struct.Struct, at: int, size: int, count: int
    ) -> Iterator[tuple[int, ...]]:
        raw = self.read(at, count * row.size) if size == row.size else b""
        return row.iter_unpack(raw[: len(raw) // row.size * row.size])

    def read(self, at: int, size: int) -> bytes:
        """Up to ``size`` bytes of the file; empty where there is nothing to read."""
        try:
            return os.pread(self.fd, min(size, _MOST_BYTES), at)
        except (OSError, OverflowError):
            return b""

    @cached_property
    def sections(self) -> list[Section]:
        *where, names_index = self._section_table
        rows = list(self._table(_SECTION, *where))
        names = self.read(*rows[names_index][4:6]) if names_index < len(rows) else b""
        return [
            Section(names[row[0] : names.find(b"\0", row[0])], row[1], row[4], row[5], row[8])
            for row in rows
        ]

    def section(self, name: bytes) -> bytes:
        """Its bytes; empty if there is none of that name."""
        for section in self.sections:
            if section.name == name and section.type != _SHT_NOBITS:
                return self.read(section.offset, section.size)
        return b""

    @cached_property
    def build_id(self) -> str | None:
        """In hexadecimal digits."""
        places = [(s.offset, s.size, s.align) for s in self.sections if s.type == _SHT_NOTE]
        places += [(s.offset, s.file_size, s.align) for s in self.segments if s.type == _PT_NOTE]
        for at, size, align in places:
            for type_, name, body in _notes(self.read(at, size), 8 if align == 8 else 4):
                if (type_, name) == (_NT_GNU_BUILD_ID, b"GNU\0") and body:
                    return body.hex()
        return None

    def address_of(self, offset: int) -> int | None:
        """Of the byte at this offset in the file; where two segments share it, in the code."""
        for segment in self._loaded:
            if segment.offset <= offset < segment.offset + segment.file_size:
                return segment.address + offset - segment.offset
        return None

    def at(self, address: int, size: int) -> bytes:
        """What is loaded to this address; empty if nothing of the file is."""
        for segment in self._loaded:
            distance = address - segment.address
            if 0 <= distance < segment.file_size:
                return self.read(segment.offset + distance, min(size, segment.file_size - distance))
        return b""

    @cached_property
    def _loaded(self) -> list[Segment]:
        loaded = [segment for segment in self.segments if segment.type == _PT_LOAD]
        return sorted(loaded, key=lambda segment: not segment.flags & _EXECUTABLE)

    @property
    def has_debug_information(self) -> bool:
        return any(
            section.name in _DEBUG_SECTIONS and section.type != _SHT_NOBITS
            for section in self.sections
        )


def _notes(raw: bytes, align: int) -> Iterator[tuple[int, bytes, bytes]]:
    at = 0
    while at + 12 <= len(raw):
        name_size, body_size, type_ = struct.unpack_from(_NOTE, raw, at)
        body_at = at + 12 + (name_size + 3) // 4 * 4
        yield type_, raw[at + 12 : at + 12 + name_size], raw[body_at : body_at + body_size]
        at = body_at + (body_size + align - 1) // align * align
