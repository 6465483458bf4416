"""Compiled programs as plain data: what to make of them, and what was made."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from tcptrace.probes.engine.layout import Layout

_INSTRUCTION = 8
_LOAD_MAP = 0x18  # BPF_LD | BPF_IMM | BPF_DW
_PSEUDO_MAP_FD = 1


@dataclass(frozen=True, slots=True)
class Hook:
    """One C function and where it is attached.

    ``how`` is ``raw`` (raw tracepoint), ``tracepoint``, ``cgroup_sock`` or
    ``sock_ops``; ``target`` the tracepoint, or the cgroup's folder.
    """

    function: str
    how: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compile, load and attach.

    ``on_demand``: run by user space, not attached. ``copied``: loaded and attached
    in several copies (bpf/nesting.h).
    """

    sources: tuple[str, ...]
    hooks: tuple[Hook, ...]
    on_demand: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    definitions: Mapping[str, int] = field(default_factory=dict)

    @property
    def kinds(self) -> dict[str, str]:
        """Each function and how it is attached; on-demand programs are raw tracepoints."""
        return dict.fromkeys(self.on_demand, "raw") | {
            hook.function: hook.how for hook in self.hooks
        }

    @property
    def functions(self) -> list[str]:
        return list(self.kinds)


@dataclass(frozen=True, slots=True)
class MapShape:
    """The arguments of BPF_MAP_CREATE; sizes in bytes."""

    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class Instructions:
    """Machine code, and where a map's descriptor is to be put: byte offset -> map name."""

    code: bytes
    maps: dict[int, str]

    @classmethod
    def linked(cls, code: bytes, names: Mapping[int, str]) -> Instructions:
        """Read the places off code that carries the compiler's descriptors."""
        places = {}
        for at in range(0, len(code), _INSTRUCTION):
            opcode, registers, _, value = struct.unpack_from("=BBhi", code, at)
            if opcode == _LOAD_MAP and registers >> 4 == _PSEUDO_MAP_FD:
                places[at] = names[value]
        return cls(code, places)

    def with_maps(self, fds: Mapping[str, int]) -> bytes:
        """The code, with these descriptors in place."""
        code = bytearray(self.code)
        for at, name in self.maps.items():
            struct.pack_into("=i", code, at + 4, fds[name])
        return bytes(code)


@dataclass(frozen=True, slots=True)
class Compiled:
    """Everything that loading needs; independent of the process that compiled it."""

    maps: dict[str, MapShape]
    programs: dict[str, Instructions]
    layouts: dict[str, Layout]
