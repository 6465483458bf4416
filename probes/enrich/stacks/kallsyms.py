"""The kernel's own functions by address, from /proc/kallsyms."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import os
import re
import time
from array import array
from collections.abc import Sequence
from pathlib import Path

KALLSYMS = Path("/proc/kallsyms")
KPTR_RESTRICT = Path("/proc/sys/kernel/kptr_restrict")
REREAD_S = 60.0
_PAGE = 4096
_CODE = (b"t", b"T", b"w", b"W")
_PADDING = b"__pfx_"  # the bytes before a function, which are never executed
_ENDS = {"_etext", "_einittext"}
"""Marks where code ends: what follows is none."""


class KernelSymbols:
    """Names of kernel functions; the file is read when first asked, in about 0.2 s.

    An address that is not found makes it read again, at most once in REREAD_S: a module may
    have been loaded since. Names of modules and BPF programs are as of the last reading.
    """

    def __init__(self) -> None:
        self._table: _Table | None = None
        self._next_read = 0.0
        self._error = ""

    def name(self, address: int) -> str | None:
        """The function at this address: ``tcp_close``, ``mptcp_close [mptcp]``.

        Of a return address ask for the byte before: the call may have been the function's last
        instruction. None: no code that the kernel has a name for.
        """
        found = self._now().covering(address)
        return found or (self._now().covering(address) if self._forget_if_old() else None)

    @property
    def hidden(self) -> bool:
        """Whether the kernel tells this process no addresses; then ``name`` is always None."""
        if self._now().is_empty:
            self._forget_if_old()
        return self._now().is_empty

    @property
    def why(self) -> str:
        """Why they are hidden, with the line to paste; empty if they are not."""
        if not self.hidden:
            return ""
        if self._error:
            return f"the kernel's functions have no names here: {self._error}"
        with contextlib.suppress(OSError):
            restrict = KPTR_RESTRICT.read_text().strip()
            if restrict != "2":
                return (
                    f"kernel.kptr_restrict={restrict} shows kernel addresses to root only"
                    " (CAP_SYSLOG): run it with sudo"
                )
        return "kernel.kptr_restrict=2 hides them: sudo sysctl kernel.kptr_restrict=1"

    def _forget_if_old(self) -> bool:
        if time.monotonic() < self._next_read:
            return False
        self._table = None
        return True

    def _now(self) -> _Table:
        if self._table is None:
            self._next_read = time.monotonic() + REREAD_S
            try:
                self._table, self._error = _Table(KALLSYMS), ""
            except OSError as error:
                self._table, self._error = _Table(Path(os.devnull)), str(error)
        return self._table


class _Table:
    """Addresses in order, and the names in one piece of memory: some 40 bytes a function."""

    def __init__(self, path: Path) -> None:
        self._addresses, self._ends, self._names = array("Q"), array("I"), bytearray()
        with path.open("rb") as file:
            for line in file:
                address, kind, name = line.split(b" ", 2)
                if kind in _CODE and not name.startswith(_PADDING):
                    self._addresses.append(int(address, 16))
                    self._names += name[:-1]
                    self._ends.append(len(self._names))
        self._order = array("I", range(len(self._addresses)))
        if any(one > two for one, two in itertools.pairwise(self._addresses)):
            self._sort()  # modules come in the order in which they were loaded

    @property
    def is_empty(self) -> bool:
        return not self._addresses or not self._addresses[-1]

    def _sort(self) -> None:
        self._order = array("I", sorted(self._order, key=self._addresses.__getitem__))
        self._addresses = array("Q", [self._addresses[index] for index in self._order])

    def covering(self, address: int) -> str | None:
        last = bisect.bisect_right(self._addresses, address) - 1
        if last < 0:
            return None
        start = self._addresses[last]
        first = bisect.bisect_left(self._addresses, start)
        function, module = self._name(first)
        if any(self._name(index)[0] in _ENDS for index in range(first, last + 1)):
            return None
        # sizes are not told: the last function of a module is taken to end with its page
        ends_region = last + 1 == len(self._addresses) or self._name(last + 1)[1] != module
        if ends_region and address >= (start | _PAGE - 1) + 1:
            return None
        return f"{function} {module}" if module else function

    def _name(self, index: int) -> tuple[str, str]:
        """(function, [module])."""
        place = self._order[index]
        begin = self._ends[place - 1] if place else 0
        text = self._names[begin : self._ends[place]].decode(errors="replace")
        function, _, module = text.partition("\t")
        return function, module


_MACHINERY = re.compile(
    r"(?:bpf_prog_[0-9a-f]{16}(?:_.*)?|bpf_(?:trampoline|dispatcher)_\w+|___?bpf_prog_run\w*"
    r"|__bpf_prog_(?:enter|exit)\w*|bpf_trace_run\d+|__bpf_trace_\w+|__traceiter_\w+"
    r"|bpf_get_stack\w*|__bpf_get_stack\w*|get_perf_callchain|perf_callchain\w*"
    r"|trace_call_bpf|perf_call_bpf_\w+|perf_trace_\w+|perf_syscall_(?:enter|exit)"
    r"|trace_event_raw_event_\w+|(?:arch_)?ftrace_\w+|kprobe_\w+|kretprobe_\w+"
    r"|aggr_pre_handler|opt_pre_handler|optimized_callback|(?:asm_exc|exc|do)_int3)(?: \[.*\])?"
)


def trimmed(names: Sequence[str]) -> list[str]:
    """Without the innermost frames that are the tracing itself, not what it interrupted.

    A name that is only an address is one of them if one follows: a BPF program has no name
    where net.core.bpf_jit_kallsyms is 0.
    """
    traced = 0
    for number, name in enumerate(names, 1):
        if _MACHINERY.fullmatch(name):
            traced = number
        elif not name.startswith("0x"):
            break
    return list(names[traced:])
