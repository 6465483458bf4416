"""Functions by the symbol tables of a binary, its debug file and its mini debug file.

libdw has a search of its own, which is not used: of symbols without a size it takes
the last one in the table, not the nearest, and it reads the whole table each time.
"""

from __future__ import annotations

import bisect
import ctypes as ct
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from tcptrace.probes.enrich.stacks import libdw
from tcptrace.probes.enrich.stacks.libdw import SectionHeader

_SYMBOL = struct.Struct("=IBBHQQ")
_SHT_SYMTAB, _SHT_DYNSYM, _SHF_EXECINSTR = 2, 11, 4
_CODE_TYPES = {0, 2, 10}  # none (assembly), function, indirect function
_NO_LABELS = (b"$", b".")  # marks that arm64's ABI, and compilers' plugins, set


class _Symbol(NamedTuple):
    """``end``: of its range; of one without a size: of its section."""

    start: int
    end: int
    sized: bool
    local: bool
    name: int
    names: bytes

    def text(self) -> bytes:
        return self.names[self.name : self.names.find(b"\0", self.name)]


@dataclass(frozen=True, slots=True)
class _Table:
    """A symbol table and its file."""

    elf: libdw.Pointer
    bias: int
    header: SectionHeader
    section: libdw.Pointer

    @property
    def whole(self) -> bool:
        """Not only what is exported: where it has no symbol there is none."""
        return bool(self.header.type == _SHT_SYMTAB)


class Symbols:
    """Read and sorted once; addresses as the file was linked."""

    def __init__(self, module: libdw.Pointer) -> None:
        tables = list(_tables(module))
        symbols = [symbol for table in tables for symbol in _symbols(table)]
        if not any(table.whole for table in tables):
            symbols = [symbol for symbol in symbols if symbol.sized]
        self._sorted = sorted(symbols)
        self._starts = [symbol.start for symbol in self._sorted]
        ends = (symbol.end if symbol.sized else symbol.start for symbol in self._sorted)
        self._reach = list(accumulate(ends, max))

    def name(self, address: int) -> str | None:
        """The function at this address, mangled.

        None rather than a neighbour: a stripped binary has few symbols, and the nearest
        one below is most probably another function. A symbol without a size
        (hand-written assembly) counts up to the next symbol of any kind, but only
        within its section, only if it does not lie in the range of a sized one, and
        only if the tables list more than what is exported.
        """
        last = bisect.bisect_right(self._starts, address) - 1
        if last < 0:
            return None
        found = self._covering(last, address) or self._labels(last, address)
        return min(map(_preference, found))[-1].decode(errors="replace") if found else None

    def _covering(self, last: int, address: int) -> list[_Symbol]:
        """Those that begin nearest, of the sized ones around the address."""
        found: list[_Symbol] = []
        while last >= 0 and self._reach[last] > address:
            symbol = self._sorted[last]
            if found and symbol.start != found[0].start:
                break
            if symbol.sized and symbol.end > address:
                found.append(symbol)
            last -= 1
        return found

    def _labels(self, last: int, address: int) -> list[_Symbol]:
        start = self._starts[last]
        if self._reach[last] > start:
            return []
        first = bisect.bisect_left(self._starts, start)
        return [symbol for symbol in self._sorted[first : last + 1] if symbol.end > address]


def _preference(symbol: _Symbol) -> tuple[bool, int, int, bytes]:
    """The least is how people call it: write, not __libc_write."""
    name = symbol.text().partition(b"@")[0]
    return symbol.local, len(name) - len(name.lstrip(b"_")), len(name), name


def _tables(module: libdw.Pointer) -> Iterator[_Table]:
    """Of each file that libdw found symbols in, the best table."""
    library, elf, bias = libdw.library(), ct.c_void_p(), ct.c_uint64()
    count = library.dwfl_module_getsymtab(module)
    files = {}
    for index in (1, count - 1):  # the second is in the mini debug file, if there is one
        symbol = libdw.Symbol()
        if index > 0 and library.dwfl_module_getsym_info(
            module, index, symbol, None, None, elf, bias
        ):
            files[elf.value] = bias.value
    for file, its_bias in files.items():
        found = [
            _Table(file, its_bias, header, section)
            for section, header in _sections(file)
            if header.type in (_SHT_SYMTAB, _SHT_DYNSYM)
        ]
        yield from sorted(found, key=lambda table: table.header.type)[:1]


def _sections(elf: libdw.Pointer) -> Iterator[tuple[libdw.Pointer, SectionHeader]]:
    library, section = libdw.elf_library(), None
    while section := library.elf_nextscn(elf, section):
        header = SectionHeader()
        if library.gelf_getshdr(section, header):
            yield section, header


def _symbols(table: _Table) -> Iterator[_Symbol]:
    code = {
        index: header.addr + header.size
        for index, (_, header) in enumerate(_sections(table.elf), 1)
        if header.flags & _SHF_EXECINSTR
    }
    names = _data(libdw.elf_library().elf_getscn(table.elf, table.header.link))
    raw = _data(table.section)
    bias = table.bias
    for name, info, _, section, start, size in _SYMBOL.iter_unpack(
        raw[: len(raw) // _SYMBOL.size * _SYMBOL.size]
    ):
        if section not in code or info & 15 not in _CODE_TYPES or not names[name : name + 1]:
            continue
        if not size and names.startswith(_NO_LABELS, name):
            continue
        end = start + size if size else code[section]
        yield _Symbol(start + bias, end + bias, bool(size), not info >> 4, name, names)


def _data(section: libdw.Pointer) -> bytes:
    found = libdw.elf_library().elf_getdata(section, None) if section else None
    return ct.string_at(found[0].buf, found[0].size) if found and found[0].buf else b""
