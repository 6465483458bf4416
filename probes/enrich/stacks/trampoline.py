"""The piece of code that ``python -X perf`` makes for each Python function (x86-64).

It has no call frame table and keeps no frame pointer: ``sub $8,%rsp; call *%rcx;
add $8,%rsp; ret`` (CPython 3.12 and 3.13, Python/asm_trampoline.S).
"""

from __future__ import annotations

import platform
from pathlib import Path

from tcptrace.probes.engine.constants import Row as RowKind
from tcptrace.probes.enrich.stacks.row import CallRow

_CODE = bytes.fromhex("4883ec08ffd1")
_ROW = CallRow(RowKind.SP, 16, -8)


def trampoline_row(pid: int, start: int, name: str, address: int) -> CallRow | None:
    """The row inside the call of the trampoline at ``start``; None if it is none.

    The code itself is looked at, in the process's memory: another version's trampoline
    must not be followed by this one's rule.
    """
    if platform.machine() != "x86_64" or not name.startswith("py::"):
        return None
    if address != start + len(_CODE) - 1:  # of the return address, minus 1
        return None
    try:
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(start)
            return _ROW if memory.read(len(_CODE)) == _CODE else None
    except OSError:
        return None
