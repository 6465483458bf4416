"""Python frames: what bpf/python.h saw of CPython's structures, as functions and lines.

Only the target's memory is read: no agent, no flag. Nothing is believed unseen. Where a
version keeps its structures is known (cpython_layouts.py) and tried out on each process
before the kernel half uses it. A code object may be freed before it is read here, and its
memory may hold another function: its identity, taken at the event, tells.
"""

from __future__ import annotations

import contextlib
import enum
import os
import struct
from collections.abc import Iterator
from pathlib import PurePath

from tcptrace.probes.enrich.stacks.cpython_code import Codes
from tcptrace.probes.enrich.stacks.cpython_layouts import NO_FIELD, UnsupportedError, layout_of
from tcptrace.probes.enrich.stacks.elfsymbol import Memory, Symbols, modules
from tcptrace.probes.enrich.stacks.frame import Frame

MODULE = "python"
FREED = "its code was freed before it could be read"

_ENTRY = 1  # PYTHON_ENTRY
_FRAME = struct.Struct("=QII")  # struct python_frame
_MOST_TRIED, _TRIES = 64, 3
_MOST_KNOWN = 16384


class End(enum.IntEnum):
    """How a walk of the kernel half ended: PYTHON_x of bpf/python.h."""

    COMPLETE = 0
    DEEP = 1
    UNREADABLE = 2
    NO_LAYOUT = 3
    NO_THREAD = 4
    AMBIGUOUS = 5


ENDS = {
    End.DEEP: "more than 32 Python frames",
    End.UNREADABLE: "the interpreter's memory could not be read",
    End.NO_LAYOUT: "the interpreter was not known yet",
    End.NO_THREAD: "the interpreter does not know this thread",
    End.AMBIGUOUS: "this thread runs in several interpreters",
}
"""Why Python frames are missing, at the outer end or altogether."""


class NotPythonError(Exception):
    """There is no CPython in the process, or it has not started."""


class Interpreter:
    """The CPython of one process; has a descriptor, so ``close()`` it.

    A forked child needs one of its own: what it imports later is not where the
    parent's, or its siblings', code is.

    Raises:
        NotPythonError: it may become one by exec, dlopen, or when it has started.
        UnsupportedError: a Python whose structures are not known; the text says which.
        OSError: the process is gone, or may not be read.
    """

    def __init__(self, pid: int) -> None:
        self._memory = Memory(pid)
        self._known: dict[tuple[int, int, int], Frame] = {}
        try:
            self._runtime, code_type, version = _located(pid, self._memory)
            self._layout = layout_of(version, lambda size: self._memory.read(self._runtime, size))
            self._codes = Codes(self._memory, self._layout, code_type)
            self._try_out()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._memory.close()

    def packed(self) -> bytes:
        """``struct python_layout``: the value for the map ``python_layouts``."""
        return self._layout.packed(self._runtime)

    def frames(self, raw: bytes, count: int) -> list[list[Frame]]:
        """``python_stack.frames``, the innermost first: one list for each call from C.

        A list is empty where the call was not executing Python, as when the function had
        returned and its variables were being freed.
        """
        groups: list[list[Frame]] = [[]]
        for code, instruction, identity in _FRAME.iter_unpack(raw[: count * _FRAME.size]):
            key = code, instruction & ~_ENTRY, identity
            if code and (frame := self._known.get(key) or self._frame(*key)):
                groups[-1].append(frame)
            if instruction & _ENTRY:
                groups.append([])
        return groups if groups[-1] else groups[:-1]

    def _frame(self, address: int, instruction: int, identity: int) -> Frame | None:
        """None: it has not begun."""
        code = self._codes.get(address, identity)
        if code is None:
            return Frame(None, MODULE, address, guessed=FREED)
        offset = instruction - self._layout.instructions
        if instruction and offset < code.begins_at:
            return None
        frame = Frame(code.qualname, MODULE, file=code.filename, line=code.line(offset))
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[address, instruction, identity] = frame
        return frame

    def _try_out(self) -> None:
        """Read what its threads execute now. They run on meanwhile: one that is read whole will do.

        Where none executes Python (uWSGI in its C loop) only the lists are tried.
        """
        for _ in range(_TRIES):
            results = [self._reads_well(thread) for thread in self._threads()]
            if not results:
                raise NotPythonError("its interpreter has not started")
            if any(results) or False not in results:
                return
        raise UnsupportedError("its structures are not those of its version")

    def _reads_well(self, thread: int) -> bool | None:
        try:
            read = [self._codes.read(address) for address in self._executed(thread)]
        except (OSError, ValueError):
            return False
        return True if read else None

    def _threads(self) -> Iterator[int]:
        """The thread states of the first interpreter."""
        at, memory = self._layout, self._memory
        with contextlib.suppress(OSError):
            interpreter = memory.u64(self._runtime + at.interpreters)
            thread = memory.u64(interpreter + at.threads) if interpreter else 0
            for _ in range(_MOST_TRIED):
                links = thread + at.thread_links
                if not thread or memory.u64(links + 16) != interpreter:
                    return
                yield thread
                thread = memory.u64(links + 8)

    def _executed(self, thread: int) -> Iterator[int]:
        """The code objects of a thread's frames, as bpf/python.h walks them."""
        at, memory = self._layout, self._memory
        frame = memory.u64(thread + at.current)
        if frame and at.in_cframe != NO_FIELD:
            frame = memory.u64(frame + at.in_cframe)
        for _ in range(_MOST_TRIED):
            if not frame:
                return
            if memory.read(frame + at.owner, 1)[0] < at.first_mark:
                yield memory.u64(frame + at.frame_code) & ~7
            frame = memory.u64(frame + at.previous)


def _located(pid: int, memory: Memory) -> tuple[int, int, int]:
    """The addresses of _PyRuntime and PyCode_Type, and Py_Version."""
    program = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
    for base, path in modules(pid):
        if path != program and not PurePath(path).name.startswith(("python", "libpython")):
            continue
        with contextlib.suppress(OSError):
            symbols = Symbols(memory, base)
            runtime, code_type = map(symbols.address, ("_PyRuntime", "PyCode_Type"))
            version = symbols.address("Py_Version")
            if runtime and code_type and version:
                return runtime, code_type, memory.u64(version)
            if code_type:
                raise UnsupportedError("a Python older than 3.11")
    raise NotPythonError("there is no CPython in it")
