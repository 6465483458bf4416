"""The two halves agree: every constant of the C half is defined by the Python half, once."""

import re
from pathlib import Path

import pytest

from tcptrace.probes import filters, rungs, states, tracer
from tcptrace.probes.engine import constants, loader, offsets
from tests.unit.c_text import BPF, sources

PREFIXES = ("TCP", "HOW", "FACT", "KIND", "COUNT", "ADOPT", "SETTING")

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


def constant(path):
    return f"O_{path.replace('.', '__')}"


def written_in(*modules):
    """O_ names that stand as text in a Python module."""
    text = "".join(Path(module.__file__).read_text() for module in modules)
    return set(re.findall(r"\bO_\w+__\w+", text))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_constant_that_is_used_is_defined(prefix):
    names = used(rf"{prefix}_[A-Z0-9_]+")
    assert names - set(constants.definitions()) == set()
    assert names, f"{prefix}_ is used nowhere: drop it from constants.py"


def test_every_offset_that_is_used_is_asked_for():
    known = set(map(constant, FIELDS)) | written_in(offsets, rungs)
    assert used(r"O_\w+") - known == set()
    assert {name.replace("Z_", "O_", 1) for name in used(r"Z_\w+")} - known == set()


@pytest.mark.parametrize("prefix", ["FACT", "KIND", "COUNT", "SETTING", "ADOPT"])
def test_every_constant_that_the_c_half_alone_can_say_is_said(prefix):
    """A Fact that nobody sets would make the Python half wait for it in vain."""
    defined = {name for name in constants.definitions() if name.startswith(f"{prefix}_")}
    assert defined - used(rf"{prefix}_[A-Z0-9_]+") == set()


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


SWITCHES = re.compile(r"\b(?:FILTER_\w+|FOLLOW_\w+|TRACE_\w+|HAVE_\w+|ACCEPT_BY_\w+|MAX_\w+)\b")


def test_every_switch_is_set_by_the_python_half():
    text = "".join(
        Path(module.__file__).read_text() for module in (filters, rungs, tracer, offsets)
    )
    for name in set(SWITCHES.findall(ALL)):
        assert f'"{name}"' in text, f"nobody defines {name}"


def test_the_python_half_sets_no_switch_that_the_c_half_does_not_know():
    text = "".join(Path(module.__file__).read_text() for module in (filters, rungs))
    for name in re.findall(r'"((?:FILTER|FOLLOW|TRACE|HAVE|ACCEPT)_[A-Z_]+)"', text):
        assert name in ALL, f"{name} does nothing"


def test_every_source_is_compiled_and_every_compiled_source_is_there():
    assert set(loader.SHARED) | set(states.SOURCES) == set(TEXTS)


def test_every_function_that_is_attached_is_there():
    hooks = [
        hook
        for fact in rungs.needed(by_pid=True, follow=True)
        for rung in fact.rungs
        for hook in rung.hooks
    ]
    for function in {*(hook.function for hook in hooks), *states.ON_DEMAND, *states.COPIED}:
        assert re.search(rf"^int {function}\(", ALL, re.MULTILINE), f"no C function {function}"


def test_every_map_that_is_filled_is_there():
    text = Path(tracer.__file__).read_text() + Path(filters.__file__).read_text()
    named = set(re.findall(r'(?:map|put)\("(\w+)"', text)) | set(
        re.findall(r"yield \"(\w+)\"", text)
    )
    assert named
    for name in named:
        assert re.search(rf"\bBPF_\w+\({name}\b", ALL), f"no map {name}"


def defined_in_c(name):
    return int(re.search(rf"#define {name} (\d+)", ALL)[1])


def test_numbers_that_stand_in_both_halves_are_equal():
    assert defined_in_c("PORT_LOCAL") == filters.PORT_LOCAL
    assert defined_in_c("PORT_REMOTE") == filters.PORT_REMOTE
    assert states._OWN_NUMBER == 1 << 63
    assert "#define OWN_NUMBER (1ULL << 63)" in ALL


@pytest.mark.parametrize("file", sorted(TEXTS))
def test_files_that_a_comment_names_are_there(file):
    root = BPF.parent
    for name in re.findall(r"\b(?:probes|bpf|cli)/[\w/]+\.(?:py|h|c)\b", (BPF / file).read_text()):
        assert (root / name).is_file(), f"bpf/{file} speaks of {name}"
