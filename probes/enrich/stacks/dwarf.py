"""Functions, what was inlined into them, and lines, by a binary's debug information.

libdw's own search for scopes is not used: it does not look into namespaces, where
Rust's functions are, and ends the process (an assertion) on some damaged files.
"""

from __future__ import annotations

import bisect
import ctypes as ct
import os
from collections.abc import Iterator
from typing import NamedTuple

from tcptrace.probes.enrich.stacks import libdw
from tcptrace.probes.enrich.stacks.demangle import MANGLED
from tcptrace.probes.enrich.stacks.libdw import Die

_LEXICAL_BLOCK, _COMPILE_UNIT, _INLINED = 0x0B, 0x11, 0x1D
_TRY_BLOCK, _CATCH_BLOCK, _SKELETON_UNIT = 0x32, 0x25, 0x4A
_SCOPES = {_LEXICAL_BLOCK, _INLINED, _TRY_BLOCK, _CATCH_BLOCK}
_NAME, _COMP_DIR, _CALL_FILE, _CALL_LINE = 0x03, 0x1B, 0x58, 0x59
_LINKAGE_NAMES = 0x6E, 0x2007
_DEEPEST = 64
_NO_CODE = 1  # where linkers send the functions that they drop


class Place(NamedTuple):
    """A function, mangled where it has a mangled name, and the line in it; None: not told."""

    function: str | None
    file: str | None
    line: int | None


class _Ranges:
    """Which entry of .debug_info has which code."""

    def __init__(self, ranges: list[tuple[int, int, int]]) -> None:
        self._ranges = sorted(one for one in ranges if _NO_CODE < one[0] < one[1])
        self._starts = [start for start, _, _ in self._ranges]

    def at(self, address: int) -> int | None:
        """The offset of the one that begins last; they hardly ever overlap."""
        index = bisect.bisect_right(self._starts, address) - 1
        if index >= 0 and address < self._ranges[index][1]:
            return self._ranges[index][2]
        return None


class Dwarf:
    """The debug information of one module; addresses as the binary was linked."""

    def __init__(self, module: libdw.Pointer, handle: libdw.Pointer, bias: int) -> None:
        self._module, self._handle, self._bias = module, handle, bias
        self._library = libdw.library()
        self._all_units: _Ranges | None = None
        self._functions: dict[int, _Ranges] = {}

    def places(self, address: int) -> list[Place]:
        """The innermost inlined function first, the real one last; empty: nothing is known."""
        unit = self._unit(address)
        if unit is None:
            return []
        address -= self._bias
        file, line = self._line(unit, address)
        found = []
        for scope in reversed(self._scopes(unit, address)):
            found.append(Place(_name(scope), file, line))
            file, line = self._call_site(unit, scope)
        return found or [Place(None, file, line)]

    def _unit(self, address: int) -> Die | None:
        """The compilation unit with this address.

        The table of ranges (.debug_aranges) is quick, but clang writes none, and libdw
        takes what lies between two ranges for part of the first.
        """
        quick = self._library.dwfl_module_addrdie(self._module, address, ct.c_uint64())
        address -= self._bias
        if quick and self._library.dwarf_haspc(quick, address) == 1:
            return Die.from_buffer_copy(quick[0])
        if self._all_units is None:
            self._all_units = _Ranges([one for unit in self._units() for one in _code(unit)])
        return self._entry(self._all_units.at(address))

    def _units(self) -> Iterator[Die]:
        unit, following, die = ct.c_void_p(), ct.c_void_p(), Die()
        while not self._library.dwarf_get_units(
            self._handle, unit, following, None, None, die, None
        ):
            if self._library.dwarf_tag(die) in (_COMPILE_UNIT, _SKELETON_UNIT):
                yield die
            unit.value = following.value

    def _entry(self, offset: int | None) -> Die | None:
        die = Die()
        if offset is None or not self._library.dwarf_offdie(self._handle, offset, die):
            return None
        return die

    def _scopes(self, unit: Die, address: int) -> list[Die]:
        """The function at the address, then what is inlined there, the outermost first."""
        function = self._function(unit, address)
        return [function, *self._inlined(function, address, _DEEPEST)] if function else []

    def _inlined(self, scope: Die, address: int, depth: int) -> list[Die]:
        """The longest way in: blocks overlap now and then, and only one leads further."""
        found: list[Die] = []
        for child in self._inner(scope, address) if depth else ():
            way = self._inlined(child, address, depth - 1)
            if self._library.dwarf_tag(child) == _INLINED:
                way.insert(0, child)
            found = max(found, way, key=len)
        return found

    def _function(self, unit: Die, address: int) -> Die | None:
        offset = self._library.dwarf_dieoffset(unit)
        if offset not in self._functions:
            found: list[tuple[int, int, int]] = []

            def add(die: ct._Pointer[Die], _: object) -> int:
                found.extend(_code(die[0]))
                return 0

            self._library.dwarf_getfuncs(unit, libdw.OnFunction(add), None, 0)
            self._functions[offset] = _Ranges(found)
        return self._entry(self._functions[offset].at(address))

    def _inner(self, scope: Die, address: int) -> Iterator[Die]:
        child = Die()
        end = self._library.dwarf_child(scope, child)
        while not end:
            if (
                self._library.dwarf_tag(child) in _SCOPES
                and self._library.dwarf_haspc(child, address) == 1
            ):
                yield Die.from_buffer_copy(child)
            end = self._library.dwarf_siblingof(child, child)

    def _line(self, unit: Die, address: int) -> tuple[str | None, int | None]:
        found = self._library.dwarf_getsrc_die(unit, address)
        if not found:
            return None, None
        line = ct.c_int()
        self._library.dwarf_lineno(found, line)
        return _path(unit, self._library.dwarf_linesrc(found, None, None)), line.value or None

    def _call_site(self, unit: Die, inlined: Die) -> tuple[str | None, int | None]:
        """Where the function was called that is inlined there."""
        files, count = ct.c_void_p(), ct.c_size_t()
        index, line = _number(inlined, _CALL_FILE), _number(inlined, _CALL_LINE) or None
        if index is None or self._library.dwarf_getsrcfiles(unit, files, count):
            return None, line
        return _path(unit, self._library.dwarf_filesrc(files, index, None, None)), line


def _code(die: Die) -> list[tuple[int, int, int]]:
    offset = libdw.library().dwarf_dieoffset(die)
    return [(start, end, offset) for start, end in libdw.ranges(die)]


def _name(function: Die) -> str | None:
    """Mangled where that says more; an alias of the linker's (__GI___getcwd) does not."""
    for attribute in _LINKAGE_NAMES:
        name = _text(function, attribute)
        if name and name.startswith(MANGLED):
            return name
    return _text(function, _NAME)


def _path(unit: Die, given: bytes | None) -> str | None:
    """Absolute, if the unit says where it was compiled."""
    path = _decoded(given)
    if path in (None, "???"):  # libdw's word for it
        return None
    return os.path.join(_text(unit, _COMP_DIR) or "", path)


def _attribute(die: Die, code: int) -> libdw.Attribute | None:
    found = libdw.Attribute()
    return found if libdw.library().dwarf_attr_integrate(die, code, found) else None


def _text(die: Die, code: int) -> str | None:
    attribute = _attribute(die, code)
    return _decoded(libdw.library().dwarf_formstring(attribute)) if attribute else None


def _number(die: Die, code: int) -> int | None:
    attribute, value = _attribute(die, code), ct.c_uint64()
    if attribute is None or libdw.library().dwarf_formudata(attribute, value):
        return None
    return value.value


def _decoded(text: bytes | None) -> str | None:
    return text.decode(errors="backslashreplace") if text else None
