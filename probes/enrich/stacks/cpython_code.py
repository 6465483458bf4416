"""CPython's code objects, read from a running process: function, file, line.

Strings: PEP 393. Line tables: Objects/locations.md of CPython 3.11, since 3.13
InternalDocs/code_objects.md; the same in all of 3.11 to 3.15.
"""

from __future__ import annotations

import contextlib
import struct
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tcptrace.probes.enrich.stacks.cpython_layouts import Layout
from tcptrace.probes.enrich.stacks.elfsymbol import Memory

_KEPT, _MOST_TEXT, _MOST_TABLE = 4096, 4096, 1 << 22
_ENCODINGS = {1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}
_UNIT = 2  # bytes of an instruction, or of one of its cache entries
_LONG, _NO_COLUMNS, _NOWHERE = 14, 13, 15
_ONE_LINE = range(10, 13)
_WRAP = (1 << 64) - 1
_IDENTITY_BYTES, _TEXT_BYTES = 12 * 8, 64  # PYTHON_CODE_WORDS, PYTHON_TEXT_BYTES
_HASH = 24  # PYTHON_OBJECT_HASH


@dataclass(frozen=True, slots=True)
class Code:
    """What a code object says. ``first_line``: where ``def`` (or its decorator) stands.

    Before the instruction ``begins_at`` (bytes from the first) the function's variables are
    still being made; Python's tracebacks do not have it yet. Frames that the interpreter
    puts in between for itself never get beyond.
    """

    qualname: str
    filename: str
    first_line: int
    begins_at: int
    line_table: bytes

    def line(self, offset: int) -> int | None:
        """``offset``: bytes from the first instruction."""
        return line_at(self.line_table, self.first_line, offset)


@dataclass(frozen=True, slots=True)
class Text:
    """A string as it lies in memory. ``kind``: bytes per character; ``hash``: -1 for none yet."""

    raw: bytes
    kind: int
    hash: int

    def decoded(self) -> str:
        return self.raw.decode(_ENCODINGS[self.kind], "backslashreplace")

    @property
    def identity(self) -> int:
        """As python_text() of bpf/python.h."""
        if self.hash != -1:
            return self.hash
        last = self.raw[-_TEXT_BYTES:].ljust(_TEXT_BYTES, b"\0")
        return _mixed(0, struct.pack("=Q", len(self.raw)) + last)


class Codes:
    """The code objects of one process; ``type_``: the address of its PyCode_Type."""

    def __init__(self, memory: Memory, layout: Layout, type_: int) -> None:
        self._memory, self._layout, self._type = memory, layout, type_
        self._known: OrderedDict[tuple[int, int], Code] = OrderedDict()

    def get(self, address: int, identity: int) -> Code | None:
        """None: the object with that identity is not there (any more)."""
        known = self._known.get((address, identity))
        if known is None:
            with contextlib.suppress(OSError, ValueError):
                known = self._known[address, identity] = self.read(address, identity)
                if len(self._known) > _KEPT:
                    self._known.popitem(last=False)
        return known

    def read(self, address: int, identity: int | None = None) -> Code:
        """The object, of whatever identity if none is given.

        Raises:
            ValueError: it is no code object, or another one.
            OSError: nothing is mapped there.
        """
        at = self._layout
        head = self._alive(address)
        qualname, filename = (
            self._text(_word(head, at.qualname)),
            self._text(_word(head, at.filename)),
        )
        lines = _word(head, at.linetable)
        code = Code(
            qualname.decoded(),
            filename.decoded(),
            _number(head, at.first_line),
            _number(head, at.first_traceable) * _UNIT,
            self._bytes(lines),
        )
        hashed = -1 if at.is_numbered else self._memory.s64(lines + _HASH)
        found = identity_of(at.unchanging(head), hashed, (qualname, filename))
        if identity is not None and found != identity:
            raise ValueError("another code object")
        for _ in range(2):  # a new object in its place may just have got its first two words
            if at.unchanging(self._alive(address)) != at.unchanging(head):
                raise ValueError("freed while it was read")
        return code

    def _alive(self, address: int) -> bytes:
        """A freed object keeps most of its bytes, and its names may be other strings by then.

        But it has no references, or the allocator's pointer where their number was. (They
        are counted in 32 bits; above them since 3.14 are flags in the highest 16.)
        """
        head = self._memory.read(address, self._layout.code_bytes)
        references = _word(head, 0)
        if not references & 0xFFFFFFFF or references >> 32 & 0xFFFF:
            raise ValueError("freed")
        if _word(head, self._layout.type_) != self._type:
            raise ValueError("no code object")
        return head

    def _bytes(self, address: int) -> bytes:
        size = self._memory.u64(address + self._layout.bytes_size)
        if size > _MOST_TABLE:
            raise ValueError("no bytes object")
        return self._memory.read(address + self._layout.bytes_data, size)

    def _text(self, address: int) -> Text:
        at = self._layout
        head = self._memory.read(address, at.ascii_data)
        length, state = _word(head, at.text_length), _number(head, at.text_state)
        kind, is_compact, is_ascii = state >> 2 & 7, state >> 5 & 1, state >> 6 & 1
        if not is_compact or kind not in _ENCODINGS or length > _MOST_TEXT:
            raise ValueError("no string as the compiler makes them")
        data = address + (at.ascii_data if is_ascii else at.wide_data)
        hashed = struct.unpack_from("=q", head, at.text_hash)[0]
        return Text(self._memory.read(data, length * kind), kind, hashed)


def _word(raw: bytes, at: int) -> int:
    return int(struct.unpack_from("=Q", raw, at)[0])


def _number(raw: bytes, at: int) -> int:
    return int(struct.unpack_from("=i", raw, at)[0])


def identity_of(unchanging: bytes, line_table_hash: int = -1, texts: Sequence[Text] = ()) -> int:
    """As python_identity() of bpf/python.h. ``unchanging``: that part of a code object.

    In it are the addresses of its names and tables, and since 3.12 a number that
    CPython gives to no second code object (co_version). Until then its name and file
    are added, if it was compiled by the process itself.
    """
    value = _mixed(0, unchanging.ljust(_IDENTITY_BYTES, b"\0"))
    if line_table_hash != -1:
        hashes = (line_table_hash, *(text.identity for text in texts))
        value = _mixed(value, struct.pack("=3Q", *(number & _WRAP for number in hashes)))
    return value & 0xFFFFFFFF


def _mixed(value: int, words: bytes) -> int:
    """As mixed() of bpf/space.h, for each word."""
    for (word,) in struct.iter_unpack("=Q", words):
        value = (value ^ word) * 0x9E3779B97F4A7C15 & _WRAP
        value ^= value >> 29
    return value


def line_at(table: bytes, first_line: int, offset: int) -> int | None:
    """The line of the instruction at ``offset`` (bytes); None: it belongs to no line."""
    line, start = first_line, 0
    for units, kind, delta in _entries(table):
        line += delta
        if start <= offset < start + units * _UNIT:
            return None if kind == _NOWHERE else line
        start += units * _UNIT
    return None


def _entries(table: bytes) -> Iterator[tuple[int, int, int]]:
    """Instruction units, kind, and lines further, of each entry; stops where it is cut off."""
    at = 0
    with contextlib.suppress(IndexError):
        while at < len(table):
            kind, units = table[at] >> 3 & 15, (table[at] & 7) + 1
            delta = 0
            if kind in _ONE_LINE:
                delta = kind - _ONE_LINE.start
            elif kind in (_LONG, _NO_COLUMNS):
                delta = _signed(_sixes(table, at + 1))
            yield units, kind, delta
            at += 1
            while at < len(table) and not table[at] & 0x80:  # only an entry's first byte has it
                at += 1


def _sixes(table: bytes, at: int) -> int:
    """Six bits in a byte, the lowest first; the seventh: there are more."""
    value = shift = 0
    while True:
        byte = table[at]
        value |= (byte & 0x3F) << shift
        if not byte & 0x40:
            return value
        at, shift = at + 1, shift + 6


def _signed(value: int) -> int:
    return -(value >> 1) if value & 1 else value >> 1
