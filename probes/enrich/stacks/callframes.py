"""Call frame tables (.eh_frame, .debug_frame): what libdw makes of them -> CallRow.

Format: DWARF 5, section 6.4; the registers' numbers are those of the processors'
DWARF ABIs.
"""

from __future__ import annotations

import ctypes as ct
from dataclasses import dataclass

from tcptrace.probes.engine.constants import Row as RowKind
from tcptrace.probes.enrich.stacks import libdw
from tcptrace.probes.enrich.stacks.row import KEPT, LOST, CallRow

_DEREF, _PLUS_UCONST, _BREG0, _BREG31, _BREGX, _CALL_FRAME_CFA = 0x06, 0x23, 0x70, 0x8F, 0x92, 0x9C

_Op = tuple[int, int, int]
"""An operation of an expression: its code and two signed operands."""


@dataclass(frozen=True, slots=True)
class Machine:
    """DWARF's numbers of the registers that a walk follows."""

    stack_pointer: int
    frame_pointer: int
    return_address: int
    has_link_register: bool
    signal_returns: tuple[bytes, ...]
    """The code of a system call rt_sigreturn, with which a signal handler returns."""


MACHINES = {
    62: Machine(
        7, 6, 16, False, (bytes.fromhex("48c7c00f0000000f05"), bytes.fromhex("b80f0000000f05"))
    ),
    183: Machine(31, 29, 30, True, (bytes.fromhex("681180d2010000d4"),)),
}
"""By the ELF header's e_machine: x86-64, arm64."""

SIGNAL = CallRow(RowKind.SIGNAL)


class _OtherRuleError(Exception):
    """The table is damaged, or says what CallRow has no place for."""


def row_at(table: libdw.Pointer, address: int, machine: Machine) -> CallRow | None:
    """What ``table`` (a Dwarf_CFI) says of the code at ``address``; None: nothing readable.

    LOST where CallRow cannot say the same: half a rule would lead to wrong callers.
    """
    frame = ct.c_void_p()
    if libdw.library().dwarf_cfi_addrframe(table, address, frame):
        return None
    try:
        row = _row(frame, machine)
    except _OtherRuleError:
        return LOST
    finally:
        libdw.free(frame)
    return row if row.fits else LOST


def _row(frame: ct.c_void_p, machine: Machine) -> CallRow:
    signal = ct.c_bool()
    if libdw.library().dwarf_frame_info(frame, None, None, signal) != machine.return_address:
        raise _OtherRuleError
    if signal:
        return SIGNAL
    caller = _register(frame, machine.return_address)
    if caller == []:  # undefined: glibc says so of _start and clone, the outermost frames
        return CallRow(RowKind.END)
    if caller is None and not machine.has_link_register:
        raise _OtherRuleError
    kind, offset = _cfa(frame, machine)
    pointer = _register(frame, machine.frame_pointer)
    if kind == RowKind.FP_DEREF:
        _check_realigned(pointer, machine)
        return CallRow(kind, offset, _saved(caller))
    return CallRow(kind, offset, _saved(caller), _saved(pointer))


def _cfa(frame: ct.c_void_p, machine: Machine) -> tuple[RowKind, int]:
    ops, count = ct.POINTER(libdw.Op)(), ct.c_size_t()
    if libdw.library().dwarf_frame_cfa(frame, ops, count):
        raise _OtherRuleError
    first, *more = _read(ops, count) or [(0, 0, 0)]
    register, offset = _based(first)
    if not more and register == machine.stack_pointer:
        return RowKind.SP, offset
    if not more and register == machine.frame_pointer:
        return RowKind.FP, offset
    if [op[0] for op in more] == [_DEREF] and register == machine.frame_pointer:
        return RowKind.FP_DEREF, offset
    raise _OtherRuleError


def _register(frame: ct.c_void_p, number: int) -> list[_Op] | None:
    """Where the caller's value of a register is.

    None: still in it; empty: nowhere, it is lost.
    """
    memory, ops, count = (libdw.Op * 3)(), ct.POINTER(libdw.Op)(), ct.c_size_t()
    if libdw.library().dwarf_frame_register(frame, number, memory, ops, count):
        raise _OtherRuleError
    return _read(ops, count) if ops else None


def _saved(rule: list[_Op] | None) -> int:
    """The distance from the CFA, in bytes."""
    if not rule:
        return KEPT
    codes = [op[0] for op in rule]
    if codes != [_CALL_FRAME_CFA, _PLUS_UCONST] or rule[1][1] == KEPT:
        raise _OtherRuleError
    return rule[1][1]


def _check_realigned(rule: list[_Op] | None, machine: Machine) -> None:
    """A function that realigns its stack: the caller's frame pointer is where its own points.

    GCC says it as an expression of the frame pointer, as the distance to the CFA varies.
    CallRow has no place for anything else there.
    """
    if rule is None or [op[0] for op in rule[:1]] != [_CALL_FRAME_CFA]:
        raise _OtherRuleError
    if [_based(op) for op in rule[1:]] != [(machine.frame_pointer, 0)]:
        raise _OtherRuleError


def _based(op: _Op) -> tuple[int, int]:
    """The register and offset of DW_OP_breg0 to 31 and DW_OP_bregx; else a register of -1."""
    code, first, second = op
    if _BREG0 <= code <= _BREG31:
        return code - _BREG0, first
    return (first, second) if code == _BREGX else (-1, 0)


def _read(ops: ct._Pointer[libdw.Op], count: ct.c_size_t) -> list[_Op]:
    return [(op.atom, op.number, op.number2) for op in ops[: count.value]]
