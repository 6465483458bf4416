"""A second, plain reader of the kernel's BTF, to compare tcptrace's with.

It reads the file itself (no libbpf) and knows only structs and unions.
Format: Documentation/bpf/btf.rst of the kernel.
"""

from __future__ import annotations

import struct
from pathlib import Path

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FUNC_PROTO, VAR, DATASEC, ENUM64 = (
    *(1, 2, 3, 4, 5, 6),
    *(13, 14, 15, 19),
)
WORDS_AFTER = {INT: 1, ARRAY: 3, VAR: 1, 17: 1}  # 17: a declaration tag
WORDS_PER_MEMBER = {STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3}


class Oracle:
    """Every type's place in the file, and the structs by name."""

    def __init__(self, path: str) -> None:
        raw = Path(path).read_bytes()
        header, at, size, text_at, _ = struct.unpack_from("=IIIII", raw, 4)
        self._text = raw[header + text_at :]
        self._words = memoryview(raw[header + at : header + at + size]).cast("I")
        self._at = [0]
        self._by_name: dict[tuple[int, int], int] = {}
        self._index()

    def _index(self) -> None:
        words, at = self._words, 0
        while at < len(words):
            kind, count = words[at + 1] >> 24 & 0x1F, words[at + 1] & 0xFFFF
            self._by_name.setdefault((words[at], kind), len(self._at))
            self._at.append(at)
            at += 3 + WORDS_AFTER.get(kind, 0) + count * WORDS_PER_MEMBER.get(kind, 0)

    def offset(self, path: str) -> int | None:
        """``sock.sk_lock.owned`` -> bytes from the start of struct sock."""
        name, *members = path.split(".")
        type_id = self._by_name.get((self._text.find(b"\0" + name.encode() + b"\0") + 1, STRUCT))
        bits = 0
        for member in members:
            found = self._member(type_id, member.encode()) if type_id else None
            if found is None:
                return None
            bits, type_id = bits + found[0], found[1]
        return bits // 8

    def _member(self, type_id: int, wanted: bytes) -> tuple[int, int] | None:
        at = self._at[type_id]
        kind, count = self._words[at + 1] >> 24 & 0x1F, self._words[at + 1] & 0xFFFF
        if kind in (8, 9, 10, 11, 18):
            return self._member(self._words[at + 2], wanted)
        if kind not in (STRUCT, UNION):
            return None
        for index in range(at + 3, at + 3 + 3 * count, 3):
            name_at, target, bits = self._words[index : index + 3]
            bits &= 0xFFFFFF
            name = self._text[name_at : self._text.index(b"\0", name_at)]
            if name == wanted:
                return bits, target
            inner = None if name else self._member(target, wanted)
            if inner:
                return bits + inner[0], inner[1]
        return None
