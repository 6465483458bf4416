"""Functions and lines of a binary, against what binutils say of it."""

import gc
import os
import random
import re
import socket
import weakref

import pytest

from tcptrace.probes.engine.constants import Row
from tcptrace.probes.engine.errors import MissingPieceError
from tcptrace.probes.enrich.stacks import libdw
from tcptrace.probes.enrich.stacks.binary import Binary
from tcptrace.probes.enrich.stacks.frame import Frame
from tests.unit.elf_tools import CLASSES, INLINES, Program, build, run


@pytest.fixture(scope="module")
def inlines(tmp_path_factory):
    return build(tmp_path_factory.mktemp("c"), INLINES, "-g", "-O2", "-Wl,--build-id")


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return build(tmp_path_factory.mktemp("cpp"), CLASSES, "-g", "-O2", suffix="cpp")


def call_in(program, function, callee):
    """The address after a call, less one: what a stack is looked up by."""
    listing = run("objdump", "-d", f"--disassemble={function}", program.path)
    rows = re.findall(r"^ +([0-9a-f]+):\t.*?\t(.*)$", listing, re.MULTILINE)
    at = next(
        i for i, row in enumerate(rows) if re.search(rf"call.*<{callee}|bl\s.*<{callee}", row[1])
    )
    return int(rows[at + 1][0], 16) - 1


def told(frames):
    return [(frame.function, frame.file, frame.line) for frame in frames]


def test_inlined_functions_come_before_the_real_one(inlines):
    address = call_in(inlines, "outer", "leaf")
    frames = inlines.opened().frames(address)
    source = str(inlines.path.with_suffix(".c"))
    assert frames == [
        Frame("deepest", "program", address, source, 7, inlined=True),
        Frame("middle", "program", address, source, 12, inlined=True),
        Frame("outer", "program", address, source, 15),
    ]
    assert str(frames[0]) == f"deepest (program) {source}:7 [inlined]"


def without_suffixes(frames):
    """Of the compiler: debug information and symbols differ there, as in f() [clone .cold]."""
    return [
        (re.sub(r" \[clone.*|\.(part|isra|cold)\S*", "", f or "") or None, *w) for f, *w in frames
    ]


def agree(program, addresses):
    """With addr2line, except that it takes a source file's name from the symbol table."""
    binary = program.opened()
    for address, expected in program.frames(addresses).items():
        found = without_suffixes(told(binary.frames(address)))
        expected = [row if row[2] else (row[0], found[-1][1], None) for row in expected]
        assert found == without_suffixes(expected), hex(address)


@pytest.mark.parametrize(
    "options", [["-gdwarf-4"], ["-gdwarf-5"], ["-O0"], ["-static-pie"]], ids=" ".join
)
def test_every_instruction_of_c_is_where_addr2line_says(tmp_path, options):
    program = build(tmp_path, INLINES, "-g", "-O2", *options)
    agree(program, [at for name in ("outer", "leaf", "main") for at in program.function_at(name)])


def sample(program, count=700):
    return random.Random(7).sample(program.instructions, count)


def test_instructions_of_cpp_are_where_addr2line_says(classes):
    """Templates, lambdas and much inlining; addr2line does not see all of a lambda's name."""
    binary = classes.opened()
    differ = []
    for address, expected in classes.frames(sample(classes)).items():
        found = told(binary.frames(address))
        if without_suffixes(found) != without_suffixes(expected):
            differ.append((hex(address), found, expected))
    named = [one for one in differ if [row[1:] for row in one[1]] != [row[1:] for row in one[2]]]
    assert [one for one in named if one[2][-1][2]] == []
    assert len(differ) < 20


def test_without_a_table_of_ranges_the_units_are_searched(inlines, tmp_path):
    """As clang leaves it out."""
    bare = inlines.copied(tmp_path / "bare", "--remove-section=.debug_aranges")
    addresses = inlines.function_at("outer")
    expected, found = inlines.opened(name="x"), bare.opened(name="x")
    assert [found.frames(at) for at in addresses] == [expected.frames(at) for at in addresses]


def test_code_without_debug_information_between_others_is_not_given_to_them(tmp_path):
    """libdw takes it for part of the unit before, and would tell that unit's last line."""
    for name, options in (("first", ["-g"]), ("second", []), ("third", ["-g"])):
        (tmp_path / f"{name}.c").write_text(f"int {name}(int n) {{ return n * 3; }}\n")
        run("gcc", "-c", *options, "-o", tmp_path / f"{name}.o", tmp_path / f"{name}.c")
    objects = [tmp_path / f"{name}.o" for name in ("first", "second", "third")]
    program = build(tmp_path, "int main() { return 0; }", *objects)
    symbols, binary = program.symbols, program.opened()
    assert symbols["first"] < symbols["second"] < symbols["third"]
    assert [str(frame) for frame in binary.frames(symbols["second"])] == ["second (program)"]
    assert binary.frames(symbols["third"])[0].line == 1
    assert binary.frames(symbols["first"])[0].line == 1


@pytest.mark.parametrize(
    ("function", "shown"),
    [
        ("_ZN3net4loopERNS_7HandlerEi", "net::loop(net::Handler&, int)"),
        ("_ZN3net5LeakyIiE2onEi", "net::Leaky<int>::on(int)"),
        ("_ZN3net12_GLOBAL__N_16hiddenEi", "net::(anonymous namespace)::hidden(int)"),
        ("main", "main"),
    ],
)
@pytest.mark.parametrize("debug", [True, False], ids=["-g", "symbols only"])
def test_cpp_functions_are_shown_with_their_types(classes, tmp_path, function, shown, debug):
    address = next(at for name, at in classes.symbols.items() if name.startswith(function))
    program = classes if debug else classes.copied(tmp_path / "program", "--strip-debug")
    frame = program.opened().frames(address)[-1]
    assert frame.function.partition(" [clone")[0] == shown
    assert bool(frame.line) == debug


def test_a_library_function_has_the_name_by_which_it_is_called(tmp_path):
    source = """
    int __lib_open(int n) { return n; }
    extern int open_it(int) __attribute__((alias("__lib_open")));
    int __own_read(int n) { return n; }
    extern int read(int) __attribute__((alias("__own_read")));
    int main() { return 0; }"""
    program = build(tmp_path, source, "-g", "-O0")
    binary, symbols = program.opened(), program.symbols
    assert binary.frames(symbols["__own_read"])[0].function == "read"
    assert binary.frames(symbols["__lib_open"])[0].function == "__lib_open"  # another function's


def test_a_signal_handlers_return_is_named_by_what_follows_the_address_before_it(tmp_path):
    source = (
        ".text\n.globl _start\n_start:\n.type back, @function\n.size back, 1\n"
        ".cfi_startproc\n.cfi_signal_frame\n.byte 0x90\nback: .byte 0x90\n.cfi_endproc\n"
    )
    whole = build(tmp_path, source, "-nostdlib", suffix="s")
    program = whole.copied(tmp_path / "other", "--strip-symbol=_start")
    binary, at = program.opened(), whole.symbols["back"]
    assert binary.row(at - 1).kind == Row.SIGNAL
    assert [binary.frames(at - n)[0].function for n in (0, 1)] == ["back", "back"]


def test_an_offset_in_the_file_leads_to_the_linked_address(inlines, tmp_path):
    moved = build(tmp_path, INLINES, "-no-pie", "-Wl,-Ttext-segment=0x7000000")
    for program in (inlines, moved):
        row = next(r for r in run("readelf", "-SW", program.path).splitlines() if " .text " in r)
        address, offset = (int(word, 16) for word in row.partition("]")[2].split()[2:4])
        binary = program.opened()
        distance = program.symbols["outer"] - address
        assert binary.address_of(offset + distance) == program.symbols["outer"]
        assert binary.address_of(1 << 40) is None
        assert binary.address_of(-1) is None


def test_the_build_id(inlines, tmp_path):
    assert inlines.opened().build_id == inlines.build_id
    assert build(tmp_path, INLINES, "-Wl,--build-id=none").opened().build_id is None


def test_the_build_id_of_a_file_without_sections(inlines, tmp_path):
    raw = bytearray(inlines.path.read_bytes())
    raw[40:48] = bytes(8)  # e_shoff
    raw[58:64] = bytes(6)
    path = tmp_path / "bare"
    path.write_bytes(raw)
    binary = Program(path).opened()
    assert binary.build_id == inlines.build_id
    assert binary.row(inlines.symbols["outer"]) == inlines.opened().row(inlines.symbols["outer"])


# Separate debug files


def place_by_id(root, identity):
    return root / f"usr/lib/debug/.build-id/{identity[:2]}/{identity[2:]}.debug"


def split(program, folder):
    """A stripped copy, and its debug file below ``folder``."""
    place = place_by_id(folder, program.build_id)
    program.copied(place, "--only-keep-debug")
    return program.copied(folder / "stripped", "--strip-all")


def test_debug_information_of_its_own_file(inlines, tmp_path):
    stripped = split(inlines, tmp_path)
    with_it, without = stripped.opened(tmp_path, name="x"), stripped.opened(name="x")
    whole = inlines.opened(name="x")
    for address in inlines.function_at("outer"):
        assert with_it.frames(address) == whole.frames(address)
        assert without.frames(address) == [Frame(None, "x", address)]


def test_debug_information_of_another_build_is_not_used(inlines, tmp_path):
    stripped = split(inlines, tmp_path)
    other = build(tmp_path, INLINES.replace("* 3", "* 5 - 1"), "-g", "-O2", "-Wl,--build-id")
    other.copied(place_by_id(tmp_path, inlines.build_id), "--only-keep-debug")
    address = inlines.symbols["outer"]
    assert stripped.opened(tmp_path, name="x").frames(address) == [Frame(None, "x", address)]


def test_debug_information_whose_shared_part_is_missing_is_not_used(inlines, tmp_path):
    """Without what dwz has moved away, libdw would open any file of that name."""
    link = tmp_path / "link"
    link.write_bytes(b"/nowhere/shared.debug\0" + bytes(range(20)))
    program = inlines.copied(tmp_path / "program", f"--add-section=.gnu_debugaltlink={link}")
    frames = program.opened(tmp_path).frames(inlines.symbols["outer"])
    assert [str(frame) for frame in frames] == ["outer (program)"]


def test_no_debuginfod_server_is_ever_asked(inlines, tmp_path, monkeypatch):
    stripped = inlines.copied(tmp_path / "stripped", "--strip-all")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("DEBUGINFOD_URLS", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("DEBUGINFOD_CACHE_PATH", str(tmp_path / "cache"))
        binary = stripped.opened(tmp_path)
        address = inlines.symbols["outer"]
        assert binary.frames(address)[0].function is None
        assert binary.row(address)
        assert binary.row(1) is None
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert not (tmp_path / "cache").exists()


# Files that are none, or not whole


def descriptors():
    return set(os.listdir("/proc/self/fd"))


NOTHING = {
    "empty": b"",
    "text": b"#!/bin/sh\necho\n",
    "only the magic": b"\x7fELF",
    "32 bits": b"\x7fELF\x01\x01" + bytes(200),
    "big-endian": b"\x7fELF\x02\x02" + bytes(200),
    "a header of zeros": b"\x7fELF\x02\x01\x01" + bytes(200),
    "a header of ones": b"\x7fELF\x02\x01\x01" + b"\xff" * 200,
}


@pytest.mark.parametrize("content", NOTHING.values(), ids=NOTHING)
def test_of_what_is_no_program_nothing_is_known(tmp_path, content):
    before = descriptors()
    path = tmp_path / "file"
    path.write_bytes(content)
    binary = Program(path).opened(name="file")
    assert binary.frames(0x1000) == [Frame(None, "file", 0x1000)]
    assert binary.row(0x1000) is None
    assert binary.address_of(0x1000) is None
    assert binary.build_id is None
    binary.close()
    assert descriptors() == before


@pytest.mark.parametrize("seed", range(60))
def test_damaged_files_are_no_error(inlines, tmp_path, seed):
    before = descriptors()
    chance = random.Random(seed)
    raw = bytearray(inlines.path.read_bytes())
    if seed % 3 == 0:
        del raw[chance.randrange(len(raw)) :]
    for _ in range(seed % 3 * 4):
        raw[chance.randrange(len(raw))] = chance.randrange(256)
    path = tmp_path / "damaged"
    path.write_bytes(raw)
    binary = Program(path).opened(tmp_path)
    for address in [*inlines.function_at("outer"), 0, (1 << 64) - 1]:
        binary.row(address)
        assert binary.frames(address)
        binary.address_of(address)
    binary.close()
    assert descriptors() == before


# Its life


def test_a_binary_owns_its_descriptors_and_goes_with_its_last_user(inlines, tmp_path):
    before = descriptors()
    stripped = split(inlines, tmp_path)
    gc.disable()
    try:
        binary = stripped.opened(tmp_path)
        assert binary.frames(inlines.symbols["outer"])[0].line
        gone = weakref.ref(binary)
        del binary
        assert gone() is None
    finally:
        gc.enable()
    assert descriptors() == before


def test_of_a_closed_binary_nothing_is_known(inlines):
    binary, address = inlines.opened(name="x"), inlines.symbols["outer"]
    assert binary.frames(address)[0].function == "outer"
    binary.close()
    binary.close()
    assert binary.frames(address) == [Frame(None, "x", address)]
    assert binary.row(address) is None


def test_without_libdw_the_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(libdw.ct, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    libdw.library.cache_clear()
    path = tmp_path / "file"
    path.touch()
    with path.open("rb") as file, pytest.raises(MissingPieceError) as caught:
        Binary(file.fileno(), "file", [])
    assert "libdw1" in caught.value.help
    libdw.library.cache_clear()
