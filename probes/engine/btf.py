"""Struct layouts and enums of the running kernel, from its BTF.

libbpf reads the BTF (libbcc already depends on it, so it is installed); this
module walks the types. Format: Documentation/bpf/btf.rst of the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes as ct
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tcptrace.probes.engine.errors import KernelRefusedError, MissingPieceError

VMLINUX = "/sys/kernel/btf/vmlinux"

_STRUCT, _UNION, _ENUM, _ENUM64 = 4, 5, 6, 19
_MODIFIERS = {8, 9, 10, 11, 18}  # typedef, volatile, const, restrict, type tag
_HEAD = struct.Struct("=III")


@dataclass(frozen=True, slots=True)
class Field:
    """Where a struct member lies; both figures in bytes."""

    offset: int
    size: int


class Btf:
    """The kernel's types, opened once per process."""

    def __init__(self) -> None:
        self._lib = _libbpf()
        self._btf = self._lib.btf__load_vmlinux_btf()
        if not self._btf or self._btf > 2**64 - 4096:
            raise KernelRefusedError(
                f"this kernel offers no type information ({VMLINUX} cannot be read)",
                help="tcptrace reads struct offsets from there; the kernel must be built with\n"
                "CONFIG_DEBUG_INFO_BTF=y (Debian since 11, Ubuntu since 20.10, RHEL since 8.2).",
            )

    def close(self) -> None:
        self._lib.btf__free(self._btf)
        self._btf = None

    def field(self, path: str) -> Field | None:
        """Find ``struct.member[.member...]``; None if this kernel has no such member."""
        name, *members = path.split(".")
        type_id = self._find(name, _STRUCT)
        offset = size = 0
        for member in members:
            found = self._member(type_id, member) if type_id else None
            if found is None:
                return None
            at, type_id = found
            offset, size = offset + at, self._size(type_id)
        return Field(offset, size)

    def size(self, name: str) -> int:
        """Size of a struct in bytes; 0 if this kernel does not have it."""
        type_id = self._find(name, _STRUCT)
        return self._size(type_id) if type_id else 0

    def enum(self, name: str) -> dict[str, int]:
        """Names and values of an enum; empty if this kernel does not have it."""
        type_id = self._find(name, _ENUM)
        if not type_id:
            return {}
        kind, count, _, body = self._type(type_id)
        assert kind == _ENUM
        raw = ct.string_at(body, 8 * count)
        return {self._name(at): value for at, value in struct.iter_unpack("=Ii", raw)}

    def _find(self, name: str, kind: int) -> int:
        found = self._lib.btf__find_by_name_kind(self._btf, name.encode(), kind)
        return max(int(found), 0)

    def _type(self, type_id: int) -> tuple[int, int, int, int]:
        at = self._lib.btf__type_by_id(self._btf, type_id)
        _, info, size_or_type = _HEAD.unpack(ct.string_at(at, _HEAD.size))
        return (info >> 24) & 0x1F, info & 0xFFFF, size_or_type, at + _HEAD.size

    def _name(self, at: int) -> str:
        return str(self._lib.btf__name_by_offset(self._btf, at).decode())

    def _size(self, type_id: int) -> int:
        return max(int(self._lib.btf__resolve_size(self._btf, type_id)), 0)

    def _plain(self, type_id: int) -> int:
        """Strip typedefs and qualifiers."""
        kind, _, target, _ = self._type(type_id)
        while kind in _MODIFIERS:
            type_id = target
            kind, _, target, _ = self._type(type_id)
        return type_id

    def _members(self, type_id: int) -> Iterator[tuple[str, int, int]]:
        """Name, type and offset in bits of each member."""
        kind, count, _, body = self._type(self._plain(type_id))
        if kind not in (_STRUCT, _UNION):
            return
        for name_at, target, where in struct.iter_unpack("=III", ct.string_at(body, 12 * count)):
            # With the kind flag the upper byte is a bit-field's width; 0xffffff bits are 2 MB.
            yield self._name(name_at), target, where & 0xFFFFFF

    def _member(self, type_id: int, wanted: str) -> tuple[int, int] | None:
        for name, target, bits in self._members(type_id):
            if name == wanted:
                return bits // 8, target
            if not name and (inner := self._member(target, wanted)):
                return bits // 8 + inner[0], inner[1]
        return None


def _libbpf() -> ct.CDLL:
    for name in ("libbpf.so.1", "libbpf.so.0"):
        try:
            return _declared(ct.CDLL(name))
        except OSError:
            continue
    raise MissingPieceError(
        "libbpf is not installed",
        help="It comes with the distribution's BCC:  sudo apt-get install python3-bpfcc",
    )


def _declared(lib: ct.CDLL) -> ct.CDLL:
    if not hasattr(lib, "btf__load_vmlinux_btf"):  # libbpf before 0.5 (Debian 11)
        setattr(lib, "btf__load_vmlinux_btf", lib.libbpf_find_kernel_btf)  # noqa: B010
    lib.btf__load_vmlinux_btf.restype = ct.c_void_p
    lib.btf__free.argtypes = [ct.c_void_p]
    lib.btf__find_by_name_kind.argtypes = [ct.c_void_p, ct.c_char_p, ct.c_uint32]
    lib.btf__type_by_id.argtypes = [ct.c_void_p, ct.c_uint32]
    lib.btf__type_by_id.restype = ct.c_void_p
    lib.btf__name_by_offset.argtypes = [ct.c_void_p, ct.c_uint32]
    lib.btf__name_by_offset.restype = ct.c_char_p
    lib.btf__resolve_size.argtypes = [ct.c_void_p, ct.c_uint32]
    lib.btf__resolve_size.restype = ct.c_int64
    return lib


@contextlib.contextmanager
def kernel() -> Iterator[Btf]:
    """The running kernel's types (about 10 ms, and 7 MB until it is left)."""
    types = Btf()
    try:
        yield types
    finally:
        types.close()
