"""Which runtime a process runs: by real processes, and by the paths of many others."""

import os
import platform
import subprocess
import sys

import pytest

from tcptrace.probes.enrich import procfs
from tcptrace.probes.enrich.stacks import runtime
from tcptrace.probes.enrich.stacks.runtime import Runtime, detect

PID = 4100


@pytest.fixture
def process(tmp_path, monkeypatch):
    """A process of a /proc of our own: ``process(its program, what it has mapped)``."""
    monkeypatch.setattr(procfs, "PROC", tmp_path)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    folder = tmp_path / str(PID)
    (folder / "root" / "tmp").mkdir(parents=True)
    (folder / "uid_map").write_text("0 0 4294967295\n")
    (folder / "stat").write_text(f"{PID} (x) S 1 {'0 ' * 17}0 0\n")
    uid = os.geteuid()
    (folder / "status").write_text(
        f"Name:\tx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nNSpid:\t{PID}\t7\n"
    )

    def make(program, *mapped, command=""):
        (folder / "exe").symlink_to(program)
        (folder / "cmdline").write_bytes(command.encode().replace(b" ", b"\0"))
        lines = [f"7f{n:010x}-7f{n + 1:010x} r-xp 00000000 fe:00 {n}  {path}" for n, path in
                 enumerate([program, "[heap]", "/usr/lib/libc.so.6", *mapped])]  # fmt: skip
        (folder / "maps").write_text("\n".join([*lines, "ffff-fffff r-xp 0 00:00 0 [vsyscall]\n"]))
        return folder

    return make


def perf_map(folder):
    (folder / "root" / "tmp" / "perf-7.map").write_text("1000 8 name\n")


@pytest.mark.parametrize(
    ("program", "mapped", "name", "version"),
    [
        # Debian and Ubuntu: no libpython; pyenv and uv have the patch level in the path
        ("/usr/bin/python3.11", [], "CPython", "3.11"),
        ("/home/user/.pyenv/versions/3.11.7/bin/python3.11", [], "CPython", "3.11.7"),
        ("/opt/uv/cpython-3.12.1-linux-x86_64-gnu/bin/python3.12", [], "CPython", "3.12.1"),
        ("/srv/13.12.5/bin/python3.12", [], "CPython", "3.12"),
        ("/usr/bin/python2.7", [], "CPython", "2.7"),
        ("/usr/local/bin/python3.13t", [], "CPython", "3.13"),
        ("/usr/bin/python3.11 (deleted)", [], "CPython", "3.11"),
        ("/app/python3", ["/app/libpython3.13.so.1.0"], "CPython", "3.13"),
        ("/usr/sbin/uwsgi", ["/usr/lib/libpython3.11.so.1.0 (deleted)"], "CPython", "3.11"),
        ("/srv/static", ["/a/_ssl.cpython-312-x86_64-linux-gnu.so"], "CPython", "3.12"),
        ("/usr/bin/python3.12", ["/opt/jdk-21/lib/server/libjvm.so"], "CPython", "3.12"),
        ("/usr/bin/node", [], "node", ""),
        ("/usr/bin/node", ["/usr/lib/x86_64-linux-gnu/libnode.so.108"], "node", ""),
        ("/home/user/.nvm/versions/node/v20.20.2/bin/node", [], "node", "20.20.2"),
        ("/opt/node-v18.19.1-linux-x64/bin/node", [], "node", "18.19.1"),
        ("/opt/app", ["/usr/lib/libnode.so.115"], "node", ""),
        ("/u/java", ["/usr/lib/jvm/java-17-openjdk-amd64/lib/server/libjvm.so"], "JVM", "17"),
        ("/u/java", ["/root/x/java/17.0.9-tem/lib/server/libjvm.so"], "JVM", "17.0.9"),
        ("/u/java", ["/opt/jdk-21.0.2+13/lib/server/libjvm.so"], "JVM", "21.0.2"),
        ("/u/java", ["/opt/java/openjdk/lib/server/libjvm.so"], "JVM", ""),
        ("/u/java", ["/l/java-1.8.0-openjdk-1.8.0.372/jre/lib/amd64/server/libjvm.so"],
         "JVM", "1.8.0"),
        ("/u/java", ["/j/lib/server/libjvm.so", "/j/lib/default/libj9vm29.so"], "OpenJ9", ""),
        ("/usr/bin/dotnet", ["/usr/share/dotnet/shared/Microsoft.NETCore.App/8.0.1/libcoreclr.so"],
         ".NET", "8.0.1"),
        ("/srv/SelfContained", ["/srv/libcoreclr.so"], ".NET", ""),
        ("/usr/bin/ruby3.1", ["/usr/lib/libruby-3.1.so.3.1.2"], "Ruby", "3.1.2"),
        ("/usr/bin/php8.2", [], "PHP", "8.2"),
        ("/usr/sbin/php-fpm8.2", [], "PHP", "8.2"),
        ("/usr/sbin/apache2", ["/usr/lib/apache2/modules/libphp8.2.so"], "PHP", "8.2"),
        ("/usr/bin/mono-sgen", [], "Mono", ""),
        ("/usr/lib/erlang/erts-13.1.5/bin/beam.smp", [], "Erlang", ""),
    ],
)  # fmt: skip
def test_the_runtime_and_its_version_by_paths(process, program, mapped, name, version):
    process(program, *mapped)
    found = detect(PID)
    assert (found.name, found.version) == (name, version)
    assert not found.shows
    assert found.needs


@pytest.mark.parametrize(
    ("program", "mapped"),
    [
        ("/usr/sbin/nginx", []),
        ("/usr/bin/caddy", ["/usr/lib/libpthread.so.0"]),  # Go
        ("/usr/bin/nodemon-like", ["/srv/node_modules/x.node", "/srv/libjvmx.so"]),
        ("/usr/bin/pythonista", []),
        ("/srv/python3.11/bin/server", ["/srv/node/data", "/srv/php8.2/x"]),
    ],
)
def test_native_programs_need_none(process, program, mapped):
    process(program, *mapped)
    assert detect(PID) is None


@pytest.mark.parametrize(
    ("program", "mapped", "said"),
    [
        ("/usr/bin/python3.12", [], ["python -X perf", "PYTHONPERFSUPPORT=1"]),
        ("/usr/bin/python3.11", [], ["this is CPython 3.11: take 3.12 or newer", "python -X perf"]),
        ("/usr/bin/python3", [], ["python -X perf"]),
        ("/usr/bin/node", [], ["--perf-basic-prof --interpreted-frames-native-stack"]),
        ("/u/java", ["/usr/lib/jvm/java-17-openjdk/lib/server/libjvm.so"],
         ["-XX:+PreserveFramePointer", f"jcmd {PID} Compiler.perfmap"]),
        ("/u/java", ["/usr/lib/jvm/java-11-openjdk/lib/server/libjvm.so"],
         ["this is JVM 11: take 17 or newer"]),
        ("/srv/App", ["/srv/libcoreclr.so"], ["DOTNET_PerfMapEnabled=1"]),
        ("/usr/bin/ruby3.3", [], ["--yjit-perf"]),
        ("/usr/bin/ruby3.1", [], ["this is Ruby 3.1: take 3.3 or newer"]),
    ],
)  # fmt: skip
def test_what_it_needs_names_the_flag(process, program, mapped, said):
    process(program, *mapped)
    needs = detect(PID).needs
    assert [words for words in said if words not in needs] == []
    assert needs.startswith("this is ") == said[0].startswith("this is ")


def test_python_tells_names_on_two_architectures_only(process, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    process("/usr/bin/python3.12")
    assert "x86-64 or arm64" in detect(PID).needs
    assert "-X perf" not in detect(PID).needs


def test_with_a_perf_map_python_needs_nothing(process):
    perf_map(process("/usr/bin/python3.12"))
    assert detect(PID) == Runtime("CPython", "python", "3.12", shows=True, needs="")


@pytest.mark.parametrize(
    ("command", "needs"),
    [
        ("node --perf-basic-prof app.js", "--interpreted-frames-native-stack"),
        ("node --perf-basic-prof --interpreted-frames-native-stack app.js", ""),
        ("node --perf_basic_prof --interpreted_frames_native_stack app.js", ""),
    ],
)
def test_node_needs_a_second_flag_for_what_is_not_compiled(process, command, needs):
    perf_map(process("/usr/bin/node", command=command))
    found = detect(PID)
    assert found.shows
    assert (needs in found.needs) if needs else not found.needs


def test_node_may_have_its_flags_from_the_environment(process):
    folder = process("/usr/bin/node", command="node app.js")
    perf_map(folder)
    (folder / "environ").write_bytes(
        b"A=\xff\0NODE_OPTIONS=--perf-basic-prof --interpreted-frames-native-stack\0"
    )
    assert detect(PID).needs == ""


def test_a_jvm_tells_names_only_when_asked(process):
    perf_map(process("/u/java", "/usr/lib/jvm/java-17-openjdk/lib/server/libjvm.so"))
    assert (detect(PID).shows, f"`jcmd {PID} Compiler.perfmap` again" in detect(PID).needs) == (
        True, True,
    )  # fmt: skip


def test_ourselves():
    found = detect(os.getpid())
    version = ".".join(map(str, sys.version_info[:3]))
    assert (found.name, found.module) == ("CPython", "python")
    assert version == found.version or version.startswith(f"{found.version}.")


def test_a_real_native_program_and_one_that_is_gone():
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        cat.stdin.write(b"x")
        cat.stdin.flush()
        assert cat.stdout.read(1) == b"x"  # so it runs cat by now
        assert detect(cat.pid) is None
        cat.stdin.close()
    assert detect(cat.pid) is None
    assert detect(1 << 30) is None


def test_no_process_makes_it_raise():
    for pid in procfs.pids():  # kernel threads, other users' ...
        detect(pid)


FORKS = """
import os
child = os.fork()
if child:
    os.waitpid(child, 0)
else:
    print(os.getpid(), flush=True)
    os.read(0, 1)
"""


def test_the_parent_counts_only_if_it_runs_the_same_program():
    command = [sys.executable, "-c", FORKS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        assert runtime.forked_from(child) == parent.pid
        parent.stdin.write(b"x")
        parent.stdin.close()
    assert runtime.forked_from(child) is None
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        cat.stdin.write(b"x")
        cat.stdin.flush()
        cat.stdout.read(1)
        assert runtime.forked_from(cat.pid) is None
        cat.stdin.close()
