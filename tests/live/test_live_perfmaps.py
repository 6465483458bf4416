"""Perf maps and runtimes of real interpreters.

The oracle is a program's own call chain: it waits in a read deep in calls whose order is
known, so the return addresses on its stack must lie in those functions, in that order.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from harness import PATIENCE_S

from tcptrace.probes.enrich.stacks.perfmap import PerfMap, perf_map
from tcptrace.probes.enrich.stacks.runtime import detect

MOST_STACK = 1 << 20
PYTHONS = [f"python3.{minor}" for minor in range(12, 20)]
CHAIN = ["innermost", "Middle.call", "outermost"]

PYTHON = """
import os, sys
def innermost(): return os.read(0, 1)
class Middle:
    def call(self): return innermost()
def outermost():
    print(os.getpid(), flush=True)
    return Middle().call()
def forked():
    child = os.fork()
    if child:
        return os.waitpid(child, 0)
    return outermost()
forked() if "fork" in sys.argv else outermost()
"""

NODE = """
const fs = require('fs');
function innermost() { return fs.readSync(0, Buffer.alloc(1)); }
class Middle { call() { return innermost(); } }
function outermost() { fs.writeSync(1, process.pid + '\\n'); return new Middle().call(); }
outermost();
"""


class Waiting:
    """A program that has written its pid and waits for a byte."""

    def __init__(self, *command):
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=tempfile.gettempdir(),  # node leaves a log where it runs
        )
        try:
            self.inner_pid = int(self.process.stdout.readline())
        except ValueError:
            self.end()
            raise

    def end(self):
        self.process.stdin.close()  # it reads the end of the file
        self.process.stdout.close()
        if self.process.wait(PATIENCE_S):
            raise RuntimeError(f"{self.process.args} ended with {self.process.returncode}")


@pytest.fixture
def waiting():
    made = []

    def start(*command):
        made.append(Waiting(*map(str, command)))
        return made[-1]

    yield start
    for one in made:
        with contextlib.suppress(BrokenPipeError):
            one.end()
        Path(f"/tmp/perf-{one.inner_pid}.map").unlink(missing_ok=True)


def not_here(what):
    if os.environ.get("TCPTRACE_LIVE") == "1":
        pytest.fail(f"TCPTRACE_LIVE=1, but {what} is not installed", pytrace=False)
    pytest.skip(f"{what} is not installed")


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A CPython that can tell its functions: 3.12 or newer."""
    folders = [*os.get_exec_path(), *Path.home().glob(".pyenv/versions/*/bin")]
    found = [Path(folder) / name for name in PYTHONS for folder in folders]
    asks = "import sysconfig as s; exit(s.get_config_var('PY_HAVE_PERF_TRAMPOLINE') != 1)"
    for program in [Path(sys.executable), *found]:
        if program.is_file():
            with contextlib.suppress(OSError):
                done = subprocess.run([program, "-c", asks], capture_output=True)
                if not done.returncode:
                    return program
    return not_here("a CPython 3.12 or newer (python3.12 in PATH, or pyenv's)")


@pytest.fixture(scope="module")
def node():
    return shutil.which("node") or not_here("node")


def in_read(pid):
    """Wait until its main thread is blocked; its stack pointer then."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        words = Path(f"/proc/{pid}/syscall").read_text().split()
        if len(words) == 9 and words[1] == "0x0":  # read(0, ...)
            return int(words[7], 16)
    raise TimeoutError(f"process {pid} does not read")


def words_on_stack(pid):
    """Everything on its stack that may be a return address, the innermost first."""
    pointer = in_read(pid)
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        memory.seek(pointer)
        raw = memory.read(MOST_STACK)  # up to the end of the stack, if that comes first
    return struct.unpack(f"={len(raw) // 8}Q", raw[: len(raw) // 8 * 8])


def frames_on_stack(pid, found):
    """Of addresses within functions: one that points to the begin of a function was not called."""
    both = ((found.frame(at), found.frame(at - 1)) for at in words_on_stack(pid))
    return [frame for frame, before in both if frame and frame == before]


def functions_on_stack(pid, found):
    return [frame.function for frame in frames_on_stack(pid, found)]


def appear_in_order(wanted, names):
    rest = iter(names)
    return all(name in rest for name in wanted)


def test_python_tells_its_functions_with_x_perf(python, waiting, tmp_path):
    source = tmp_path / "my app.py"
    source.write_text(PYTHON)
    one = waiting(python, "-X", "perf", source)
    found = PerfMap(one.process.pid)
    names = functions_on_stack(one.process.pid, found)
    assert appear_in_order([*CHAIN, "<module>"], names)
    here = frames_on_stack(one.process.pid, found)
    assert {frame.file for frame in here if frame.function in CHAIN} == {str(source)}
    runtime = detect(one.process.pid)
    assert (runtime.name, runtime.shows, runtime.needs) == ("CPython", True, "")
    assert re.fullmatch(r"3\.1\d(\.\d+)?", runtime.version)
    address, told = next(
        (at, found.lookup(at)) for at in words_on_stack(one.process.pid) if found.lookup(at)
    )
    one.end()
    Path(f"/tmp/perf-{one.inner_pid}.map").unlink()
    assert found.lookup(address) == told


def test_python_without_the_flag_is_told_what_it_needs(python, waiting, tmp_path):
    source = tmp_path / "app.py"
    source.write_text(PYTHON)
    one = waiting(python, source)
    assert not PerfMap(one.process.pid).hold()
    runtime = detect(one.process.pid)
    assert (runtime.name, runtime.shows) == ("CPython", False)
    assert runtime.needs.startswith("start it with `python -X perf`")


def test_a_forked_python_runs_on_in_its_parents_functions(python, waiting, tmp_path):
    source = tmp_path / "app.py"
    source.write_text(PYTHON)
    one = waiting(python, "-X", "perf", source, "fork")
    assert one.inner_pid != one.process.pid
    try:
        found = perf_map(one.inner_pid)
        frames = frames_on_stack(one.inner_pid, found)
        own = [frame.function for frame in frames if not frame.guessed]
        guessed = [frame.function for frame in frames if frame.guessed]
        assert appear_in_order(CHAIN, own)
        assert appear_in_order(["forked", "<module>"], guessed)
    finally:
        one.end()
        Path(f"/tmp/perf-{one.process.pid}.map").unlink()


def test_in_a_container_pid_and_file_are_its_own(python, waiting):
    mount = f"mount -t tmpfs none /tmp && exec {python} -X perf /dev/fd/9 9<<'END'\n{PYTHON}\nEND"
    one = waiting("unshare", "--pid", "--fork", "--mount", "--mount-proc", "sh", "-c", mount)
    assert one.inner_pid == 1
    children = Path(f"/proc/{one.process.pid}/task/{one.process.pid}/children").read_text()
    pid = int(children)
    assert appear_in_order(CHAIN, functions_on_stack(pid, PerfMap(pid)))
    assert detect(pid).shows
    assert not Path("/tmp/perf-1.map").exists()


def test_node_tells_all_functions_with_both_flags(node, waiting, tmp_path):
    source = tmp_path / "my app.js"
    source.write_text(NODE)
    flags = ["--perf-basic-prof", "--interpreted-frames-native-stack"]
    one = waiting(node, *flags, source)
    found = PerfMap(one.process.pid)
    chain = ["innermost", "call", "outermost"]
    assert appear_in_order(chain, functions_on_stack(one.process.pid, found))
    frames = frames_on_stack(one.process.pid, found)
    lines = {frame.function: (frame.file, frame.line) for frame in frames}
    assert [lines[name] for name in chain] == [(str(source), line) for line in (3, 4, 5)]
    runtime = detect(one.process.pid)
    assert (runtime.name, runtime.shows, runtime.needs) == ("node", True, "")


def test_node_shows_only_compiled_functions_with_one_flag(node, waiting, tmp_path):
    source = tmp_path / "app.js"
    source.write_text(NODE)
    one = waiting(node, "--perf-basic-prof", source)
    names = functions_on_stack(one.process.pid, PerfMap(one.process.pid))
    assert not {"innermost", "outermost"} & set(names)
    runtime = detect(one.process.pid)
    assert runtime.shows
    assert "--interpreted-frames-native-stack" in runtime.needs


def test_node_without_flags_is_told_what_it_needs(node, waiting, tmp_path):
    source = tmp_path / "app.js"
    source.write_text(NODE)
    one = waiting(node, source)
    runtime = detect(one.process.pid)
    assert (runtime.name, runtime.shows) == ("node", False)
    assert "--perf-basic-prof --interpreted-frames-native-stack" in runtime.needs
