"""The layout of a C struct, as the compiler made it, turned into a decoder.

BCC describes a map's value type as a ctypes structure. Python never repeats the
struct; the golden file in tests/unit/ pins what it is today.
"""

from __future__ import annotations

import ctypes as ct
import struct
from dataclasses import dataclass
from typing import Any

from tcptrace.probes.engine.errors import KernelRefusedError

_CODES = {
    ct.c_byte: "b",
    ct.c_ubyte: "B",
    ct.c_char: "c",
    ct.c_short: "h",
    ct.c_ushort: "H",
    ct.c_int: "i",
    ct.c_uint: "I",
    ct.c_long: "q",
    ct.c_ulong: "Q",
    ct.c_longlong: "q",
    ct.c_ulonglong: "Q",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """Field names in order, the matching ``struct`` format, and the size in bytes."""

    names: tuple[str, ...]
    format: str
    size: int

    @classmethod
    def of(cls, leaf: Any) -> Layout:
        """Read it off a ctypes structure; fields called ``pad`` are skipped."""
        names, codes, at = [], [], 0
        for name, kind, *bits in leaf._fields_:
            if bits:
                raise KernelRefusedError(f"the field {name} is a bit-field")
            member = getattr(leaf, name)
            codes.append("x" * (member.offset - at))
            at = member.offset + member.size
            if name.startswith(("pad", "__pad")):
                codes.append(f"{member.size}x")
                continue
            names.append(name)
            codes.append(_code(name, kind, member.size))
        size = ct.sizeof(leaf)
        codes.append("x" * (size - at))
        return cls(tuple(names), "".join(codes), size)

    def decoder(self) -> struct.Struct:
        """For ``iter_unpack`` over records that follow each other."""
        return struct.Struct("=" + self.format)


def _code(name: str, kind: Any, size: int) -> str:
    if kind in _CODES:
        return _CODES[kind]
    if issubclass(kind, ct.Array):
        return f"{size}s"
    raise KernelRefusedError(f"the field {name} has a type that cannot be decoded: {kind}")
