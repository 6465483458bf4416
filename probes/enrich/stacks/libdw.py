"""elfutils' libdw, as far as tcptrace needs it: struct definitions and prototypes.

The only file that loads libdw.so.1 and libelf.so.1. Nothing of debuginfod is
declared, and none of libdw's standard callbacks, which would ask a debuginfod
server when $DEBUGINFOD_URLS is set.
"""

from __future__ import annotations

import ctypes as ct
import functools
from collections.abc import Iterator

from tcptrace.probes.engine.errors import MissingPieceError

Pointer = int | None
"""Of an opaque struct; None and 0: NULL."""


_free = ct.CDLL(None).free
_free.argtypes, _free.restype = [ct.c_void_p], None


class Op(ct.Structure):
    """Dwarf_Op: one operation of an expression."""

    _fields_ = (
        ("atom", ct.c_uint8),
        ("number", ct.c_int64),  # unsigned in C; every operand that matters here is signed
        ("number2", ct.c_int64),
        ("offset", ct.c_uint64),
    )


class Die(ct.Structure):
    """Dwarf_Die: an entry of .debug_info."""

    _fields_ = (
        ("addr", ct.c_void_p),
        ("cu", ct.c_void_p),
        ("abbrev", ct.c_void_p),
        ("padding", ct.c_long),
    )


class Attribute(ct.Structure):
    """Dwarf_Attribute."""

    _fields_ = (
        ("code", ct.c_uint),
        ("form", ct.c_uint),
        ("valp", ct.c_void_p),
        ("cu", ct.c_void_p),
    )


class Symbol(ct.Structure):
    """GElf_Sym."""

    _fields_ = (
        ("name", ct.c_uint32),
        ("info", ct.c_uint8),
        ("other", ct.c_uint8),
        ("section", ct.c_uint16),
        ("value", ct.c_uint64),
        ("size", ct.c_uint64),
    )


class SectionHeader(ct.Structure):
    """GElf_Shdr."""

    _fields_ = (
        ("name", ct.c_uint32),
        ("type", ct.c_uint32),
        ("flags", ct.c_uint64),
        ("addr", ct.c_uint64),
        ("offset", ct.c_uint64),
        ("size", ct.c_uint64),
        ("link", ct.c_uint32),
        ("info", ct.c_uint32),
        ("addralign", ct.c_uint64),
        ("entsize", ct.c_uint64),
    )


class Data(ct.Structure):
    """Elf_Data."""

    _fields_ = (
        ("buf", ct.c_void_p),
        ("type", ct.c_int),
        ("version", ct.c_uint),
        ("size", ct.c_size_t),
        ("off", ct.c_int64),
        ("align", ct.c_size_t),
    )


_P, _I, _U64, _TEXT = ct.c_void_p, ct.c_int, ct.c_uint64, ct.c_char_p
_OUT, _OUT_P, _OUT_I, _OUT_SIZE = (
    *(ct.POINTER(_U64), ct.POINTER(_P)),
    *(ct.POINTER(_I), ct.POINTER(ct.c_size_t)),
)
_DIE, _ATTRIBUTE, _OPS = ct.POINTER(Die), ct.POINTER(Attribute), ct.POINTER(ct.POINTER(Op))

FindElf = ct.CFUNCTYPE(_I, _P, _P, _TEXT, _U64, _P, _P)
FindDebugInfo = ct.CFUNCTYPE(_I, _P, _P, _TEXT, _U64, _TEXT, _TEXT, ct.c_uint32, _P)
SectionAddress = ct.CFUNCTYPE(_I, _P, _P, _TEXT, _U64, _TEXT, ct.c_uint32, _P, _OUT)
OnFunction = ct.CFUNCTYPE(_I, _DIE, _P)


class Callbacks(ct.Structure):
    """Dwfl_Callbacks."""

    _fields_ = (
        ("find_elf", FindElf),
        ("find_debuginfo", FindDebugInfo),
        ("section_address", SectionAddress),
        ("debuginfo_path", ct.c_void_p),
    )


_PROTOTYPES: dict[str, tuple[object, tuple[object, ...]]] = {
    "dwfl_begin": (_P, (ct.POINTER(Callbacks),)),
    "dwfl_end": (None, (_P,)),
    "dwfl_report_begin": (None, (_P,)),
    "dwfl_report_elf": (_P, (_P, _TEXT, _TEXT, _I, _U64, ct.c_bool)),
    "dwfl_report_end": (_I, (_P, _P, _P)),
    "dwfl_module_eh_cfi": (_P, (_P, _OUT)),
    "dwfl_module_dwarf_cfi": (_P, (_P, _OUT)),
    "dwfl_module_getdwarf": (_P, (_P, _OUT)),
    "dwfl_module_addrdie": (_DIE, (_P, _U64, _OUT)),
    "dwfl_module_getsymtab": (_I, (_P,)),
    "dwfl_module_getsym_info": (_P, (_P, _I, ct.POINTER(Symbol), _OUT, _P, _OUT_P, _OUT)),
    "dwarf_cfi_addrframe": (_I, (_P, _U64, _OUT_P)),
    "dwarf_frame_info": (_I, (_P, _OUT, _OUT, ct.POINTER(ct.c_bool))),
    "dwarf_frame_cfa": (_I, (_P, _OPS, _OUT_SIZE)),
    "dwarf_frame_register": (_I, (_P, _I, ct.POINTER(Op), _OPS, _OUT_SIZE)),
    "dwarf_get_units": (_I, (_P, _P, _OUT_P, _P, _P, _DIE, _P)),
    "dwarf_getfuncs": (ct.c_ssize_t, (_DIE, OnFunction, _P, ct.c_ssize_t)),
    "dwarf_ranges": (ct.c_ssize_t, (_DIE, ct.c_ssize_t, _OUT, _OUT, _OUT)),
    "dwarf_haspc": (_I, (_DIE, _U64)),
    "dwarf_tag": (_I, (_DIE,)),
    "dwarf_child": (_I, (_DIE, _DIE)),
    "dwarf_siblingof": (_I, (_DIE, _DIE)),
    "dwarf_dieoffset": (_U64, (_DIE,)),
    "dwarf_offdie": (_DIE, (_P, _U64, _DIE)),
    "dwarf_attr_integrate": (_ATTRIBUTE, (_DIE, ct.c_uint, _ATTRIBUTE)),
    "dwarf_formstring": (_TEXT, (_ATTRIBUTE,)),
    "dwarf_formudata": (_I, (_ATTRIBUTE, _OUT)),
    "dwarf_getsrc_die": (_P, (_DIE, _U64)),
    "dwarf_linesrc": (_TEXT, (_P, _P, _P)),
    "dwarf_lineno": (_I, (_P, _OUT_I)),
    "dwarf_getsrcfiles": (_I, (_DIE, _OUT_P, _OUT_SIZE)),
    "dwarf_filesrc": (_TEXT, (_P, ct.c_size_t, _P, _P)),
    "dwelf_dwarf_gnu_debugaltlink": (ct.c_ssize_t, (_P, ct.POINTER(_TEXT), _OUT_P)),
}

_ELF_PROTOTYPES: dict[str, tuple[object, tuple[object, ...]]] = {
    "elf_nextscn": (_P, (_P, _P)),
    "elf_getdata": (ct.POINTER(Data), (_P, _P)),
    "elf_getscn": (_P, (_P, ct.c_size_t)),
    "gelf_getshdr": (ct.POINTER(SectionHeader), (_P, ct.POINTER(SectionHeader))),
}


@functools.cache
def library() -> ct.CDLL:
    """libdw, declared.

    Raises:
        MissingPieceError: it is not installed.
    """
    return _loaded("libdw.so.1", _PROTOTYPES)


@functools.cache
def elf_library() -> ct.CDLL:
    """libelf, on which libdw stands: it is there wherever libdw is.

    Raises:
        MissingPieceError: it is not installed.
    """
    return _loaded("libelf.so.1", _ELF_PROTOTYPES)


def _loaded(name: str, prototypes: dict[str, tuple[object, tuple[object, ...]]]) -> ct.CDLL:
    try:
        found = ct.CDLL(name)
        for function, (result, arguments) in prototypes.items():
            getattr(found, function).restype = result
            getattr(found, function).argtypes = arguments
    except (OSError, AttributeError) as error:
        raise MissingPieceError(
            f"{name} cannot be used ({error})",
            help="User stacks are read with it:  sudo apt-get install libdw1",
        ) from error
    return found


def free(pointer: ct.c_void_p) -> None:
    """libc's, for what libdw allocates for its caller."""
    _free(pointer)


def ranges(die: Die) -> Iterator[tuple[int, int]]:
    """The code of an entry as [start, end) pairs, in the file's own addresses."""
    base, start, end = ct.c_uint64(), ct.c_uint64(), ct.c_uint64()
    at = 0
    while (at := library().dwarf_ranges(die, at, base, start, end)) > 0:
        yield start.value, end.value
