"""Call frame tables, against readelf's reading of the same tables."""

import platform
import re
import struct
from pathlib import Path

import pytest

from tcptrace.probes.engine.constants import Row
from tcptrace.probes.enrich.stacks.callframes import SIGNAL
from tcptrace.probes.enrich.stacks.row import KEPT, LOST, CallRow
from tests.unit.elf_tools import Program, build

X86 = platform.machine() == "x86_64"
SP, FP, RA = ("rsp", "rbp", "rip") if X86 else ("sp", "x29", "x30")

CALLS = """
#include <alloca.h>
#include <stdio.h>
__attribute__((noinline)) void leaf(char *at) { *(volatile char *)at = 1; }
__attribute__((noinline)) int keeps(int n) { char b[100]; leaf(b); return b[n] + n; }
__attribute__((noinline)) int varies(int n) { char *b = alloca(n); leaf(b); return b[0]; }
int main(int count, char **words) { return printf("%d", keeps(count) + varies(count)) + !words; }
"""

REALIGNED = """
#include <alloca.h>
__attribute__((noinline)) void leaf(char *at) { *(volatile char *)at = 1; }
__attribute__((noinline)) int realigned(int n) {
    char a[64] __attribute__((aligned(64))), *b = alloca(n);
    leaf(a); leaf(b);
    return a[0] + b[0];
}
int main(int count, char **words) { return realigned(count) + !words; }
"""


def as_readelf_says(columns):
    """A row in readelf's columns, where it is one that CallRow has; else None."""
    base = re.fullmatch(r"(\w+)\+(\d+)", columns["CFA"])
    kind = {SP: Row.SP, FP: Row.FP}.get(base[1]) if base else None
    saved = [columns.get(name, "u") for name in ("ra", FP)]
    if kind is None or not all(re.fullmatch(r"c-\d+|u|s", place) for place in saved):
        return None
    if X86 and saved[0] == "s":
        return None
    if saved[0] == "u" and "ra" in columns:
        return CallRow(Row.END)
    return CallRow(kind, int(base[2]), *(KEPT if p in "us" else int(p[1:]) for p in saved))


def agree(program):
    """Every row of a file; returns how many there were that CallRow can express."""
    binary = program.opened()
    expressed = 0
    for address, columns in program.rows():
        expected, found = as_readelf_says(columns), binary.row(address)
        if found == SIGNAL:
            continue
        if expected is None:
            assert found.kind in (Row.LOST, Row.FP_DEREF), (hex(address), columns, found)
        elif not expected.fits:
            assert found == LOST, (hex(address), columns)
        else:
            assert found == expected, (hex(address), columns)
            expressed += 1
    return expressed


@pytest.mark.parametrize(
    "options",
    [
        ["-O0"],
        ["-O2"],
        ["-O2", "-fomit-frame-pointer"],
        ["-O2", "-fno-omit-frame-pointer"],
        ["-O2", "-fcf-protection"] if X86 else ["-O2", "-mbranch-protection=standard"],
        ["-O2", "-no-pie"],
        ["-O2", "-static-pie"],
    ],
    ids=" ".join,
)
def test_every_row_is_what_readelf_prints(tmp_path, options):
    assert agree(build(tmp_path, CALLS, *options)) > 10


def test_every_row_of_the_c_library(libc):
    """Thousands of compilers' and hand-written rows."""
    assert agree(libc) > 5000


def test_a_frame_pointer_is_used_where_the_stack_pointer_varies(tmp_path):
    program = build(tmp_path, CALLS, "-O2")
    kinds = {program.opened().row(at).kind for at in program.function_at("varies")}
    assert kinds == {Row.SP, Row.FP}


@pytest.mark.skipif(not X86, reason="arm64 realigns without it")
def test_a_function_that_realigns_its_stack(tmp_path):
    """GCC's dynamic realignment: the CFA stands on the stack, below the frame pointer."""
    program = build(tmp_path, REALIGNED, "-O2")
    rows = [program.opened().row(at) for at in program.function_at("realigned")]
    assert CallRow(Row.FP_DEREF, cfa=-8, return_address=-8) in rows
    assert {row.kind for row in rows} <= {Row.SP, Row.FP_DEREF, Row.LOST}


def test_the_outermost_function_has_no_caller(tmp_path):
    program = build(tmp_path, CALLS)
    assert program.opened().row(program.symbols["_start"] + 4).kind == Row.END


def test_no_table_is_no_row(tmp_path):
    program = build(tmp_path, CALLS, "-O2", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables")
    binary = program.opened()
    assert binary.row(program.symbols["keeps"]) is None
    assert binary.row(1 << 40) is None


@pytest.mark.parametrize("split", [False, True], ids=["within", "in the debug file"])
def test_tables_that_only_a_debugger_has(tmp_path, split):
    """.debug_frame: what an executable without exceptions has, if it has any."""
    options = "-g", "-O2", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables", "-Wl,--build-id"
    program = build(tmp_path, CALLS, *options)
    address = program.function_at("keeps")[-1]
    expected = CallRow(Row.SP, 8, -8) if X86 else CallRow(Row.SP, 0)
    if not split:
        assert program.opened().row(address) == expected
        return
    stripped = program.copied(tmp_path / "stripped", "--strip-all")
    assert stripped.opened(tmp_path).row(address) is None
    identity = program.build_id
    place = tmp_path / f"usr/lib/debug/.build-id/{identity[:2]}/{identity[2:]}.debug"
    program.copied(place, "--only-keep-debug")
    assert stripped.opened(tmp_path).row(address) == expected


# Hand-written tables. Two nops stand before each rule, and two behind it.
HAND_WRITTEN = """
.text
.globl _start, hand
_start: nop
hand:
.cfi_startproc {head}
nop
nop
{rule}
nop
nop
.cfi_endproc
"""
NOPS = 2 if X86 else 8


def hand_written(folder, rule, head=""):
    """The row behind a rule."""
    text = HAND_WRITTEN.format(rule="\n".join(rule.split("; ")), head=head)
    program = build(folder, text, "-nostdlib", suffix="s")
    return program.opened().row(program.symbols["hand"] + NOPS)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (f".cfi_def_cfa {SP}, 4096; .cfi_offset {RA}, -8", CallRow(Row.SP, 4096, -8)),
        (f".cfi_def_cfa {FP}, 16; .cfi_offset {RA}, -8", CallRow(Row.FP, 16, -8)),
        (f".cfi_def_cfa {SP}, 1073741824; .cfi_offset {RA}, -8", CallRow(Row.SP, 1 << 30, -8)),
        (f".cfi_offset {RA}, -8; .cfi_undefined {FP}", CallRow(Row.SP, 8 * X86, -8)),
        (f".cfi_offset {RA}, -8; .cfi_same_value {FP}", CallRow(Row.SP, 8 * X86, -8)),
        (f".cfi_undefined {RA}", CallRow(Row.END)),
        (".cfi_signal_frame", SIGNAL),
        (f".cfi_def_cfa {'rbx' if X86 else 'x19'}, 16; .cfi_offset {RA}, -8", LOST),
        (f".cfi_offset {RA}, -8; .cfi_register {FP}, {'rbx' if X86 else 'x19'}", LOST),
        (f".cfi_register {RA}, {'rbx' if X86 else 'x19'}", LOST),
        (f".cfi_offset {RA}, -40000", CallRow(Row.SP, 8 * X86, -40000)),
        (f".cfi_offset {RA}, 8", LOST),
        (f".cfi_offset {RA}, 0", LOST),
        (f".cfi_offset {RA}, -8; .cfi_val_offset {FP}, -16", LOST),
        (f".cfi_offset {RA}, -8; .cfi_offset {FP}, -40000", CallRow(Row.SP, 8 * X86, -8, -40000)),
    ],
)
def test_hand_written_rules(tmp_path, rule, expected):
    assert hand_written(tmp_path, rule) == expected


def test_a_return_address_that_stays_in_its_register(tmp_path):
    """arm64's link register; on x86-64 there is none, and the table is wrong."""
    expected = LOST if X86 else CallRow(Row.SP, 0)
    assert hand_written(tmp_path, f".cfi_same_value {RA}") == expected


def test_another_return_address_register_is_not_followed(tmp_path):
    assert hand_written(tmp_path, ".cfi_return_column 3") == LOST


# DW_CFA_def_cfa_expression (0x0f): *(rbp - 8). DW_CFA_expression (0x10) of rbp (6).
CFA_BELOW = ".cfi_escape 0x0f, 3, 0x76, 0x78, 0x06"


@pytest.mark.skipif(not X86, reason="registers' numbers of x86-64")
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (f"{CFA_BELOW}; .cfi_escape 0x10, 6, 2, 0x76, 0", CallRow(Row.FP_DEREF, -8, -8)),
        (f"{CFA_BELOW}; .cfi_escape 0x10, 6, 2, 0x76, 8", LOST),  # saved elsewhere
        (f"{CFA_BELOW}; .cfi_escape 0x10, 6, 2, 0x77, 0", LOST),  # by another register
        (f"{CFA_BELOW}; .cfi_escape 0x16, 6, 2, 0x76, 0", LOST),  # a value, not a place
        (f"{CFA_BELOW}; .cfi_offset rbp, -16", LOST),
        (CFA_BELOW, LOST),  # not said where
        (".cfi_escape 0x0f, 3, 0x77, 8, 0x06", LOST),  # below the stack pointer
        (".cfi_escape 0x0f, 4, 0x76, 8, 0x06, 0x06", LOST),
        (".cfi_escape 0x0f, 0", LOST),
        (".cfi_escape 0x0f, 2, 0x77, 16", CallRow(Row.SP, 16, -8)),
        (".cfi_escape 0x0f, 3, 0x92, 7, 16", CallRow(Row.SP, 16, -8)),
        (".cfi_escape 0x3f", None),  # no such instruction: a damaged table is no table
    ],
)
def test_expressions(tmp_path, rule, expected):
    assert hand_written(tmp_path, rule) == expected


@pytest.mark.parametrize(
    ("machine", "code"),
    [(62, "48c7c00f0000000f05"), (62, "b80f0000000f05"), (183, "681180d2010000d4")],
)
def test_a_signal_handlers_return_without_a_table_is_known_by_its_code(tmp_path, machine, code):
    """musl's, Go's."""
    data = ".byte " + ", ".join(f"0x{byte:02x}" for byte in bytes.fromhex(code))
    source = f".text\n.globl _start\n_start: .quad 0\nback: {data}\n.quad 0\n"
    program = build(tmp_path, source, "-nostdlib", suffix="s")
    as_machine(program, machine)
    binary, back = program.opened(), program.symbols["back"]
    assert binary.row(back) == binary.row(back - 1) == SIGNAL
    assert binary.row(back + 1) is None
    assert binary.row(back - 2) is None


def as_machine(program, number):
    """Change the ELF header's e_machine."""
    raw = bytearray(program.path.read_bytes())
    struct.pack_into("<H", raw, 18, number)
    program.path.write_bytes(raw)


# A table for arm64 in a file that any assembler can make: registers by number.
ARM64 = """
.text
.globl _start, leaf, inner, realigned
.macro function name
\\name:
.cfi_startproc simple
.cfi_return_column 30
.cfi_def_cfa 31, 0
.endm
function leaf
nop
.cfi_endproc
function inner
nop
.cfi_def_cfa_offset 32
.cfi_offset 29, -32
.cfi_offset 30, -24
nop
.cfi_def_cfa 29, 32
nop
.cfi_endproc
function _start
.cfi_undefined 30
nop
.cfi_endproc
"""


def test_arm64(tmp_path):
    program = build(tmp_path, ARM64, "-nostdlib", suffix="s")
    as_machine(program, 183)
    binary, at = program.opened(), program.symbols
    nop = at["inner"] - at["leaf"]
    assert binary.row(at["leaf"]) == CallRow(Row.SP, 0, KEPT, KEPT)
    assert binary.row(at["inner"] + nop) == CallRow(Row.SP, 32, -24, -32)
    assert binary.row(at["inner"] + 2 * nop) == CallRow(Row.FP, 32, -24, -32)
    assert binary.row(at["_start"]) == CallRow(Row.END)


def test_another_processors_file_is_not_followed(tmp_path):
    program = build(tmp_path, CALLS)
    as_machine(program, 243)  # RISC-V
    assert program.opened().row(program.symbols["main"]) == LOST


@pytest.fixture(scope="module")
def libc():
    with open("/proc/self/maps") as maps:
        return Program(Path(re.search(r"/\S+/libc(?:\.so\.6|-2\S+)", maps.read())[0]))
