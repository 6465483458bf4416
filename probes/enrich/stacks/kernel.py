"""Kernel stacks: numbers in the kernel's stack map, named by kallsyms."""

from __future__ import annotations

import struct

from tcptrace.probes.engine import bpfcall
from tcptrace.probes.enrich.stacks.kallsyms import KernelSymbols, trimmed
from tcptrace.probes.enrich.stacks.stack import EVICTED, Stack, stack_of, unknown

_DEPTH = 127  # PERF_MAX_STACK_DEPTH, and so of the map
_NUMBER = struct.Struct("=I")


class KernelStacks:
    """The stacks of one map. ``fd`` is -1 where none are taken."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._symbols: KernelSymbols | None = None

    def stack(self, number: int) -> Stack:
        """The frames, without those of the tracing itself."""
        raw = bpfcall.lookup(self._fd, _NUMBER.pack(number), 8 * _DEPTH)
        if raw is None:
            return EVICTED
        symbols = self._symbols = self._symbols or KernelSymbols()
        if symbols.hidden:
            return unknown(symbols.why)
        addresses = [address for (address,) in struct.iter_unpack("=Q", raw) if address]
        # All but the innermost are return addresses, perhaps of the next function already.
        calls = [*addresses[:1], *(address - 1 for address in addresses[1:])]
        return stack_of(trimmed([symbols.name(at) or f"{at:#x}" for at in calls]))
