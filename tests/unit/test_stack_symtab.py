"""Functions by symbols alone: what is stripped, exported, hand-written or compressed."""

import bisect
import lzma

from tcptrace.probes.enrich.stacks.frame import Frame
from tests.unit.elf_tools import CLASSES, INLINES, build, run

LIBRARY = """
static __attribute__((noinline)) int own(int n) { return n * 3 + getpid(); }
int first(int n) { return own(n) + 1; }
static __attribute__((noinline)) int other(int n) { return n * 5 + getpid(); }
int second(int n) { return other(n) + 2; }
"""


def test_a_stripped_library_names_what_it_exports_and_nothing_else(tmp_path):
    """Its own functions lie between exported ones: the nearest name below is a wrong one."""
    library = build(
        tmp_path, f"int getpid(void);{LIBRARY}", "-O2", "-shared", "-fPIC", "-fno-toplevel-reorder"
    )
    stripped = library.copied(tmp_path / "stripped", "--strip-all").opened(name="lib")
    for name, function in (
        ("first", "first"),
        ("own", None),
        ("other", None),
        ("second", "second"),
    ):
        for address in library.function_at(name):
            assert stripped.frames(address) == [Frame(function, "lib", address)], name


def test_every_symbol_reaches_from_its_first_byte_to_its_last(tmp_path):
    classes = build(tmp_path, CLASSES, "-O2", suffix="cpp")
    binary = classes.opened()
    rows = [row.split() for row in run("nm", "-S", classes.path).splitlines()]
    sized = [(int(r[0], 16), int(r[1], 16)) for r in rows if len(r) == 4 and r[2] in "tTwW"]
    starts = sorted(start for start, _ in sized)
    for start, size in sized:
        at_start, at_end = (binary.frames(at)[0].function for at in (start, start + size - 1))
        assert at_start == at_end is not None
        next_one = bisect.bisect_right(starts, start)
        if next_one < len(starts) and starts[next_one] > start + size:
            assert binary.frames(start + size)[0].function != at_start


ASSEMBLY = """
.text
.globl _start, exported
nop
_start: nop
nop
exported: nop
nop
sized: nop
inside: nop
nop
.size sized, 2
.size inside, 0
nop
alone: nop
nop
.data_of_code: nop
nop
.section .more, "ax"
nop
nop
far: nop
"""


def hand_written(folder, *options):
    return build(
        folder, ASSEMBLY.replace("nop\n", ".byte 0x90\n"), "-nostdlib", *options, suffix="s"
    )


def named(program, *places):
    binary, symbols = program.opened(), program.symbols if program.symbols else {}
    return [binary.frames(symbols.get(name, 0) + distance)[0].function for name, distance in places]


def test_a_symbol_without_a_size_reaches_to_the_next_symbol_of_any_kind(tmp_path):
    program = hand_written(tmp_path)
    places = [
        ("_start", -1), ("_start", 0), ("_start", 1), ("exported", 0), ("exported", 1),
        ("sized", 0), ("inside", 0), ("inside", 1), ("inside", 2),
        ("alone", 0), ("alone", 1), ("far", -1), ("far", -2), ("far", 0),
    ]  # fmt: skip
    assert named(program, *places) == [
        None, "_start", "_start", "exported", "exported",
        "sized", "sized", None, None,
        "alone", "alone", None, None, "far",
    ]  # fmt: skip


def test_a_lone_symbol_without_a_size_names_its_section(tmp_path):
    source = '.text\n.globl _start\n_start: .skip 64\n.section .more, "ax"\n.skip 64\n'
    program = build(tmp_path, source, "-nostdlib", suffix="s")
    assert named(program, ("_start", 0), ("_start", 63)) == ["_start", "_start"]
    assert named(program, ("_start", 64), ("_start", 100)) == [None, None]


def test_among_exported_symbols_only_one_without_a_size_names_nothing(tmp_path):
    program = hand_written(tmp_path, "-shared")
    at = program.symbols["_start"]
    stripped = program.copied(tmp_path / "stripped", "--strip-all")
    assert stripped.opened().frames(at)[0].function is None
    assert program.opened().frames(at)[0].function == "_start"


def test_data_and_marks_are_no_functions(tmp_path):
    source = (
        ".text\n.globl _start\n_start: .byte 0x90, 0x90\n.type table, @object\n"
        "table: .skip 16\n.size table, 16\n$x: .byte 0x90, 0x90\n"
    )
    program = build(tmp_path, source, "-nostdlib", suffix="s")
    binary, start = program.opened(), program.symbols["_start"]
    assert binary.frames(start + 19)[0].function == "_start"


def test_of_several_names_the_one_that_people_use(tmp_path):
    names = ["__write", "write", "__libc_write", "__GI___write"]
    source = ".text\n" + "".join(f".globl {name}\n.type {name}, @function\n" for name in names)
    source += "".join(f"{name}:\n" for name in names) + ".byte 0x90\n"
    source += (
        "".join(f".size {name}, 1\n" for name in names) + ".globl _start\n_start: .byte 0x90\n"
    )
    program = build(tmp_path, source, "-nostdlib", suffix="s")
    assert named(program, ("write", 0)) == ["write"]


def test_mini_debug_information(tmp_path):
    """Fedora's: a compressed symbol table of what is not exported, in .gnu_debugdata."""
    inlines = build(tmp_path, INLINES, "-g", "-O2", name="whole")
    kept = inlines.copied(tmp_path / "kept", "--only-keep-debug", "--strip-debug")
    (tmp_path / "mini.xz").write_bytes(lzma.compress(kept.path.read_bytes()))
    stripped = inlines.copied(tmp_path / "program", "--strip-all")
    add = f"--add-section=.gnu_debugdata={tmp_path / 'mini.xz'}"
    mini = stripped.copied(tmp_path / "mini", add)
    address = inlines.symbols["outer"]
    assert stripped.opened().frames(address)[0].function is None
    assert mini.opened().frames(address)[0].function == "outer"
