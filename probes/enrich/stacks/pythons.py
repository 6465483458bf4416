"""The interpreters of Python processes: what the kernel half saw of them, as frames."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from tcptrace.probes.engine import bpfcall
from tcptrace.probes.enrich.stacks.cpython import ENDS, End, Interpreter, NotPythonError
from tcptrace.probes.enrich.stacks.cpython_layouts import UnsupportedError
from tcptrace.probes.enrich.stacks.cpython_merge import merged
from tcptrace.probes.enrich.stacks.frame import Frame
from tcptrace.probes.enrich.stacks.kernelside import KernelSide

_MAX_INTERPRETERS = 256
_WORD, _MARK = struct.Struct("=Q"), struct.pack("=I", 1)
_WRAP = (1 << 64) - 1
_FACTOR = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class PythonStack:
    """The Python frames of one stack, read as soon as it was heard of: code may be freed.

    ``groups``: one for each call from C to Python. ``joints``: which native frame makes it.
    """

    end: End
    groups: list[list[Frame]]
    joints: bytes

    def merged_into(self, native: Sequence[Sequence[Frame]]) -> tuple[list[Frame], list[str]]:
        """Native and Python frames together, and a note where Python frames are missing."""
        notes = [] if self.end == End.COMPLETE else [f"[Python: {ENDS[self.end]}]"]
        if not self.groups:
            return [frame for frames in native for frame in frames], notes
        return merged(native, self.groups, self.joints), notes


class Pythons:
    """One Interpreter for each process: a forked child may import other code than its parent."""

    def __init__(self, kernel: KernelSide) -> None:
        self._kernel = kernel
        self._known: OrderedDict[int, Interpreter] = OrderedDict()

    def know(self, pid: int, image: int) -> str:
        """Look at the process, and tell the kernel half where its frames are.

        Returns why they cannot be read; empty: they can.
        """
        key = _key(image, pid)
        if key in self._known:
            return ""
        try:
            fresh = Interpreter(pid)
        except (NotPythonError, UnsupportedError, OSError) as error:
            return str(error)
        self._known[key] = fresh
        while len(self._known) > _MAX_INTERPRETERS:
            self._known.popitem(last=False)[1].close()
        bpfcall.update(self._kernel.python_layouts, _WORD.pack(key), fresh.packed())
        bpfcall.update(self._kernel.python_images, _WORD.pack(image), _MARK)
        return ""

    def stack(self, pid: int, image: int, number: int, *, joined: bool) -> PythonStack | None:
        """What the kernel half recorded under this number; None: no Python.

        ``joined``: it has also found out which native frames execute Python.
        """
        layout = self._kernel.python_stack
        if not number or layout is None:
            return None
        raw = bpfcall.lookup(self._kernel.python_stacks, _WORD.pack(number), layout.size)
        if raw is None:
            return None
        record = dict(zip(layout.names, layout.decoder().unpack(raw), strict=True))
        end = End(record["end"])
        if end == End.NO_LAYOUT:
            self.know(pid, image)  # a forked child: from now on
        interpreter = self._known.get(_key(image, pid))
        count = record["count"]
        groups = interpreter.frames(record["frames"], count) if interpreter and count else []
        return PythonStack(end, groups, record["joints"] if joined else b"")


def _key(image: int, pid: int) -> int:
    """As mixed() of bpf/space.h."""
    mixed = ((image ^ pid) * _FACTOR) & _WRAP
    return mixed ^ (mixed >> 29)
