"""The walk that the kernel half began, finished on its copy of the stack.

The same steps as in bpf/stack.h, on the same rows.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from tcptrace.probes.engine import offsets
from tcptrace.probes.engine.constants import Row as RowKind
from tcptrace.probes.engine.constants import Walk
from tcptrace.probes.enrich.stacks.row import CallRow

MAX_FRAMES = 64  # bpf/stack.h
EXACT = 1
_ADDRESS_BITS = (1 << 56) - 1
_WORD = struct.Struct("=Q")
_WRAP = (1 << 64) - 1

RowOf = Callable[[int], CallRow]


class _UnreadableError(Exception):
    """Outside the copy of the stack."""


@dataclass(slots=True)
class Position:
    """Where a walk stands. ``address`` is shifted left by one; bit 0: it is executed next."""

    address: int
    stack_pointer: int
    frame_pointer: int
    link: int


@dataclass(slots=True)
class Walked:
    """``addresses`` as in bpf/stack.h, and the rows by which they were found."""

    addresses: list[int]
    end: Walk = Walk.DEEP
    rows: dict[int, CallRow] = field(default_factory=dict)


def code_address(address: int) -> int:
    """The address to look up: a return address stands after the call, perhaps in the next line."""
    return address >> 1 if address & EXACT else (address >> 1) - 1


def finish(addresses: list[int], at: Position, stack: bytes, row_of: RowOf) -> Walked:
    """From the last of ``addresses``, for which the kernel had no row, to the end."""
    base = at.stack_pointer
    walked = Walked(list(addresses))
    while True:
        row = walked.rows[at.address] = row_of(code_address(at.address))
        try:
            end = _step(row, at, lambda address: _word(stack, address - base))
        except _UnreadableError:
            end = Walk.NOT_COPIED
        if end != Walk.GOES_ON:
            walked.end = end
            return walked
        if len(walked.addresses) == MAX_FRAMES:
            return walked
        walked.addresses.append(at.address)


def _word(stack: bytes, at: int) -> int:
    if not 0 <= at <= len(stack) - _WORD.size:
        raise _UnreadableError
    value: int = _WORD.unpack_from(stack, at)[0]
    return value


def _step(row: CallRow, at: Position, word: Callable[[int], int]) -> Walk:
    if row.kind == RowKind.END:
        return Walk.COMPLETE
    if row.kind == RowKind.LOST:
        return Walk.LOST
    return _leave_signal(at, word) if row.kind == RowKind.SIGNAL else _leave(row, at, word)


def _leave(row: CallRow, at: Position, word: Callable[[int], int]) -> Walk:
    base = at.stack_pointer if row.kind == RowKind.SP else at.frame_pointer
    cfa = (base + row.cfa) & _WRAP
    if row.kind == RowKind.FP_DEREF:
        cfa, at.frame_pointer = word(cfa), word(at.frame_pointer)
    elif row.frame_pointer:
        at.frame_pointer = word(cfa + row.frame_pointer)
    address = word(cfa + row.return_address) if row.return_address else at.link
    if cfa < at.stack_pointer:
        return Walk.LOST
    at.stack_pointer = cfa
    at.address = (address & _ADDRESS_BITS) << 1
    if address:
        return Walk.GOES_ON
    return Walk.LOST if row.kind == RowKind.GUESS else Walk.COMPLETE


def _leave_signal(at: Position, word: Callable[[int], int]) -> Walk:
    places = offsets.SIGNAL_FRAME[platform.machine()]
    context = at.stack_pointer + places["SIGNAL_CONTEXT"]
    at.address = word(context + places["SIGNAL_PC"]) << 1 | EXACT
    at.frame_pointer = word(context + places["SIGNAL_FRAME_POINTER"])
    at.stack_pointer = word(context + places["SIGNAL_STACK_POINTER"])
    if "SIGNAL_LINK" in places:
        at.link = word(context + places["SIGNAL_LINK"])
    return Walk.GOES_ON
