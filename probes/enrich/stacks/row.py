"""One row of a call frame table (CFI): how to get from a frame to its caller.

Computed by libdw once for each code address, then used in both halves: here on
a copy of the stack, and in bpf/stack.h on the live one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tcptrace.probes.engine.constants import Row as RowKind

KEPT = 0
"""The register still has the caller's value (nothing is ever saved at the CFA itself)."""

_STRUCT = struct.Struct("=iiiI")
_S32 = 1 << 31


@dataclass(frozen=True, slots=True)
class CallRow:
    """Offsets in bytes. ``cfa`` is added to the base register that ``kind`` names.

    ``return_address`` and ``frame_pointer``: where the caller's are saved, relative to
    the CFA; KEPT: still in the register (the return address: arm64's link register).
    """

    kind: RowKind
    cfa: int = 0
    return_address: int = KEPT
    frame_pointer: int = KEPT

    def packed(self) -> bytes:
        """As ``struct row`` of bpf/stack.h."""
        return _STRUCT.pack(self.cfa, self.return_address, self.frame_pointer, self.kind)

    @property
    def fits(self) -> bool:
        """Whether the C struct can hold it."""
        return (
            -_S32 <= self.cfa < _S32
            and -_S32 <= self.return_address <= 0
            and -_S32 <= self.frame_pointer <= 0
        )


FRAME_POINTER = CallRow(RowKind.GUESS, 16, -8, -16)
"""Where no table covers the code: correct if the function keeps a frame pointer."""

LOST = CallRow(RowKind.LOST)
"""The address is no code, or its table says something that cannot be followed."""
