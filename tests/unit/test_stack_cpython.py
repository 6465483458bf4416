"""CPython's structures: read from the interpreter that runs the tests, which tells the truth."""

import asyncio
import contextlib
import ctypes
import functools
import gc
import inspect
import json
import os
import re
import struct
import sys
import types
from dataclasses import fields
from pathlib import Path

import pytest

from tcptrace.probes.enrich.stacks import cpython, cpython_code, cpython_layouts, cpython_merge
from tcptrace.probes.enrich.stacks.cpython import FREED, Interpreter, NotPythonError
from tcptrace.probes.enrich.stacks.cpython_code import Codes, Text, identity_of, line_at
from tcptrace.probes.enrich.stacks.cpython_layouts import UnsupportedError, layout_of
from tcptrace.probes.enrich.stacks.cpython_merge import APART, NO_JOINT, joints_of, merged
from tcptrace.probes.enrich.stacks.elfsymbol import Memory, Symbols, modules
from tcptrace.probes.enrich.stacks.frame import Frame
from tests.unit.c_text import BPF, c_struct, with_numbers

HEADER = (BPF / "python.h").read_text()
FRAME = struct.Struct("=QII")

known = pytest.mark.skipif(
    not (3, 11) <= sys.version_info[:2] <= (3, 15), reason="this Python's structures are not known"
)


# Lines: PEP 657


def codes_of(code):
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes_of(constant)


def codes_of_module(module):
    yield from codes_of(compile(inspect.getsource(module), module.__file__, "exec"))


@known
@pytest.mark.parametrize("module", [json.decoder, asyncio.base_events, inspect, functools, re])
def test_every_instruction_has_the_line_that_the_interpreter_gives(module):
    instructions = 0
    for code in codes_of_module(module):
        for index, (line, *_) in enumerate(code.co_positions()):
            assert line_at(code.co_linetable, code.co_firstlineno, 2 * index) == line
            instructions += 1
    assert instructions > 1000


@known
def test_lines_far_apart_backwards_and_without_a_place():
    source = "x = (\n" + "\n" * 500 + "a +\n" + "\n" * 70 + "b)\nfor i in x:\n  pass\n"
    code = compile(source, "far", "exec")
    lines = [line for line, *_ in code.co_positions()]
    assert max(filter(None, lines)) > 570
    assert [line_at(code.co_linetable, 1, 2 * i) for i in range(len(lines))] == lines


@pytest.mark.parametrize("table", [b"", b"\x80", b"\xf0", b"\xf0\x7f", b"\x00\x00", b"\xe8" * 9])
def test_a_table_that_is_cut_off_or_nonsense_gives_no_line_beyond_it(table):
    assert line_at(table, 1, 10_000) is None
    line_at(table, 1, 0)


# Code objects, in this process's memory


@pytest.fixture
def interpreter():
    with contextlib.closing(Interpreter(os.getpid())) as found:
        yield found


@pytest.fixture
def codes(interpreter):
    return interpreter._codes


def layout_here():
    with contextlib.closing(Interpreter(os.getpid())) as found:
        return found._layout


def identity(codes, code):
    """As the kernel half makes it, at the event."""
    at, memory, address = codes._layout, codes._memory, id(code)
    unchanging = at.unchanging(memory.read(address, at.code_bytes))
    if at.is_numbered:
        return identity_of(unchanging)
    read = [memory.u64(address + where) for where in (at.linetable, at.qualname, at.filename)]
    texts = [codes._text(string) for string in read[1:]]
    return identity_of(unchanging, memory.s64(read[0] + 24), texts)


def as_seen(interpreter, frame, entry=False):
    """A frame as the kernel half hands it over."""
    codes = interpreter._codes
    at = codes._layout.instructions + frame.f_lasti
    return FRAME.pack(id(frame.f_code), at | entry, identity(codes, frame.f_code))


def truth(frame):
    return (frame.f_code.co_qualname, frame.f_code.co_filename, frame.f_lineno)


def told(groups):
    return [[(frame.function, frame.file, frame.line) for frame in group] for group in groups]


def stack_from(frame):
    while frame:
        yield frame
        frame = frame.f_back


@known
def test_the_frames_of_this_test_are_those_that_python_says(interpreter):
    stack = list(stack_from(sys._getframe().f_back))[:32]
    expected = [[truth(frame) for frame in stack]]
    raw = b"".join(as_seen(interpreter, frame) for frame in stack)
    assert told(interpreter.frames(raw, len(stack))) == expected
    assert interpreter.frames(raw, len(stack))[0][0].module == "python"


@known
def test_frames_are_told_apart_by_what_calls_them_from_c(interpreter):
    def key(_):
        stack.extend(list(stack_from(sys._getframe()))[:3])

    stack = []
    sorted([1], key=key)
    inner, *outer = stack
    expected = [[truth(inner)], [(frame.f_code.co_qualname) for frame in outer]]
    raw = as_seen(interpreter, inner, entry=True)
    raw += b"".join(as_seen(interpreter, frame, frame is outer[-1]) for frame in outer)
    groups = told(interpreter.frames(raw, 3))
    assert [groups[0], [name for name, _, _ in groups[1]]] == expected


@known
def test_a_call_from_c_that_executes_no_python_is_an_empty_list(interpreter):
    frame, mark = sys._getframe(), FRAME.pack(0, 1, 0)
    raw = mark + as_seen(interpreter, frame, entry=True) + mark
    assert [len(group) for group in interpreter.frames(raw, 3)] == [0, 1, 0]


@known
def test_only_as_many_frames_are_read_as_there_are(interpreter):
    raw = as_seen(interpreter, sys._getframe()) + FRAME.pack(1, 2, 3) * 31
    assert [len(group) for group in interpreter.frames(raw, 1)] == [1]
    assert interpreter.frames(raw, 0) == []


@known
def test_a_frame_that_has_not_begun_is_left_out_as_python_does(interpreter):
    code = sys._getframe().f_code
    before = FRAME.pack(
        id(code), interpreter._layout.instructions - 2, identity(interpreter._codes, code)
    )
    assert interpreter.frames(before, 1) == []


@known
def test_where_the_instruction_is_not_known_the_function_still_is(interpreter):
    code = sys._getframe().f_code
    raw = FRAME.pack(id(code), 0, identity(interpreter._codes, code))
    assert told(interpreter.frames(raw, 1)) == [[(code.co_qualname, code.co_filename, None)]]


def made(name, file="made.py", lines=0):
    space = {}
    exec(compile("\n" * lines + f"def {name}():\n  return 1\n", file, "exec"), space)
    return space[name].__code__


@known
@pytest.mark.parametrize("name", ["plain", "grüße", "函数", "𐌰𐌱", "n" * 300])
def test_names_and_files_of_every_kind_of_string(codes, name):
    code = made(name, file=f"/tmp/{name}.py", lines=3)
    found = codes.get(id(code), identity(codes, code))
    assert (found.qualname, found.filename) == (code.co_qualname, code.co_filename)
    assert found.first_line == 4


@known
def test_a_name_that_is_no_text_can_still_be_written(codes):
    code = made("f", file="/tmp/\udcff.py")
    found = codes.get(id(code), identity(codes, code))
    assert found.filename.encode() == rb"/tmp/\xff\xdc.py"


@known
def test_another_identity_is_another_function(interpreter):
    frame = sys._getframe()
    wrong = identity(interpreter._codes, frame.f_code) ^ 1
    [[found]] = interpreter.frames(FRAME.pack(id(frame.f_code), 500, wrong), 1)
    assert (found.function, found.guessed) == (None, FREED)


@known
def test_a_code_object_that_was_freed_is_not_read(codes):
    code = made("gone")
    address, told_then = id(code), identity(codes, code)
    del code
    gc.collect()
    assert codes.get(address, told_then) is None


@known
def test_code_that_takes_the_place_of_another_is_never_taken_for_it(codes):
    """The same address, again and again; the identity was taken while it was alive."""
    places = set()
    for number in range(300):
        code = made(f"f_{number:04}", lines=number % 7)
        places.add(id(code))
        address, seen = id(code), identity(codes, code)
        if number % 2:
            del code
            code = made(f"f_{number + 1000:04}", lines=number % 5)
        found = codes.get(address, seen)
        assert found is None or found.qualname == f"f_{number:04}"
    assert len(places) < 300


@known
@pytest.mark.parametrize("what", [b"bytes", "text", 12345678901234567890, [], object(), int])
def test_other_objects_are_no_code(codes, what):
    with pytest.raises(ValueError, match="no code object"):
        codes.read(id(what))


@known
def test_nothing_is_mapped_there(codes):
    for address in (0, 8, 1 << 46, 1 << 63, (1 << 64) - 8):
        with pytest.raises(OSError, match=r"mapped|address|Errno"):
            codes.read(address)


@known
def test_what_is_kept_is_bounded(codes, monkeypatch):
    monkeypatch.setattr(cpython_code, "_KEPT", 3)
    kept = [made(f"f{number}") for number in range(9)]
    for code in kept:
        assert codes.get(id(code), identity(codes, code))
    assert len(codes._known) == 3


def test_the_identity_is_made_of_every_word():
    unchanging = bytes(range(96))
    seen = {identity_of(unchanging)}
    for at in range(0, 96, 8):
        seen.add(identity_of(unchanging[:at] + b"\xff" + unchanging[at + 1 :]))
    assert len(seen) == 13


def test_the_identity_is_made_of_the_names_only_where_python_compiled_them_itself():
    names = [Text(b"one", 1, -1), Text(b"file", 1, -1)]
    others = [Text(b"two", 1, -1), Text(b"file", 1, -1)]
    assert identity_of(bytes(88), -1, names) == identity_of(bytes(88), -1, others)
    assert identity_of(bytes(88), 5, names) != identity_of(bytes(88), 5, others)
    assert identity_of(bytes(88), 5, names) != identity_of(bytes(88), 6, names)


def test_of_a_long_name_length_and_end_count():
    assert Text(b"a" + b"x" * 64, 1, -1).identity == Text(b"b" + b"x" * 64, 1, -1).identity
    assert Text(b"x" * 65, 1, -1).identity != Text(b"x" * 66, 1, -1).identity
    assert Text(b"x" * 66, 1, 77).identity == 77


# Finding the interpreter


@known
def test_the_interpreter_is_found_and_its_layout_fits(interpreter):
    assert interpreter._runtime == address_of("_PyRuntime")
    assert interpreter._layout.frame_code in (0, 32)
    assert len(interpreter.packed()) == ctypes.sizeof(c_struct(HEADER, "python_layout"))


def test_a_process_that_is_no_python():
    if not Path("/bin/sleep").exists():
        pytest.skip("no program to look at")
    child = os.posix_spawn("/bin/sleep", ["sleep", "30"], {})
    try:
        with pytest.raises(NotPythonError):
            Interpreter(child)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_a_process_that_is_gone():
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    with pytest.raises(OSError, match="No such"):
        Interpreter(child)


@known
def test_a_layout_that_does_not_fit_the_process_is_refused(monkeypatch):
    fits = layout_here()
    wrong = type(fits)(**{field.name: getattr(fits, field.name) for field in fields(fits)} | {
        "frame_code": 40
    })  # fmt: skip
    monkeypatch.setattr(cpython, "layout_of", lambda *_: wrong)
    with pytest.raises(UnsupportedError, match="not those of its version"):
        Interpreter(os.getpid())


@known
def test_descriptors_are_closed_also_when_it_fails(monkeypatch):
    before = os.listdir("/proc/self/fd")
    Interpreter(os.getpid()).close()
    monkeypatch.setattr(cpython, "layout_of", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Interpreter(os.getpid())
    assert os.listdir("/proc/self/fd") == before


# Layouts


def test_versions_that_are_not_known_are_refused():
    for version in (0x030A0DF0, 0x031000F0, 0x020712F0):
        with pytest.raises(UnsupportedError, match=r"3\.11 to 3\.15"):
            layout_of(version, lambda _: b"")


def offsets_table(version, **told):
    """A struct _Py_DebugOffsets whose n-th word says n, but for what is told."""
    minor = (version >> 24, version >> 16 & 0xFF)
    groups = cpython_layouts._GROUPS[minor]
    names = [f"{group}.{field}" for group, text in groups.items() for field in text.split()]
    links = {"thread.prev": 0, "thread.next": 8, "thread.interp": 16}
    values = dict(zip(names, range(len(names)), strict=True)) | links
    values |= {
        "head.cookie": int.from_bytes(b"xdebugpy", "little"),
        "head.version": version,
        "head.free_threaded": 0,
        "thread.native_thread_id": values["thread.thread_id"] + 8,
    }
    return struct.pack(f"={len(names)}Q", *(values | told).values())


FIELDS = (
    "interpreters threads thread_ids status frame_code owner instructions bytes_data text_state"
)
WORDS = {
    0x030D00F0: (5, 9, 24, 27, 30, 33, 43, 66, 68),
    0x030D12F0: (5, 9, 24, 27, 30, 33, 43, 66, 68),
    0x030E0AF0: (5, 9, 27, 30, 33, 36, 48, 76, 78),
    0x030F02F0: (5, 9, 30, 33, 41, 44, 56, 88, 90),
}
"""How many words stand before these in struct _Py_DebugOffsets: offsetof() with their headers."""


@pytest.mark.parametrize("version", WORDS)
def test_the_interpreters_own_table_is_read_by_its_version(version):
    found = layout_of(version, reader(version))
    assert tuple(getattr(found, name) for name in FIELDS.split()) == WORDS[version]


def reader(version, **told):
    raw = offsets_table(version, **told)
    return lambda size: raw[:size]


@pytest.mark.parametrize(
    ("told", "because"),
    [
        ({"head.cookie": 1}, "table of offsets"),
        ({"head.version": 0x030D01F0}, "table of offsets"),
        ({"head.free_threaded": 1}, "free-threaded"),
        ({"thread.next": 24}, "linked"),
        ({"thread.native_thread_id": 0}, "numbered"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(told, because):
    with pytest.raises(UnsupportedError, match=because):
        layout_of(0x030D00F0, reader(0x030D00F0, **told))


def test_both_halves_have_the_same_layout():
    layout = layout_of(0x030B02F0, lambda _: b"")
    struct_ = c_struct(HEADER, "python_layout").from_buffer_copy(layout.packed(0x1234))
    assert struct_.runtime == 0x1234
    assert (struct_.ids, struct_.current, struct_.in_cframe) == (152, 56, 8)
    assert (struct_.is_entry, struct_.first_mark, struct_.frame_bytes) == (68, 256, 70)
    assert (struct_.identity, struct_.identity_bytes) == (56, 88)
    assert (struct_.linetable, struct_.qualname, struct_.filename) == (10, 9, 7)
    assert (struct_.ascii_data, struct_.wide_data) == (48, 72)


def test_names_are_part_of_the_identity_only_before_code_was_numbered():
    packed = layout_of(0x030C03F0, lambda _: b"").packed(1)
    struct_ = c_struct(HEADER, "python_layout").from_buffer_copy(packed)
    assert struct_.linetable == struct_.qualname == cpython_layouts.NO_FIELD
    assert (struct_.first_mark, struct_.is_entry) == (3, cpython_layouts.NO_FIELD)


def in_c(name):
    return int(re.search(rf"#define PYTHON_{name} (\w+)", HEADER)[1], 0)


def test_numbers_that_stand_in_both_halves_are_equal():
    for end in cpython.End:
        assert in_c(end.name) == end
    assert set(cpython.ENDS) == set(cpython.End) - {cpython.End.COMPLETE}
    assert in_c("NO_FIELD") == cpython_layouts.NO_FIELD
    assert in_c("ENTRY") == cpython._ENTRY
    assert in_c("NO_JOINT") == NO_JOINT
    assert in_c("CODE_WORDS") * 8 == cpython_code._IDENTITY_BYTES
    assert in_c("TEXT_BYTES") == cpython_code._TEXT_BYTES
    assert in_c("OBJECT_HASH") == cpython_code._HASH
    assert ctypes.sizeof(c_struct(with_numbers(HEADER), "python_frame")) == FRAME.size


def test_a_layout_fits_into_what_the_kernel_half_reads():
    for version in (0x030B00F0, 0x030C00F0):
        packed = layout_of(version, lambda _: b"").packed(1)
        struct_ = c_struct(HEADER, "python_layout").from_buffer_copy(packed)
        assert struct_.frame_bytes <= in_c("FRAME_BYTES")
        assert struct_.identity_bytes <= in_c("CODE_WORDS") * 8


# Native and Python frames in one stack


def native(*names):
    return [[Frame(name, "libc.so")] for name in names]


def python(*groups):
    return [[Frame(name, "python") for name in group.split()] for group in groups]


def names(stack):
    return [frame.function for frame in stack]


EVAL = cpython_merge.EVALUATOR


def test_each_evaluator_gives_way_to_the_python_it_executes():
    stack = merged(native("recv", EVAL, "sort", f"{EVAL}.cold", "main"), python("key", "f g"))
    assert names(stack) == ["recv", "key", "sort", "f", "g", "main"]
    assert all(not frame.guessed for frame in stack)


def test_addresses_tell_the_evaluator_where_its_name_does_not():
    stack = merged(native("recv", None, "sort", None, "main"), python("key", "f"), [1, 3, 255])
    assert names(stack) == ["recv", "key", "sort", "f", "main"]


def test_what_was_inlined_into_the_evaluator_goes_with_it():
    frames = [*native("recv"), [Frame("inlined", "x", inlined=True), Frame(EVAL, "x")]]
    assert names(merged(frames, python("f"))) == ["recv", "f"]


def test_an_evaluator_that_executes_no_python_stays():
    stack = merged(native("close", EVAL, "sort", EVAL), python("", "f"))
    assert names(stack) == ["close", EVAL, "sort", "f"]


def test_the_mark_below_everything_is_nothing():
    assert names(merged(native("recv", EVAL, "main"), python("f", ""))) == ["recv", "f", "main"]
    joined = merged(native("recv", EVAL, "main"), python("f", ""), [1, 255])
    assert names(joined) == ["recv", "f", "main"]


def test_python_beyond_a_native_stack_that_was_cut_off_follows_it():
    stack = merged(native("recv", EVAL, "sort"), python("key", "f"), [1, 255])
    assert names(stack) == ["recv", "key", "sort", "f"]


def test_joints_that_tell_nothing_are_none():
    stack = merged(native("recv", EVAL, "main"), python("f"), [NO_JOINT] * 64)
    assert names(stack) == ["recv", "f", "main"]


def test_where_the_numbers_differ_the_place_is_marked():
    stack = merged(native("recv", EVAL, "main"), python("key", "f"))
    assert names(stack) == ["recv", "key", "f", EVAL, "main"]
    assert [frame.guessed for frame in stack] == ["", APART, APART, "", ""]


def test_without_any_evaluator_python_stands_at_the_end():
    stack = merged(native("recv", None), python("f"))
    assert names(stack) == ["recv", None, "f"]
    assert stack[-1].guessed == APART


def test_a_native_stack_without_python_stays_as_it_is():
    assert names(merged(native("recv", "main"), [])) == ["recv", "main"]
    assert names(merged(native("recv", EVAL, "main"), [])) == ["recv", EVAL, "main"]
    assert merged([], []) == []


@pytest.mark.parametrize(
    ("entries", "cfas", "joints"),
    [
        ([25, 45], [10, 20, 30, 40, 50], [2, 4]),
        ([25], [10], [255]),
        ([], [10, 20], []),
        ([20], [10, 20, 30], [2]),
        ([25, 5], [10, 20, 30, 40], [2, 255]),
        ([5, 25], [10, 20, 30], [255, 255]),
        ([25, 28], [10, 20, 30, 40], [2, 255]),
    ],
)
def test_variables_lie_in_the_frame_below_whose_end_they_are(entries, cfas, joints):
    assert joints_of(entries, cfas) == joints


# Symbols


def address_of(name):
    return ctypes.addressof(ctypes.c_char.in_dll(ctypes.pythonapi, name))


@pytest.fixture
def memory():
    with contextlib.closing(Memory(os.getpid())) as found:
        yield found


def loaded(memory):
    for base, _ in modules(os.getpid()):
        with contextlib.suppress(OSError):
            yield Symbols(memory, base)


@pytest.mark.parametrize("name", ["_PyRuntime", "PyCode_Type", "Py_GetVersion", "Py_IncRef"])
def test_symbols_are_where_the_linker_says(memory, name):
    found = {symbols.address(name) for symbols in loaded(memory)} - {None}
    assert found == {address_of(name)}


def test_a_symbol_that_is_not_there(memory):
    assert {symbols.address("no_such_symbol_anywhere") for symbols in loaded(memory)} == {None}


def test_memory_that_is_no_program(memory):
    raw = ctypes.create_string_buffer(b"\x7fELF\x02\x01" + bytes(250))
    with pytest.raises(OSError, match="no 64-bit ELF"):
        Symbols(memory, ctypes.addressof(raw))


def test_less_than_was_asked_for_is_an_error(memory):
    with pytest.raises(OSError, match=r"mapped|Errno"):
        memory.read(0, 8)
    with pytest.raises(OSError, match="no address"):
        memory.read(-1, 8)


def test_codes_is_what_the_interpreter_uses():
    assert Codes is cpython.Codes
