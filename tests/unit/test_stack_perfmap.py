"""Perf maps: files that grow, are rewritten or belong to somebody else; all forms of names."""

import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from tcptrace.probes.enrich import procfs
from tcptrace.probes.enrich.stacks import perfmap
from tcptrace.probes.enrich.stacks.frame import Frame
from tcptrace.probes.enrich.stacks.perfmap import PerfMap, perf_map
from tcptrace.probes.enrich.stacks.runtime import named

PID, PARENT, STRANGER = 4100, 4000, 12345


class FakeProcess:
    """A process of a /proc of our own, with a root of its own."""

    def __init__(self, proc, pid, *, inner=None, parent=1, uid=None, program="/usr/bin/thing"):
        self.folder, self.inner = proc / str(pid), inner or pid
        (self.folder / "root" / "tmp").mkdir(parents=True)
        self.uid = os.getuid() if uid is None else uid
        self.told(start=0, parent=parent)
        (self.folder / "uid_map").write_text("         0          0 4294967295\n")
        (self.folder / "maps").write_text("")
        (self.folder / "exe").symlink_to(program)

    def told(self, *, start, parent=1):
        fields = ["S", str(parent), *["0"] * 17, str(start), "0"]
        (self.folder / "stat").write_text(f"7 (x) {' '.join(fields)}\n")
        (self.folder / "status").write_text(
            f"Name:\tx\x0bUid:\t{STRANGER}\t{STRANGER}\nNSpid:\t{self.folder.name}\t{self.inner}\n"
            f"Uid:\t7\t{self.uid}\t7\t7\n"
        )

    @property
    def file(self):
        return self.folder / "root" / "tmp" / f"perf-{self.inner}.map"

    def write(self, *lines, end="\n"):
        with self.file.open("ab") as file:
            file.write("".join(f"{line}\n" for line in lines).encode()[: None if end else -1])


@pytest.fixture
def proc(tmp_path, monkeypatch):
    monkeypatch.setattr(procfs, "PROC", tmp_path / "proc")
    perfmap._shared.cache_clear()
    yield tmp_path / "proc"
    perfmap._shared.cache_clear()


@pytest.fixture
def process(proc):
    return FakeProcess(proc, PID)


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(perfmap, "time", SimpleNamespace(monotonic=lambda: now.s))
    return now


def test_an_address_is_found_from_the_first_to_the_last_byte(process):
    process.write("1000 20 first one", "0x2000 0x8 second")
    found = PerfMap(PID)
    assert [found.lookup(at) for at in (0xFFF, 0x1000, 0x101F, 0x1020)] == [
        None, "first one", "first one", None,
    ]  # fmt: skip
    assert found.find(0x2007) == (0x2000, 8, "second")
    assert found.lookup(0x2008) is None


@pytest.mark.parametrize(
    "broken",
    [
        "", " ", "1000", "1000 20", "xyz 20 name", "1000 zz name", "1000 0 name", "-1000 20 name",
        "ffffffffffffffffff 20 name", "0 ffffffffffff whole memory", "name 1000 20", "\x00\x01",
    ],
)  # fmt: skip
def test_a_broken_line_is_skipped(process, broken):
    process.write("1000 8 before", broken, "1008 8 after")
    found = PerfMap(PID)
    assert [found.lookup(at) for at in (0x1004, 0x100C, 0x1010)] == ["before", "after", None]


def test_bytes_that_are_no_text_and_names_without_end(process):
    process.file.write_bytes(b"1000 8 caf\xe9\n1008 8 " + b"a" * 99_999 + b"\n1010 8 next\n")
    found = PerfMap(PID)
    assert found.lookup(0x1000) == "caf\\xe9"
    assert found.lookup(0x1010) == "next"
    assert set(found.lookup(0x1008)) == {"a"}
    assert len(found.lookup(0x1008)) < 4096


def test_what_is_written_later_is_found_at_once(process):
    found = PerfMap(PID)
    process.write("1000 8 late")
    found = PerfMap(PID)
    assert found.lookup(0x2000) is None
    for number in range(100):
        process.write(f"{0x2000 + number * 8:x} 8 number {number}")
        assert found.lookup(0x2004 + number * 8) == f"number {number}"
    assert found.lookup(0x2000) == "number 0"
    assert found.lookup(0x1000) == "late"
    assert len(found._blocks) < 10  # joined, or every look-up would ask them all


def test_half_a_line_waits_for_the_rest(process):
    process.write("1000 8 whole", "2000 8 ha", end="")
    found = PerfMap(PID)
    assert [found.lookup(at) for at in (0x1000, 0x2000)] == ["whole", None]
    process.write("lf", "3000 8 last", end="")
    assert [found.lookup(at) for at in (0x1000, 0x2000, 0x3000)] == ["whole", "half", None]
    process.write("")
    assert found.lookup(0x3000) == "last"


@pytest.mark.parametrize("known", [False, True], ids=["at once", "appended"])
def test_code_that_was_moved_over_other_code_replaces_it(process, known):
    process.write("1000 100 old", "2000 10 other")
    found = PerfMap(PID)
    if known:
        assert found.lookup(0x1000) == "old"
    process.write("10f0 20 new")
    assert found.lookup(0x10F8) == "new"
    assert found.lookup(0x1000) is None  # freed: part of it was overwritten
    process.write("1000 100 newest")
    assert [found.lookup(at) for at in (0x1000, 0x10F8, 0x1108)] == ["newest", "newest", None]
    assert found.lookup(0x2000) == "other"


def truth(lines, address):
    """The newest line at that address, if no later one touches it."""
    for number in reversed(range(len(lines))):
        start, size, name = lines[number]
        if start <= address < start + size:
            later = lines[number + 1 :]
            return None if any(a < start + size and start < a + b for a, b, _ in later) else name
    return None


@pytest.mark.parametrize("step", [60, 200, 1 << 20])
def test_against_a_plain_search_through_all_lines(process, clock, monkeypatch, step):
    monkeypatch.setattr(perfmap, "STEP_BYTES", step)
    dice = random.Random(step)
    process.write()
    found, lines = PerfMap(PID), []
    for _round in range(60):
        fresh = [
            (dice.randrange(0x1000, 0x1200), dice.choice([1, 4, 9, 60]), f"n{len(lines) + at}")
            for at in range(dice.choice([0, 1, 2, 12]))
        ]
        lines += fresh
        process.write(*(f"{start:x} {size:x} {name}" for start, size, name in fresh))
        for address in dice.choices(range(0xFF0, 0x1250), k=40):
            name, right = found.lookup(address), truth(lines, address)
            while name is None and right and found._head:  # a small step reads back only so far
                clock.s += 10
                name = found.lookup(address)
            assert name == right


def test_a_file_that_is_written_anew_is_read_anew(process):
    """So does ``jcmd PID Compiler.perfmap``: the same file, its text replaced by a longer one."""
    process.write("1000 8 first", "2000 8 second")
    found = PerfMap(PID)
    assert found.lookup(0x1000) == "first"
    process.file.write_text("3000 8 third\n4000 8 fourth\n5000 8 fifth\n")
    assert [found.lookup(at) for at in (0x1000, 0x3000, 0x5000)] == [None, "third", "fifth"]
    process.file.write_text("1000 8 short\n")
    assert [found.lookup(at) for at in (0x1000, 0x3000)] == ["short", None]


def test_a_line_that_was_overwritten_in_place_is_not_believed(process):
    process.write("1000 8 first", "2000 8 second")
    found = PerfMap(PID)
    assert found.lookup(0x1000) == "first"
    process.file.write_text("1100 8 first\n2000 8 second\n")
    assert found.lookup(0x1000) is None
    assert [found.lookup(at) for at in (0x1100, 0x2000)] == ["first", "second"]


def test_a_file_in_its_place_is_taken_and_a_deleted_one_is_kept(process, clock):
    process.write("1000 8 first")
    found = PerfMap(PID)
    process.file.unlink()
    clock.s += 10
    assert found.lookup(0x1000) == "first"
    with open(f"/proc/self/fd/{found._fd}", "a") as file:
        file.write("1008 8 to the deleted one\n")
    assert found.lookup(0x1008) == "to the deleted one"
    process.write("2000 8 second")
    assert found.lookup(0x1000) == "first"
    clock.s += 10
    assert [found.lookup(at) for at in (0x1000, 0x2000)] == [None, "second"]


def test_the_file_outlives_the_process(process):
    process.write("1000 8 last words")
    found = PerfMap(PID)
    assert found.hold()
    shutil.rmtree(process.folder)
    assert found.lookup(0x1000) == "last words"
    assert not PerfMap(PID).hold()


def test_it_is_looked_for_again_but_not_at_every_question(process, clock):
    found = PerfMap(PID)
    process.write("1000 8 late")
    assert (found.hold(), found.lookup(0x1000)) == (False, None)
    clock.s += perfmap.RETRY_S
    assert found.lookup(0x1000) == "late"


def test_another_process_that_has_the_pid_now_is_not_asked(process, clock):
    found = PerfMap(PID)
    process.told(start=1)
    process.write("1000 8 of another")
    clock.s += 10
    assert found.lookup(0x1000) is None


def test_the_name_is_by_the_inner_pid_in_its_own_root(proc):
    process = FakeProcess(proc, PID, inner=1)
    process.write("1000 8 contained")
    assert process.file.name == "perf-1.map"
    assert PerfMap(PID).lookup(0x1000) == "contained"


def test_a_file_of_another_user_is_not_believed(proc):
    process = FakeProcess(proc, PID, uid=4321)
    process.write("1000 8 planted")
    if os.getuid() == 0:
        os.chown(process.file, STRANGER, -1)
    assert PerfMap(PID).lookup(0x1000) is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize(("owner", "believed"), [(0, True), (4321, True), (7, False)])
def test_root_and_the_effective_user_are_believed(proc, owner, believed):
    process = FakeProcess(proc, PID, uid=4321)
    process.write("1000 8 name")
    os.chown(process.file, owner, -1)
    assert PerfMap(PID).hold() is believed


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_the_root_of_its_user_namespace_is_believed(proc):
    process = FakeProcess(proc, PID, uid=100_033)
    (process.folder / "uid_map").write_text("         0     100000      65536\n")
    process.write("1000 8 name")
    os.chown(process.file, 100_000, -1)
    assert PerfMap(PID).hold()


def test_links_and_pipes_are_not_opened(process, tmp_path):
    (tmp_path / "secret").write_text("1000 8 secret\n")
    process.file.symlink_to(tmp_path / "secret")
    assert not PerfMap(PID).hold()
    process.file.unlink()
    os.mkfifo(process.file)
    assert not PerfMap(PID).hold()  # and does not wait for somebody to write
    process.file.unlink()
    process.file.parent.rmdir()
    process.file.parent.symlink_to(tmp_path)
    (tmp_path / process.file.name).write_text("1000 8 outside\n")
    assert not PerfMap(PID).hold()


def test_a_file_that_an_earlier_process_left_is_not_taken(process):
    process.write("1000 8 of before")
    os.utime(process.file, (1e9, 1e9))
    booted = int(Path("/proc/uptime").read_text().split(".")[0])
    process.told(start=booted * os.sysconf("SC_CLK_TCK"))
    assert not PerfMap(PID).hold()
    os.utime(process.file)
    assert PerfMap(PID).hold()


def test_a_large_file_is_read_back_in_steps_with_pauses(process, clock, monkeypatch):
    monkeypatch.setattr(perfmap, "STEP_BYTES", 4000)
    process.write(*(f"{number * 16:x} 10 n{number}" for number in range(1, 1501)))
    steps, pread = [], os.pread

    def slow_pread(fd, length, offset):
        if length > 3000:
            steps.append(length)
            clock.s += 1
        return pread(fd, length, offset)

    monkeypatch.setattr(perfmap.os, "pread", slow_pread)
    found = PerfMap(PID)
    for seconds, done in ((0, 1), (0.9, 1), (0.2, 2), (0, 2), (1, 3), (9, 4), (1.1, 5)):
        clock.s += seconds
        assert found.lookup(1500 * 16) == "n1500"
        found.lookup(16)
        found.lookup(16)
        assert len(steps) == done
    assert found.lookup(16) == "n1"


def test_of_too_many_lines_the_oldest_are_dropped(process, clock, monkeypatch):
    monkeypatch.setattr(perfmap, "MAX_LINES", 100)
    monkeypatch.setattr(perfmap, "STEP_BYTES", 600)
    process.write("10 10 n0")
    found = PerfMap(PID)
    assert found.lookup(0x10) == "n0"
    for number in range(2, 2000):
        process.write(f"{number * 16:x} 10 n{number}")
        clock.s += 100
        assert found.lookup(number * 16) == f"n{number}"
        assert sum(len(block.starts) for block in found._blocks) <= 100
    assert found.lookup(1999 * 16) == "n1999"
    assert found.lookup(0x10) is None


def test_a_child_runs_on_in_its_parents_code(proc):
    parent = FakeProcess(proc, PARENT, program="/proc/self/exe")
    parent.write("1000 8 py::serve:/srv/app.py", "2000 8 py::old:/srv/app.py")
    child = FakeProcess(proc, PID, parent=PARENT, program="/proc/self/exe")
    child.write("2000 8 py::handle:/srv/app.py")
    found = perf_map(PID)
    assert found is perf_map(PID)
    assert found.frame(0x2000) == Frame("handle", "python", file="/srv/app.py")
    inherited = found.frame(0x1000)
    assert (inherited.function, inherited.file) == ("serve", "/srv/app.py")
    assert "parent" in inherited.guessed
    assert found.lookup(0x1000) is None
    assert found.frame(0x3000) is None


def test_a_child_that_runs_another_program_does_not(proc, tmp_path):
    FakeProcess(proc, PARENT, program="/proc/self/exe").write("1000 8 py::serve:/srv/app.py")
    (tmp_path / "other").touch()
    FakeProcess(proc, PID, parent=PARENT, program=tmp_path / "other")
    assert perf_map(PID).frame(0x1000) is None


RECORDED = {
    # CPython 3.12.1 and 3.13.0, -X perf
    "py::inner.<locals>.<lambda>:/srv/app.py": Frame(
        "inner.<locals>.<lambda>", "python", file="/srv/app.py"
    ),
    "py::ABCMeta.__new__:<frozen abc>": Frame("ABCMeta.__new__", "python", file="<frozen abc>"),
    "py::<module>:/srv/my app/a b.py": Frame("<module>", "python", file="/srv/my app/a b.py"),
    # node 20.20.2, --perf-basic-prof
    "JS:*handler /srv/app.js:3:17": Frame("handler", "node", file="/srv/app.js", line=3),
    "JS:~ /srv/app.js:1:1": Frame("(anonymous)", "node", file="/srv/app.js", line=1),
    "JS:^get prop /srv/two words/a.js:2:115": Frame(
        "get prop", "node", file="/srv/two words/a.js", line=2
    ),
    "JS:~Module._extensions..js node:internal/modules/cjs/loader:1604:37": Frame(
        "Module._extensions..js", "node", file="node:internal/modules/cjs/loader", line=1604
    ),
    "JS:*run file:///srv/m.mjs:7:1": Frame("run", "node", file="file:///srv/m.mjs", line=7),
    "Eval:~ [eval]:1:1": Frame("(anonymous)", "node", file="[eval]", line=1),
    "Eval:~ /srv/app.js:1:1": Frame("(anonymous)", "node", file="/srv/app.js", line=1),
    "JS:~ev :1:1": Frame("ev", "node", line=1),
    # before V8 9.8
    "LazyCompile:*fn /srv/app.js:12:34": Frame("fn", "node", file="/srv/app.js", line=12),
    "Function:~fn /srv/app.js:12": Frame("fn", "node", file="/srv/app.js", line=12),
    "LazyCompile:~emit events.js:9": Frame("emit", "node", file="events.js", line=9),
    "Builtin:InterpreterEntryTrampoline": Frame("Builtin:InterpreterEntryTrampoline", "node"),
    "BytecodeHandler:LdaZero.Wide": Frame("BytecodeHandler:LdaZero.Wide", "node"),
    "Stub:CEntryStub": Frame("Stub:CEntryStub", "node"),
    "JS:*wasm-function[3]": Frame("JS:*wasm-function[3]", "node"),
    # OpenJDK 17.0.15, jcmd PID Compiler.perfmap; perf-map-agent; .NET; Erlang 25
    "void Srv.main(java.lang.String[])": Frame("void Srv.main(java.lang.String[])", "it"),
    "I2C/C2I adapters": Frame("I2C/C2I adapters", "it"),
    "Lcom/acme/Srv;::work": Frame("Lcom/acme/Srv;::work", "it"),
    "Script::work": Frame("Script::work", "it"),
    "void [App] App.Program::Main(string[])[Tier0]": Frame(
        "void [App] App.Program::Main(string[])[Tier0]", "it"
    ),
    "$timer:module_info/1": Frame("$timer:module_info/1", "it"),
}


@pytest.mark.parametrize("name", RECORDED)
def test_names_as_the_runtimes_write_them(name):
    assert named(name, "it") == RECORDED[name]


def test_a_frame_says_which_runtime_it_belongs_to(process):
    (process.folder / "maps").write_text(
        "7f00-7f01 r-xp 00000000 fe:00 1        /usr/lib/jvm/java-17-openjdk/lib/server/libjvm.so\n"
    )
    process.write("1000 8 int Srv.work(int)")
    assert str(PerfMap(PID).frame(0x1000)) == "int Srv.work(int) (java)"


WRITER = """
import os, sys
path = f"/tmp/perf-{os.getpid()}.map"
with open(path, "x") as file:
    file.write("7f0000001000 10 py::handle:/srv/app.py\\n")
print(flush=True)
sys.stdin.read()
os.unlink(path)
"""


@pytest.mark.skipif(not os.access("/tmp", os.W_OK), reason="/tmp cannot be written")
def test_a_real_process_also_after_its_end():
    command = [sys.executable, "-c", WRITER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        found = PerfMap(writer.pid)
        assert str(found.frame(0x7F0000001008)) == "handle (python) /srv/app.py"
        writer.stdin.close()
    assert not Path(tempfile.gettempdir(), f"perf-{writer.pid}.map").exists()
    assert found.lookup(0x7F0000001008) == "py::handle:/srv/app.py"
    found.close()
    assert found.lookup(0x7F0000001008) is None
