"""The two halves agree: every constant of the C half is defined by the Python half, once."""

import ctypes as ct
import re
from pathlib import Path
from unittest import mock

import pytest

from tcptrace.probes import adoption, filters, plan, rungs, stacks, states, tracer
from tcptrace.probes.engine import constants, loader, losses, offsets, tracefs
from tcptrace.probes.enrich.stacks import row, walk
from tests.unit.c_text import BPF, c_struct, sources

PREFIXES = (
    "TCP",
    "HOW",
    "FACT",
    "KIND",
    "COUNT",
    "ADOPT",
    "SETTING",
    "ROW",
    "WALK",
    "STACK",
    "DEED",
    "PIPE",
)
SAID_IN_PYTHON = {"STACK_COLLISION", "WALK_NOT_COPIED"}
"""What only the user half can find out."""

TEXTS = sources()
ALL = "\n".join(TEXTS.values())


def expanded(text):
    """With the names that the macros HEAD and READ_WIDE put together."""
    text = re.sub(r"\bHEAD\(([^,()]+|\([^()]*\)), ([\w ]+), (\w+)\)", r"O_sock_common__\3", text)
    return re.sub(r"\bREAD_WIDE\((\w+), (\w+), (\w+)\)", r"O_\3 Z_\3", text)


def used(pattern):
    """Matching words of the C half, but for macros that paste names together."""
    text = re.sub(r"#define (?:[^\n]*\\\n)*[^\n]*##[^\n]*\n", "", ALL)
    return set(re.findall(rf"\b{pattern}\b", expanded(text)))


FIELDS = [
    path
    for name, paths in vars(offsets).items()
    if name.isupper() and isinstance(paths, tuple)
    for path in paths
]
"""Every struct.field that offsets.py asks for, whatever the name of its list."""


MACHINES = {
    machine: {f"O_pt_regs__{name}" for name in registers} | set(offsets.SIGNAL_FRAME[machine])
    for machine, registers in offsets._REGISTERS.items()
}
"""Processor -> the constants that depend on it."""
ANY_MACHINE = set().union(*MACHINES.values())


FACTS = rungs.needed(by_pid=True, follow=True, stacks=True, deeds=True)


class AllFields(dict):
    """A tracepoint that has every field."""

    def __contains__(self, _name):
        return True

    def __missing__(self, _name):
        return 0


def defined_by_rungs():
    """The switches and offsets of all rungs."""
    with mock.patch.object(tracefs, "fields", return_value=AllFields()):
        return {name for fact in FACTS for rung in fact.rungs for name in rung.definitions()}


def constant(path):
    return f"O_{path.replace('.', '__')}"


def written_in(*modules):
    """O_ names that stand as text in a Python module."""
    text = "".join(Path(module.__file__).read_text() for module in modules)
    return set(re.findall(r"\bO_\w+__\w+", text))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_constant_that_is_used_is_defined(prefix):
    names = {name for name in used(rf"{prefix}_[A-Z0-9_]+") if not SWITCHES.fullmatch(name)}
    assert names - set(constants.definitions()) == set()
    assert names, f"{prefix}_ is used nowhere: drop it from constants.py"


def test_every_offset_that_is_used_is_asked_for():
    known = set(map(constant, FIELDS)) | written_in(offsets) | ANY_MACHINE
    known |= defined_by_rungs()
    assert used(r"O_\w+") - known == set()
    assert {name.replace("Z_", "O_", 1) for name in used(r"Z_\w+")} - known == set()


@pytest.mark.parametrize(
    "prefix", ["FACT", "KIND", "COUNT", "SETTING", "ADOPT", "WALK", "STACK", "DEED", "PIPE"]
)
def test_every_constant_that_the_c_half_alone_can_say_is_said(prefix):
    """A Fact that nobody sets would make the Python half wait for it in vain."""
    defined = {name for name in constants.definitions() if name.startswith(f"{prefix}_")}
    assert defined - used(rf"{prefix}_[A-Z0-9_]+") - SAID_IN_PYTHON == set()


@pytest.mark.parametrize("path", FIELDS)
def test_every_offset_that_is_asked_for_is_used(path):
    """A field that nobody reads must not stop the start on a kernel that lacks it."""
    assert constant(path) in used(r"O_\w+")


@pytest.mark.parametrize("path", offsets.OPTIONAL)
def test_an_optional_field_is_only_read_where_the_kernel_has_it(path):
    name = constant(path)
    for file, text in TEXTS.items():
        for at in (match.start() for match in re.finditer(rf"\b{name}\b", expanded(text))):
            before = expanded(text)[:at]
            opened = len(re.findall(r"^#if", before, re.MULTILINE))
            closed = len(re.findall(r"^#endif", before, re.MULTILINE))
            assert opened > closed or before.endswith("defined("), f"{file} reads {name} unguarded"


def compiled_for(text, machine):
    """The text without what other processors alone compile; of other conditions both sides."""
    left, sides = [], []
    for line in text.splitlines():
        word, _, name = line.partition(" ")
        if word in ("#if", "#ifdef"):
            sides.append((name, name in MACHINES[machine]))
        elif word == "#else":
            name, defined = sides.pop()
            sides.append((name, not defined))
        elif word == "#endif":
            sides.pop()
        elif all(holds for name, holds in sides if name in ANY_MACHINE):
            left.append(line)
    return "\n".join(left)


@pytest.mark.parametrize("machine", MACHINES)
def test_each_processor_has_the_registers_that_are_read_on_it_and_no_others(machine):
    left = "\n".join(compiled_for(text, machine) for text in TEXTS.values())
    assert ANY_MACHINE & set(re.findall(r"\b\w+\b", left)) == MACHINES[machine]


SWITCHES = re.compile(
    r"\b(?:(?:FILTER|FOLLOW|TRACE|HAVE|ACCEPT_BY|IO_BY|MAX)_\w+"
    r"|CODE_IS_FOLLOWED|DEEDS|STACK_USER|STACK_KERNEL|STACK_PYTHON|\w*RING_PAGES|SNAPSHOTS_PER_SECOND)\b"
)


def texts_of(*modules):
    return "".join(Path(module.__file__).read_text() for module in modules)


USERS = texts_of(adoption, filters, losses, stacks, tracer)
"""Those who name maps and programs."""


def test_every_switch_is_set_by_the_python_half():
    text = texts_of(filters, plan, offsets)
    for name in set(SWITCHES.findall(ALL)) - defined_by_rungs():
        assert f'"{name}"' in text, f"nobody defines {name}"


def test_the_python_half_sets_no_switch_that_the_c_half_does_not_know():
    written = set(re.findall(r'"([A-Z]+_[A-Z_]+)"', texts_of(filters, plan)))
    for name in written | defined_by_rungs():
        assert re.search(rf"\b{name}\b", ALL), f"{name} does nothing"


def test_every_source_is_compiled_and_every_compiled_source_is_there():
    assert set(loader.SHARED) | set(states.SOURCES) == set(TEXTS)


def test_every_function_that_is_attached_is_there():
    hooks = [hook for fact in FACTS for rung in fact.rungs for hook in rung.hooks]
    named = {*(hook.function for hook in hooks), *states.ON_DEMAND, *states.COPIED}
    called = set(re.findall(r'\.(?:program|run)\("(\w+)"', USERS))
    assert "tell_space" in called
    for function in named | called:
        assert re.search(rf"^int {function}\(", ALL, re.MULTILINE), f"no C function {function}"


def test_every_map_that_is_used_is_there():
    named = set(re.findall(r'(?:map|put)\("(\w+)"|yield "(\w+)"', USERS))
    names = {name for pair in named for name in pair if name}
    assert names >= {"events", "settings", "wanted_ports", "counts", "rows", "kernel_stacks"}
    for name in names:
        pattern = rf'\bBPF_\w+\((?:"\w+", (?:[\w ]+, ){{2}})?{name}\b'
        assert re.search(pattern, ALL), f"no map {name}"


def defined_in_c(name):
    return int(re.search(rf"#define {name} (\d+)", ALL)[1])


def test_numbers_that_stand_in_both_halves_are_equal():
    assert defined_in_c("PORT_LOCAL") == filters.PORT_LOCAL
    assert defined_in_c("PORT_REMOTE") == filters.PORT_REMOTE
    assert defined_in_c("FRAMES") == walk.MAX_FRAMES
    assert defined_in_c("EXACT") == walk.EXACT
    assert states._OWN_NUMBER == 1 << 63
    assert "#define OWN_NUMBER (1ULL << 63)" in ALL
    assert walk._ADDRESS_BITS == (1 << 56) - 1
    assert "#define ADDRESS_BITS ((1ULL << 56) - 1)" in ALL


def test_constants_above_the_signed_numbers_are_written_as_unsigned():
    assert loader._literal(constants.Stack.UNFINISHED) == "9223372036854775808ULL"
    assert loader._literal((1 << 63) - 1) == "9223372036854775807"


def test_a_row_is_packed_as_the_c_half_reads_it():
    packed = row.CallRow(constants.Row.FP, 0x12345678, -8, -16).packed()
    read = c_struct(TEXTS["stack.h"], "row").from_buffer_copy(packed)
    assert (read.cfa, read.return_address, read.frame_pointer, read.kind) == (
        *(0x12345678, -8, -16),
        constants.Row.FP,
    )
    assert len(packed) == ct.sizeof(type(read))


@pytest.mark.parametrize("file", sorted(sources()))
def test_files_that_a_comment_names_are_there(file):
    root = BPF.parent
    for name in re.findall(r"\b(?:probes|bpf|cli)/[\w/]+\.(?:py|h|c)\b", (BPF / file).read_text()):
        assert (root / name).is_file(), f"bpf/{file} speaks of {name}"
