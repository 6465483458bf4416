"""Which file has a binary's debug information, and which ones only pretend to."""

import os
import shutil
import stat
import time
import zlib
from pathlib import Path

import pytest

from tcptrace.probes.enrich.stacks.debugfiles import DebugFiles, open_regular
from tcptrace.probes.enrich.stacks.elf import Elf
from tests.unit.elf_tools import Program, build, run

SOURCE = """
int getchar(void);
static __attribute__((noinline)) int own(int n) { return n * getchar(); }
int main(int count, char **words) { return own(count) + !words; }
"""
PATH = "/opt/app/bin/server"


@pytest.fixture(scope="module", params=["sha1", "none"], ids=["build-id", "no build-id"])
def program(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return build(folder, SOURCE, "-g", "-O2", f"-Wl,--build-id={request.param}")


@pytest.fixture(scope="module")
def identified(tmp_path_factory):
    return build(tmp_path_factory.mktemp("whole"), SOURCE, "-g", "-O2", "-Wl,--build-id")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def strip(program, root, *, link=None):
    """The stripped binary at its place in the root, with a link to a debug file."""
    place = root / PATH[1:]
    options = [f"--add-gnu-debuglink={link}"] if link else []
    return program.copied(place, "--strip-all", *options)


def split(program, folder, name="server.debug"):
    return program.copied(folder / name, "--only-keep-debug").path


def by_id(root, identity):
    return root / f"usr/lib/debug/.build-id/{identity[:2]}/{identity[2:]}.debug"


def found(program, *roots, path=PATH, link=None, crc=0):
    """The path that the search comes to; None: nothing."""
    with program.path.open("rb") as file:
        fd = DebugFiles(Elf(file.fileno()), path, roots).find(link, crc)
        if fd is None:
            return None
        try:
            return Path(os.readlink(f"/proc/self/fd/{fd}"))
        finally:
            os.close(fd)


def checksum(path):
    return zlib.crc32(path.read_bytes())


def test_by_build_id(identified, root, tmp_path):
    place = by_id(root, identified.build_id)
    split(identified, place.parent, place.name)
    stripped = strip(identified, root)
    assert found(stripped, root) == place
    assert found(stripped, tmp_path / "nowhere", root) == place
    assert found(stripped, tmp_path / "nowhere") is None
    assert found(stripped) is None


def test_the_first_root_comes_first(identified, tmp_path):
    """A container's own, before the machine's."""
    stripped = strip(identified, tmp_path / "a")
    places = [by_id(tmp_path / name, identified.build_id) for name in "ab"]
    for place in places:
        split(identified, place.parent, place.name)
    assert found(stripped, tmp_path / "a", tmp_path / "b") == places[0]
    assert found(stripped, tmp_path / "b", tmp_path / "a") == places[1]


@pytest.mark.parametrize(
    "folder", ["opt/app/bin", "opt/app/bin/.debug", "usr/lib/debug/opt/app/bin"]
)
def test_by_debug_link(program, root, folder):
    debug = split(program, root / folder)
    stripped = strip(program, root, link=debug)
    crc = checksum(debug)
    assert found(stripped, root, link=b"server.debug", crc=crc) == debug
    assert found(stripped, root, path="", link=b"server.debug", crc=crc) is None
    assert found(stripped, root, path="/elsewhere/server", link=b"server.debug", crc=crc) is None
    assert found(stripped, root) is None


def test_libdw_passes_the_link_on(program, root):
    debug = split(program, root / "opt/app/bin/.debug")
    stripped = strip(program, root, link=debug)
    frames = stripped.opened(root, path=PATH).frames(program.symbols["own"])
    assert (frames[0].function, frames[0].line) == ("own", 3)


def test_by_debug_link_without_a_build_id_the_checksum_decides(program, root):
    debug = split(program, root / "opt/app/bin")
    stripped = strip(program, root, link=debug)
    wrong = found(stripped, root, link=b"server.debug", crc=checksum(debug) ^ 1)
    has_build_id = bool(Elf(os.open(stripped.path, os.O_RDONLY)).build_id)
    assert wrong == (debug if has_build_id else None)


def test_another_builds_file_is_not_taken(program, root, tmp_path):
    stripped = strip(program, root)
    options = "-g", "-O1", "-Wl,--build-id"
    other = build(tmp_path, SOURCE.replace("n *", "n +"), *options)
    debug = split(other, root / "opt/app/bin")
    assert found(stripped, root, link=b"server.debug", crc=checksum(debug)) is None


def test_a_file_by_build_id_must_have_it(identified, root, tmp_path):
    place = by_id(root, identified.build_id)
    for option in ("--build-id=none", "--build-id=0x" + identified.build_id[:-2] + "00"):
        other = build(tmp_path, SOURCE, "-g", "-O2", f"-Wl,{option}")
        split(other, place.parent, place.name)
        assert found(strip(identified, root), root) is None


def test_a_file_without_debug_information_is_none(program, root):
    """As the stripped binary itself, to which a link may lead."""
    stripped = strip(program, root)
    crc = checksum(stripped.path)
    assert found(stripped, root, link=b"server", crc=crc) is None
    shutil.copy(stripped.path, stripped.path.with_name("copy"))
    assert found(stripped, root, link=b"copy", crc=crc) is None


def test_the_binary_itself_is_no_debug_file(program, root):
    whole = program.copied(root / PATH[1:])
    assert found(whole, root, link=b"server", crc=checksum(whole.path)) is None


def test_another_machines_file_is_not_taken(program, root):
    debug = split(program, root / "opt/app/bin")
    stripped = strip(program, root)
    raw = bytearray(debug.read_bytes())
    raw[18] ^= 1
    debug.write_bytes(raw)
    assert found(stripped, root, link=b"server.debug", crc=checksum(debug)) is None


@pytest.mark.parametrize(
    "link", [b"../bin/server.debug", b"/etc/passwd", b"", b"\xff\xfe", b"x" * 5000]
)
def test_odd_links_lead_nowhere(program, root, link):
    debug = split(program, root / "opt/app/bin")
    assert found(strip(program, root), root, link=link, crc=checksum(debug)) is None


# What debuginfod's clients have downloaded before


@pytest.mark.parametrize(
    ("variable", "below"),
    [
        ("DEBUGINFOD_CACHE_PATH", ""),
        ("XDG_CACHE_HOME", "debuginfod_client"),
        ("HOME", ".cache/debuginfod_client"),
    ],
)
def test_in_the_clients_cache(identified, root, tmp_path, monkeypatch, variable, below):
    for name in ("DEBUGINFOD_CACHE_PATH", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "cache"))
    folder = tmp_path / "cache" / below / identified.build_id
    debug = split(identified, folder, "debuginfo")
    assert found(strip(identified, root), root) == debug


def test_the_clients_cache_comes_last(identified, root, tmp_path, monkeypatch):
    monkeypatch.setenv("DEBUGINFOD_CACHE_PATH", str(tmp_path / "cache"))
    split(identified, tmp_path / "cache" / identified.build_id, "debuginfo")
    debug = split(identified, root / "opt/app/bin")
    assert found(strip(identified, root), root, link=b"server.debug") == debug


# What several debug files share (dwz)


def with_shared(program, path, name, identity):
    """A debug file that says that part of it is in another."""
    link = path.parent.parent / "link"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.write_bytes(name + b"\0" + identity)
    option = f"--add-section=.gnu_debugaltlink={link}"
    return program.copied(path, "--only-keep-debug", option)


def shared(folder, identity):
    return build(folder, SOURCE, "-g", f"-Wl,--build-id=0x{identity.hex()}", name="shared").path


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (b"../.dwz/common.debug", "opt/app/bin/.dwz/common.debug"),
        (b"../.dwz/common.debug", "real/.dwz/common.debug"),
        (b"/usr/common.debug", "usr/common.debug"),
        (b"x", f"usr/lib/debug/.build-id/00/{bytes(range(1, 20)).hex()}.debug"),
    ],
    ids=["beside", "beside what a link leads to", "absolute", "by build-id"],
)
def test_the_shared_part_of_the_debug_information(program, tmp_path, root, name, place):
    identity = bytes(range(20))
    debug = with_shared(program, root / "real/folder/server.debug", name, identity)
    linked = root / "opt/app/bin/.debug/server.debug"
    linked.parent.mkdir(parents=True)
    linked.symlink_to("../../../../real/folder/server.debug")
    stripped = strip(program, root, link=debug.path)
    with stripped.path.open("rb") as file:
        files = DebugFiles(Elf(file.fileno()), PATH, [root])
        os.close(files.find(b"server.debug", checksum(debug.path)))
        assert files.lacks_alternative
        assert files.find(name, 0) is None
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shared(tmp_path, identity), root / place)
        fd = files.find(name, 0)
        assert Path(os.readlink(f"/proc/self/fd/{fd}")) == root / place
        assert not files.lacks_alternative
        os.close(fd)


def test_another_shared_part_is_not_taken(program, tmp_path, root):
    identity = bytes(range(20))
    debug = with_shared(program, root / "a/b/debug", b"/usr/common.debug", identity)
    (root / "usr").mkdir()
    shutil.copy(shared(tmp_path, bytes(range(1, 21))), root / "usr/common.debug")
    with debug.path.open("rb") as file:
        files = DebugFiles(Elf(file.fileno()), PATH, [root])
        assert files.find(b"/usr/common.debug", 0) is None
        assert files.lacks_alternative


@pytest.mark.skipif(not shutil.which("dwz"), reason="dwz is not installed")
def test_what_dwz_makes_is_read(tmp_path, root):
    """End to end, with two debug files, as dwz makes nothing for one."""
    programs = []
    for name in ("server", "client"):
        whole = build(tmp_path, SOURCE + "\n" * len(name), "-g", "-O2", "-Wl,--build-id", name=name)
        programs.append((whole, whole.copied(tmp_path / f"{name}.debug", "--only-keep-debug")))
    common = tmp_path / "common.debug"
    run("dwz", "-M", common.name, "-m", common, *(debug.path for _, debug in programs))
    for whole, debug in programs:
        place = by_id(root, whole.build_id)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(debug.path, place)
    whole = programs[0][0]
    stripped, address = strip(whole, root), whole.symbols["own"]
    assert stripped.opened(root, name="x").frames(address)[0].line is None
    shutil.copy(common, by_id(root, whole.build_id).parent)
    assert stripped.opened(root, name="x").frames(address) == whole.opened(name="x").frames(address)


# What a file may be


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        fd = open_regular(tmp_path / name)
        assert os.read(fd, 9) == b"x"
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_nothing_else_is_opened_and_nothing_waits(tmp_path):
    """To open a fifo waits for a writer, to open a watchdog's device starts it."""
    before = set(os.listdir("/proc/self/fd"))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "to null").symlink_to("/dev/null")
    (tmp_path / "to itself").symlink_to("to itself")
    (tmp_path / "folder").mkdir()
    began = time.monotonic()
    for name in ("fifo", "to null", "to itself", "folder", "nothing", "x" * 5000, "nul\0"):
        assert open_regular(tmp_path / name) is None, name
    assert time.monotonic() - began < 1
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_fifo_in_a_containers_root_holds_nothing_up(identified, root):
    stripped = strip(identified, root)
    place = by_id(root, identified.build_id)
    place.parent.mkdir(parents=True)
    os.mkfifo(place)
    assert stat.S_ISFIFO(place.stat().st_mode)
    assert found(stripped, root) is None
    assert stripped.opened(root).frames(identified.symbols["own"])[0].function is None


def test_every_candidate_that_is_not_taken_is_closed(program, root):
    stripped = strip(program, root)
    for folder in ("opt/app/bin", "opt/app/bin/.debug"):
        (root / folder).mkdir(exist_ok=True)
        (root / folder / "server.debug").write_bytes(b"\x7fELF")
    before = set(os.listdir("/proc/self/fd"))
    assert found(stripped, root, link=b"server.debug", crc=1) is None
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_damaged_debug_file_is_no_error(identified, root):
    stripped = strip(identified, root)
    place = by_id(root, identified.build_id)
    whole = split(identified, place.parent, place.name).read_bytes()
    for size in range(0, len(whole), len(whole) // 50):
        place.write_bytes(whole[:size])
        binary = Program(stripped.path).opened(root)
        assert binary.frames(identified.symbols["own"])
        binary.close()
