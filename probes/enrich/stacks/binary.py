"""One ELF file: its call frame tables, functions and lines."""

from __future__ import annotations

import contextlib
import ctypes as ct
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tcptrace.probes.enrich.stacks import libdw
from tcptrace.probes.enrich.stacks.callframes import MACHINES, SIGNAL, row_at
from tcptrace.probes.enrich.stacks.debugfiles import DebugFiles
from tcptrace.probes.enrich.stacks.demangle import MANGLED, demangled
from tcptrace.probes.enrich.stacks.dwarf import Dwarf, Place
from tcptrace.probes.enrich.stacks.elf import Elf
from tcptrace.probes.enrich.stacks.frame import Frame
from tcptrace.probes.enrich.stacks.row import LOST, CallRow
from tcptrace.probes.enrich.stacks.symtab import Symbols


class Binary:
    """One ELF file, opened once and shared by all processes that map it.

    Addresses are those of the file as it was linked. Nothing here raises for what
    the file contains: of a damaged one less is known. (libdw itself may crash on a
    hostile one. Use it where that does no harm.)

    Args:
        fd: the file; it is closed with the binary.
        name: how it is shown, usually its base name.
        roots: where to look for separate debug files, for example
            ``[Path("/proc/123/root"), Path("/")]``.
        path: the file's within these roots, as in ``/proc/PID/maps``.

    Raises:
        MissingPieceError: libdw is not installed; ``fd`` is still the caller's then.
    """

    def __init__(self, fd: int, name: str, roots: Sequence[Path], path: str = "") -> None:
        self._library = libdw.library()
        self.name = name
        self._fd = fd
        self._session: libdw.Pointer = None
        self._module: libdw.Pointer = None
        self._elf = Elf(fd)
        self._debug_files = DebugFiles(self._elf, path, roots)
        self._machine = MACHINES.get(self._elf.machine)
        if self._elf.machine:
            self._report()

    @cached_property
    def build_id(self) -> str | None:
        """In hexadecimal digits; None if the file has none."""
        return self._elf.build_id

    def close(self) -> None:
        """Afterwards nothing is known. May be called again."""
        self.__dict__.update(_dwarf=None, _symbols=None)
        if self._session:
            self._library.dwfl_end(self._session)
        if self._fd >= 0 and not self._module:
            os.close(self._fd)
        self._fd, self._session, self._module = -1, None, None

    def __del__(self) -> None:
        if "_fd" in self.__dict__:
            self.close()

    def address_of(self, file_offset: int) -> int | None:
        """The address at which the byte at this offset in the file was linked."""
        return self._elf.address_of(file_offset)

    def row(self, address: int) -> CallRow | None:
        """How to leave the function at this address; None: no table covers it.

        For a return address, the caller has subtracted one: it may stand behind the
        function's end. LOST: there is a table, and it cannot be followed.
        """
        if self._machine is None:
            return LOST if self._elf.machine else None
        for cfi_of in (self._library.dwfl_module_eh_cfi, self._library.dwfl_module_dwarf_cfi):
            bias = ct.c_uint64()
            table = cfi_of(self._module, bias) if self._module else None
            found = row_at(table, address - bias.value, self._machine) if table else None
            if found:
                return found
        return SIGNAL if self._returns_from_signal(address) else None

    def _returns_from_signal(self, address: int) -> bool:
        """Known by its code, as gdb does: outside of glibc it often has no table."""
        code = self._elf.at(address, 16)
        returns = self._machine.signal_returns if self._machine else ()
        return code.startswith(returns) or code[1:].startswith(returns)

    def frames(self, address: int) -> list[Frame]:
        """The function at this address, preceded by those that are inlined there.

        Where nothing is known the one frame has no function.
        """
        places = (self._dwarf.places(address) if self._dwarf else []) or [Place(None, None, None)]
        *inlined, real = places
        return [
            *(self._frame(place, address, inlined=True) for place in inlined),
            self._frame(real._replace(function=self._name(real, address)), address, inlined=False),
        ]

    def _name(self, place: Place, address: int) -> str | None:
        """What debug information says, except where a symbol says it better.

        It has only a plain name for a C++ function that is local to its file, and a
        library's own name (__libc_read) for what is called by another (read).
        """
        name = place.function
        if not self._symbols or (name and name.startswith(MANGLED)):
            return name
        symbol = self._symbols.name(address)
        if not symbol and not name and self.row(address) == SIGNAL:
            return self._symbols.name(address + 1)  # it is returned to, and was not called
        if not symbol or not name:
            return name or symbol
        if symbol.startswith(MANGLED):
            return symbol if name in demangled(symbol) else name
        return symbol if name.startswith("_") and name.endswith(symbol) else name

    def _frame(self, place: Place, address: int, *, inlined: bool) -> Frame:
        name = demangled(place.function) if place.function else None
        return Frame(name, self.name, address, place.file, place.line, inlined)

    @cached_property
    def _symbols(self) -> Symbols | None:
        return Symbols(self._module) if self._module else None

    @cached_property
    def _dwarf(self) -> Dwarf | None:
        """None where there is none, and where the file that it shares with others is missing.

        libdw would look for that file by itself then, and not check whether it is the right one.
        """
        bias = ct.c_uint64()
        handle = self._library.dwfl_module_getdwarf(self._module, bias) if self._module else None
        if not handle or self._debug_files.lacks_alternative:
            return None
        return Dwarf(self._module, handle, bias.value)

    def _report(self) -> None:
        """Hand the file over to libdw, which closes it then."""
        self._callbacks = libdw.Callbacks(
            libdw.FindElf(_nothing),
            libdw.FindDebugInfo(_finder(self._debug_files)),
            libdw.SectionAddress(_nothing),
        )
        library, name = self._library, os.fsencode(self.name)
        self._session = library.dwfl_begin(self._callbacks)
        library.dwfl_report_begin(self._session)
        self._module = library.dwfl_report_elf(self._session, name, name, self._fd, 0, True)
        library.dwfl_report_end(self._session, None, None)


def _finder(files: DebugFiles) -> Callable[..., int]:
    """Answers libdw's question for the separate file, and then for one that several share.

    A function of its own: libdw holds it, so a method would keep the binary alive.
    """

    def find(*arguments: Any) -> int:
        *_, link, crc, _answer = arguments
        with contextlib.suppress(Exception):  # one that got out would mean descriptor 0
            found = files.find(link, crc)
            return -1 if found is None else found
        return -1

    return find


def _nothing(*_: object) -> int:
    return -1
