"""Where CPython keeps what a stack is read from: offsets in bytes, per version.

Until 3.12 they stand here, computed with offsetof() from the headers of 3.11.0rc1, 3.11.2,
3.11.7, 3.12.1 and 3.12.3 (x86-64; all patch versions agree): Include/internal/pycore_frame.h,
pycore_interp.h, pycore_runtime.h, Include/cpython/code.h, pystate.h, unicodeobject.h. From 3.13
on the interpreter tells them itself, in `struct _Py_DebugOffsets` at the start of _PyRuntime
(pycore_runtime.h, since 3.14 pycore_debug_offsets.h); here stands how to read that, compared
with offsetof() from 3.13.0, 3.13.18, 3.14.10 and 3.15.2.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

NO_FIELD = 0xFFFFFFFF
"""This version has no such field (PYTHON_NO_FIELD of bpf/python.h)."""

_WORD = 8
_NEVER = 256  # above every owner, which is a byte
_PACKED = struct.Struct("=Q22I")
_COOKIE = b"xdebugpy"


class UnsupportedError(Exception):
    """It is a Python, but not one whose structures are known; the text says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One version's offsets. ``thread_links`` is where prev, next and interp lie in a row."""

    # _PyRuntimeState, PyInterpreterState
    interpreters: int
    next_interpreter: int
    threads: int
    # PyThreadState, and _PyCFrame
    thread_links: int = 0
    thread_ids: int
    status: int = NO_FIELD
    current: int
    in_cframe: int = NO_FIELD
    # _PyInterpreterFrame
    frame_code: int
    previous: int
    instruction: int
    owner: int
    is_entry: int = NO_FIELD
    first_mark: int = 3
    """FRAME_OWNED_BY_CSTACK, since 3.14 _INTERPRETER: not Python, but a call from C."""
    # PyCodeObject; what lies from code_unchanging to linetable never changes
    filename: int = 112
    qualname: int = 128
    linetable: int = 136
    first_line: int = 68
    code_unchanging: int = 48
    is_numbered: bool = True
    """It has a co_version, which no second code object gets."""
    instructions: int
    # PyObject, PyTypeObject, PyBytesObject, PyASCIIObject
    type_: int = 8
    type_name: int = 24
    bytes_size: int = 16
    bytes_data: int = 32
    text_length: int = 16
    text_hash: int = 24
    text_state: int = 32
    ascii_data: int = 40
    wide_data: int = 56

    @property
    def identity_bytes(self) -> int:
        return self.linetable + _WORD - self.code_unchanging

    @property
    def first_traceable(self) -> int:
        """co_firsttraceable: the first instruction from which on tracebacks have the frame."""
        return self.instructions - 2 * _WORD

    @property
    def code_bytes(self) -> int:
        return self.instructions

    def unchanging(self, code: bytes) -> bytes:
        return code[self.code_unchanging : self.linetable + _WORD]

    def _named(self) -> tuple[int, ...]:
        """The words that lead to line table, name and file, where these belong to the identity."""
        if self.is_numbered:
            return (NO_FIELD,) * 3
        places = self.linetable, self.qualname, self.filename
        return tuple((at - self.code_unchanging) // _WORD for at in places)

    def packed(self, runtime: int) -> bytes:
        """As ``struct python_layout`` of bpf/python.h. ``runtime``: the address of _PyRuntime."""
        frame_end = 1 + max(
            self.owner,
            0 if self.is_entry == NO_FIELD else self.is_entry,
            *(at + _WORD - 1 for at in (self.frame_code, self.previous, self.instruction)),
        )
        return _PACKED.pack(
            runtime, self.interpreters, self.next_interpreter, self.threads,
            self.thread_links, self.thread_ids, self.status, self.current, self.in_cframe,
            self.frame_code, self.previous, self.instruction, self.owner, self.is_entry,
            self.first_mark, frame_end, self.code_unchanging, self.identity_bytes,
            *self._named(), self.ascii_data, self.wide_data,
        )  # fmt: skip


_TABLES = {
    (3, 11): Layout(
        interpreters=40, next_interpreter=0, threads=16,
        thread_ids=152, current=56, in_cframe=8,
        frame_code=32, previous=48, instruction=56, owner=69, is_entry=68, first_mark=_NEVER,
        first_line=72, code_unchanging=56, instructions=184, is_numbered=False,
        ascii_data=48, wide_data=72,
    ),
    (3, 12): Layout(
        interpreters=40, next_interpreter=0, threads=72,
        thread_ids=136, status=24, current=56, in_cframe=0,
        frame_code=0, previous=8, instruction=56, owner=70, instructions=192,
    ),
}  # fmt: skip

_GROUPS_3_13 = {
    "head": "cookie version free_threaded",
    "runtime": "size finalizing interpreters_head",
    "interpreter": "size id next threads_head gc imports_modules sysdict builtins ceval_gil "
    "gil_runtime_state gil_runtime_state_enabled gil_runtime_state_locked "
    "gil_runtime_state_holder",
    "thread": "size prev next interp current_frame thread_id native_thread_id datastack_chunk "
    "status",
    "frame": "size previous executable instr_ptr localsplus owner",
    "code": "size filename name qualname linetable firstlineno argcount localsplusnames "
    "localspluskinds co_code_adaptive",
    "object": "size ob_type",
    "type": "size tp_name tp_repr tp_flags",
    "tuple": "size ob_item ob_size",
    "list": "size ob_item ob_size",
    "dict": "size ma_keys ma_values",
    "float": "size ob_fval",
    "long": "size lv_tag ob_digit",
    "bytes": "size ob_size ob_sval",
    "unicode": "size state length asciiobject_size",
}
_GROUPS_3_14 = {
    name: {
        "interpreter": "size id next threads_head threads_main gc imports_modules sysdict builtins "
        "ceval_gil gil_runtime_state gil_runtime_state_enabled gil_runtime_state_locked "
        "gil_runtime_state_holder code_object_generation tlbc_generation",
        "frame": f"{fields} stackpointer tlbc_index",
        "code": f"{fields} co_tlbc",
        "list": f"{fields} set.size set.used set.table set.mask",
    }.get(name, fields)
    for name, fields in _GROUPS_3_13.items()
}
_GROUPS_3_15 = {
    name: {
        "thread": "size prev next interp current_frame base_frame last_profiled_frame "
        "last_profiled_frame_seq thread_id native_thread_id datastack_chunk status holds_gil "
        "gil_requested current_exception exc_state err_stackitem.exc_value",
        "type": f"{fields} tp_basicsize tp_dictoffset heap.size heap.ht_cached_keys",
    }.get(name, fields)
    for name, fields in _GROUPS_3_14.items()
}
_GROUPS = {(3, 13): _GROUPS_3_13, (3, 14): _GROUPS_3_14, (3, 15): _GROUPS_3_15}


def layout_of(version: int, read: Callable[[int], bytes]) -> Layout:
    """The layout of the Python whose Py_Version is given.

    ``read`` gives that many bytes from the start of _PyRuntime.

    Raises:
        UnsupportedError: nobody wrote that version down, or it is a variant of it.
    """
    minor = (version >> 24, version >> 16 & 0xFF)
    if minor in _TABLES:
        return _TABLES[minor]
    if minor not in _GROUPS:
        raise UnsupportedError(f"Python {minor[0]}.{minor[1]} is not one of 3.11 to 3.15")
    names = [f"{group}.{field}" for group, text in _GROUPS[minor].items() for field in text.split()]
    raw = read(len(names) * _WORD)
    told = dict(zip(names, struct.unpack(f"={len(names)}Q", raw), strict=True))
    if not raw.startswith(_COOKIE) or told["head.version"] != version:
        raise UnsupportedError("its table of offsets is not where it should be")
    if told["head.free_threaded"]:
        raise UnsupportedError("a free-threaded Python keeps its frames in another way")
    return _told(told)


def _told(told: dict[str, int]) -> Layout:
    links = [told[f"thread.{name}"] for name in ("prev", "next", "interp")]
    if links != [0, _WORD, 2 * _WORD]:
        raise UnsupportedError("its threads are linked in another way")
    if told["thread.native_thread_id"] != told["thread.thread_id"] + _WORD:
        raise UnsupportedError("its threads are numbered in another way")
    return Layout(
        interpreters=told["runtime.interpreters_head"],
        next_interpreter=told["interpreter.next"],
        threads=told["interpreter.threads_head"],
        thread_ids=told["thread.thread_id"],
        status=told["thread.status"],
        current=told["thread.current_frame"],
        frame_code=told["frame.executable"],
        previous=told["frame.previous"],
        instruction=told["frame.instr_ptr"],
        owner=told["frame.owner"],
        filename=told["code.filename"],
        qualname=told["code.qualname"],
        linetable=told["code.linetable"],
        first_line=told["code.firstlineno"],
        code_unchanging=told["code.argcount"] // _WORD * _WORD,
        instructions=told["code.co_code_adaptive"],
        type_=told["object.ob_type"],
        type_name=told["type.tp_name"],
        bytes_size=told["bytes.ob_size"],
        bytes_data=told["bytes.ob_sval"],
        text_length=told["unicode.length"],
        text_state=told["unicode.state"],
        ascii_data=told["unicode.asciiobject_size"],
        wide_data=told["unicode.asciiobject_size"] + 2 * _WORD,
    )
