"""What a process has mapped executable, read from its maps; each address leads to its own file."""

import gc
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tcptrace.probes.engine.constants import Row
from tcptrace.probes.enrich.stacks import space
from tcptrace.probes.enrich.stacks.frame import Frame
from tcptrace.probes.enrich.stacks.row import FRAME_POINTER, LOST, CallRow
from tcptrace.probes.enrich.stacks.runtime import Runtime
from tcptrace.probes.enrich.stacks.space import Files, Space, guesses

PID = 4711
PROGRAM = 0x5555_5555_4000
LIBRARY = 0x7FFF_F7D0_0000
JIT = 0x7FFF_F000_0000
MAPS = f"""\
{PROGRAM - 0x1000:x}-{PROGRAM:x} r--p 00000000 fe:00 1234 /srv/server
{PROGRAM:x}-{PROGRAM + 0x2000:x} r-xp 00001000 fe:00 1234 /srv/server
{PROGRAM + 0x2000:x}-{PROGRAM + 0x3000:x} rw-p 00003000 fe:00 1234 /srv/server
{JIT:x}-{JIT + 0x1000:x} rwxp 00000000 00:00 0
{LIBRARY:x}-{LIBRARY + 0x1000:x} r-xp 00026000 fe:00 5678 /usr/lib/lib with blanks.so.6 (deleted)
7ffff7fc1000-7ffff7fc3000 r-xp 00000000 00:00 0                          [vdso]
"""
TOLD = CallRow(Row.SP, 48, -8)


class FakeBinary:
    """Remembers how it was opened; knows every address but those of ``gaps``."""

    gaps, row_of = (), TOLD

    def __init__(self, fd, name, roots, path):
        self.fd, self.name, self.roots, self.path = fd, name, roots, path

    def __del__(self):
        os.close(self.fd)

    def address_of(self, offset):
        return None if offset in FakeBinary.gaps else offset

    def row(self, address):
        return FakeBinary.row_of

    def frames(self, address):
        return [Frame("f", self.name, address)]


class Proc:
    """/proc of one process, in a folder of the test's."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.opened = folder, []
        (folder / str(PID) / "map_files").mkdir(parents=True)
        fake_os = SimpleNamespace(
            open=self._open, fstat=os.fstat, close=os.close,
            O_RDONLY=os.O_RDONLY, O_CLOEXEC=os.O_CLOEXEC,
        )  # fmt: skip
        monkeypatch.setattr(space, "os", fake_os)
        monkeypatch.setattr(space, "Path", self._path)
        monkeypatch.setattr(space, "Binary", FakeBinary)
        monkeypatch.setattr(space, "perf_map", FakePerfMap)
        monkeypatch.setattr(space.runtime, "detect", lambda pid: None)

    def _path(self, text):
        return Path(text.replace("/proc", str(self.folder), 1))

    def _open(self, path, flags):
        self.opened.append(os.open(path.replace("/proc", str(self.folder), 1), flags))
        return self.opened[-1]

    def maps(self, text):
        """As the kernel does it: one entry for each mapped file, its name without zeros before."""
        (self.folder / str(PID) / "maps").write_text(text)
        for line in text.splitlines():
            span, _, _, _, inode, *_ = line.split()
            if inode != "0":
                start, end = (int(part, 16) for part in span.split("-"))
                file = self.folder / f"inode{inode}"
                file.touch()
                link = self.folder / str(PID) / "map_files" / f"{start:x}-{end:x}"
                link.unlink(missing_ok=True)
                link.symlink_to(file)


class FakePerfMap:
    def __init__(self, pid):
        assert pid == PID

    def frame(self, address):
        compiled = JIT <= address < JIT + 0x100
        return Frame("compiled", "[perf map]", address) if compiled else None

    def find(self, address):
        return SimpleNamespace(start=JIT, name="py::f:/a.py") if self.frame(address) else None


@pytest.fixture
def proc(tmp_path, monkeypatch):
    made = Proc(tmp_path, monkeypatch)
    made.maps(MAPS)
    return made


@pytest.fixture
def one(proc):
    return looked_at()


def looked_at():
    made = Space(PID, Files())
    made.look_closer()
    return made


def test_only_what_can_be_executed_is_a_region(one):
    assert [region.name for region in one.regions] == [
        *("server", "[anonymous]", "lib with blanks.so.6", "[vdso]")
    ]


def test_an_address_is_that_of_the_file_as_it_was_linked(one):
    assert one.named(PROGRAM + 0x123) == [Frame("f", "server", 0x1123)]
    assert one.named(LIBRARY + 5) == [Frame("f", "lib with blanks.so.6", 0x26005)]


def test_its_row_is_the_files(one):
    assert one.row(PROGRAM + 0x123) == TOLD


def test_the_files_are_opened_as_they_are_mapped_whatever_their_name_leads_to_now(proc, one):
    library = one.region(LIBRARY).file.binary
    assert os.path.samestat(os.fstat(library.fd), (proc.folder / "inode5678").stat())
    assert library.path == "/usr/lib/lib with blanks.so.6"
    assert library.roots == [proc.folder / str(PID) / "root", Path("/")]


@pytest.mark.parametrize(
    "address",
    [
        PROGRAM - 1,  # mapped, but not executable
        PROGRAM + 0x2000,
        LIBRARY - 1,
        LIBRARY + 0x1000,
        0,
        (1 << 64) - 1,
    ],
)
def test_elsewhere_there_is_no_code(one, address):
    assert one.region(address) is None
    assert one.row(address) == LOST
    assert one.named(address) == []


def test_code_that_is_in_no_file_is_walked_by_a_guess_and_named_by_the_perf_map(one):
    assert one.row(JIT + 5) == FRAME_POINTER
    assert guesses(one.row(JIT + 5))
    assert not guesses(one.row(PROGRAM))
    assert one.named(JIT + 5) == [Frame("compiled", "[perf map]", JIT + 5)]
    assert one.named(JIT + 0x500) == [Frame(None, "[anonymous]", JIT + 0x500)]


def test_only_what_lies_in_a_file_stays_what_it_is(one):
    assert one.is_fixed(PROGRAM)
    assert one.is_fixed(LIBRARY)
    assert not one.is_fixed(JIT)
    assert not one.is_fixed(0)


def test_pythons_trampolines_have_a_row_of_their_own(one, monkeypatch):
    known = {(PID, JIT, "py::f:/a.py", JIT + 5): TOLD}
    monkeypatch.setattr(space, "trampoline_row", lambda *what: known.get(what))
    assert one.row(JIT + 5) == TOLD
    assert one.row(JIT + 6) == FRAME_POINTER


@pytest.mark.parametrize(
    ("version", "needs", "note"),
    [
        ("20.1", "start it with --x", "[node 20.1: start it with --x]"),
        ("", "start it with --x", "[node: start it with --x]"),
        ("20.1", "", ""),
    ],
)
def test_a_language_runtime_is_asked_what_it_needs(proc, monkeypatch, version, needs, note):
    told = Runtime("node", "node", version, shows=not needs, needs=needs)
    monkeypatch.setattr(space.runtime, "detect", lambda pid: told)
    assert looked_at().note == note


def test_native_code_needs_nothing(one):
    assert one.note == ""


def test_a_file_that_does_not_say_where_its_bytes_belong_is_no_different(one, monkeypatch):
    monkeypatch.setattr(FakeBinary, "gaps", (0x1123,))
    assert one.row(PROGRAM + 0x123) == FRAME_POINTER
    assert one.named(PROGRAM + 0x123) == [Frame(None, "server", PROGRAM + 0x123)]


def test_a_name_is_looked_up_once(one, monkeypatch):
    first = one.named(PROGRAM)
    monkeypatch.setattr(FakeBinary, "frames", None)
    assert one.named(PROGRAM) == first


def test_but_what_a_compiler_may_have_replaced_each_time(one, monkeypatch):
    first = one.named(JIT + 5)
    monkeypatch.setattr(FakePerfMap, "frame", lambda *_: None)
    assert one.named(JIT + 5) != first


def test_the_names_that_are_kept_are_bounded(one, monkeypatch):
    monkeypatch.setattr(space, "_MAX_NAMED", 2)
    for address in range(PROGRAM, PROGRAM + 10):
        assert one.named(address)
    assert len(one._named) <= 2


@pytest.mark.parametrize(
    ("told", "row"),
    [
        (None, FRAME_POINTER),  # no table covers this code
        (LOST, LOST),
        (CallRow(Row.SP, 1 << 40, -8), LOST),  # more than the C struct can hold
        (CallRow(Row.SP, 8, 8), LOST),
    ],
)
def test_rows_that_the_kernel_half_cannot_hold_end_the_walk(one, told, row, monkeypatch):
    monkeypatch.setattr(FakeBinary, "row_of", told)
    assert one.row(PROGRAM) == row


def test_a_program_at_a_low_address_is_opened_like_any_other(proc):
    """The kernel pads the addresses of maps to eight digits, and those of map_files not."""
    proc.maps("00400000-00452000 r-xp 00000000 fe:00 1234 /usr/bin/python3.11\n")
    one = looked_at()
    assert one.named(0x400123) == [Frame("f", "python3.11", 0x123)]


def test_a_file_that_cannot_be_opened_leaves_a_region_without_one(proc):
    (proc.folder / str(PID) / "map_files" / f"{PROGRAM:x}-{PROGRAM + 0x2000:x}").unlink()
    one = looked_at()
    assert one.region(PROGRAM).file is None
    assert one.region(LIBRARY).file is not None
    assert one.row(PROGRAM) == FRAME_POINTER


def test_a_file_that_many_map_is_open_once(proc):
    shared = Files()
    first, second = Space(PID, shared), Space(PID, shared)
    assert first.region(PROGRAM).file is second.region(PROGRAM).file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(proc.opened[2])  # the second look


def test_another_file_at_the_same_place_is_another_one(proc):
    shared = Files()
    first = Space(PID, shared)
    proc.maps(MAPS.replace("1234", "9999"))
    assert Space(PID, shared).region(PROGRAM).file is not first.region(PROGRAM).file


def test_so_is_one_that_was_written_to(proc):
    shared = Files()
    first = Space(PID, shared)
    (proc.folder / "inode1234").write_text("new")
    assert Space(PID, shared).region(PROGRAM).file is not first.region(PROGRAM).file


def test_what_is_held_open_is_bounded(proc, monkeypatch):
    monkeypatch.setattr(space, "_MAX_FILES", 1)
    shared = Files()
    Space(PID, shared)
    gc.collect()
    assert len(shared._open) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(proc.opened[0])


def test_the_mappings_of_a_short_life_are_read_without_looking_into_its_files(proc, monkeypatch):
    monkeypatch.setattr(space, "Binary", None)
    monkeypatch.setattr(space, "perf_map", None)
    monkeypatch.setattr(space.runtime, "detect", None)
    one = Space(PID, Files())
    assert one.is_fixed(PROGRAM)
    assert len(one.regions) == 4


@pytest.mark.parametrize("text", ["", "1000-2000 rw-p 00000000 00:00 0\n"])
def test_a_process_without_code_is_gone(proc, text):
    """As its memory is given up before it ends, its maps are empty for a moment."""
    proc.maps(text)
    with pytest.raises(ProcessLookupError):
        Space(PID, Files())


def test_one_that_is_not_there_too(proc):
    (proc.folder / str(PID) / "maps").unlink()
    with pytest.raises(FileNotFoundError):
        Space(PID, Files())


def test_tables_can_be_read_ahead(one, monkeypatch):
    asked = []
    monkeypatch.setattr(FakeBinary, "frames", lambda _, address: asked.append(address))
    for region in one.regions:
        region.warm()
    assert asked == [0x1000 + 0x1000, 0x26000 + 0x800]
