"""The laboratory's programs: they compile, and their marks say what is there."""

import re
import shutil
import subprocess

import pytest

from tcptrace.lab import sources
from tcptrace.lab.sources import PROGRAMS, Workshop, frames, marks
from tcptrace.probes.engine.errors import MissingPieceError, TcptraceError

NAMES = sorted(path.stem for path in PROGRAMS.glob("*.c"))
_DEFINITION = re.compile(r"^(?:NOIPA )?(?:__attribute__\(\(.*?\)\) )?[\w ]+[ *](\w+)\(.*\)$")
NEEDS_GCC = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


def functions_of_lines(name):
    """Line number -> the function in which it stands, and whether it keeps out of others."""
    found, now = {}, None
    for number, line in enumerate((PROGRAMS / f"{name}.c").read_text().splitlines(), 1):
        if match := _DEFINITION.match(line):
            now = (match[1], line.startswith("NOIPA") or match[1] == "main")
        found[number] = now
    return found


def test_there_are_programs():
    assert len(NAMES) > 5


@pytest.mark.parametrize("name", NAMES)
def test_marks_name_the_function_in_which_they_stand(name):
    assert marks(name)
    places = functions_of_lines(name)
    for mark, frame in marks(name).items():
        function, place = frame.split()
        assert mark.split()[0] == function
        file, _, line = place.partition(":")
        assert file == f"{name}.c"
        assert places[int(line)] == (function, True), f"{mark}: not a NOIPA function"


@pytest.mark.parametrize("name", NAMES)
def test_a_marked_line_has_a_call(name):
    lines = (PROGRAMS / f"{name}.c").read_text().splitlines()
    for mark, frame in marks(name).items():
        line = lines[int(frame.rpartition(":")[2]) - 1]
        assert re.search(r"\w\(", line.partition("/*")[0]), mark


def test_frames_are_in_the_order_that_was_asked_for():
    found = frames("client", "dial", "main dial")
    assert [one.split()[0] for one in found] == ["dial", "main"]


def test_an_unknown_mark_is_an_error():
    with pytest.raises(KeyError):
        frames("client", "nosuch")


@NEEDS_GCC
@pytest.mark.parametrize("name", NAMES)
def test_programs_compile_without_a_warning(name, tmp_path):
    words = ["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-o", tmp_path / name]
    subprocess.run(["gcc", *words, PROGRAMS / f"{name}.c"], check=True)


@NEEDS_GCC
def test_workshop_compiles_once_and_goes():
    with Workshop() as workshop:
        program = workshop.program("client")
        first = program.stat().st_mtime_ns
        assert workshop.program("client") == program
        assert program.stat().st_mtime_ns == first
    assert not workshop.folder.exists()


@NEEDS_GCC
def test_the_compilers_words_are_the_error(monkeypatch, tmp_path):
    (tmp_path / "bad.c").write_text("int main(void) { nonsense }\n")
    monkeypatch.setattr(sources, "PROGRAMS", tmp_path)
    with Workshop() as workshop, pytest.raises(TcptraceError, match="nonsense"):
        workshop.program("bad")


def test_without_gcc_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingPieceError) as caught:
        Workshop()
    assert caught.value.exit_code == 4
    assert caught.value.help.startswith("sudo apt-get install gcc")
