"""Language runtimes: which one a process runs, and how it tells the names of its functions.

Only /proc is read; nothing is executed or changed in the process. Its files are found
through its own root and pid namespace, as it may live in a container.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import stat
import time
from dataclasses import dataclass
from pathlib import PurePath

from tcptrace.probes.enrich import procfs
from tcptrace.probes.enrich.clock import NS
from tcptrace.probes.enrich.stacks.frame import Frame

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_CLOCK_STEP_S = 60
"""A clock that was set, or a VM that stood still, makes a file look older than its process."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """``module`` stands in its frames. ``version``: as exact as paths tell it, perhaps empty.

    ``shows``: it has told names of functions, in a perf map. ``needs``: what to do so that it
    tells them, or more of them; empty: nothing.
    """

    name: str
    module: str
    version: str
    shows: bool
    needs: str


@dataclass(frozen=True, slots=True)
class _Kind:
    """``files`` fits the program's name or a library's; its groups joined by dots are the version.

    ``in_path`` finds an (exacter) version in the path. ``more`` is needed also where there is a
    perf map, unless ``settled`` stands in the command line or the environment.
    """

    name: str
    module: str
    files: str
    needs: str
    in_path: str = ""
    oldest: tuple[int, ...] = ()
    more: str = ""
    settled: str = "\n"


_KINDS = (
    _Kind("OpenJ9", "java", r"libj9vm\d+\.so", "start it with `java -XX:+PerfTool`"),
    _Kind(
        "JVM",
        "java",
        r"libjvm\.so",
        "start it with `java -XX:+PreserveFramePointer` and then run"
        " `jcmd {pid} Compiler.perfmap` (JDK 17 or newer) to see compiled Java methods",
        in_path=r"(?<=-)\d[\d.]*(?=[-/])|\d+\.\d+\.\d+",
        oldest=(17,),
        more="run `jcmd {pid} Compiler.perfmap` again to see methods compiled since",
    ),
    _Kind(
        ".NET",
        "dotnet",
        r"libcoreclr\.so",
        "start it with DOTNET_PerfMapEnabled=1 to see .NET methods",
        in_path=r"(?<=NETCore\.App/)[^/]+",
    ),
    _Kind(
        "node",
        "node",
        r"node(?:js)?|libnode\.so.*",
        "start it with `node --perf-basic-prof --interpreted-frames-native-stack`"
        " to see JavaScript functions",
        in_path=r"(?<=\bv)\d+\.\d+\.\d+",
        more="start it with --interpreted-frames-native-stack as well, to see"
        " JavaScript functions that are not compiled yet",
        settled="interpreted-frames-native-stack",
    ),
    _Kind(
        "CPython",
        "python",
        r"python(\d\.\d+)?\w?|libpython(\d\.\d+)\w?\.so.*|.+\.cpython-(\d)(\d+)\w*-.+\.so",
        "start it with `python -X perf` (or PYTHONPERFSUPPORT=1) to see Python functions",
        oldest=(3, 12),
    ),
    _Kind(
        "Ruby",
        "ruby",
        r"ruby(\d\.\d+)?|libruby[-.](\d\.\d+).*",
        "start it with `ruby --yjit --yjit-perf` to see compiled Ruby methods",
        oldest=(3, 3),
    ),
    _Kind(
        "PHP",
        "php",
        r"php(?:-fpm|-cgi)?(\d\.\d+)?|libphp(\d\.\d+)?\.so",
        "start it with its JIT and opcache.jit_debug=16 to see compiled PHP functions",
        oldest=(8, 0),
    ),
    _Kind("Mono", "mono", r"mono(?:-sgen)?|libmono.*\.so.*", "start it with `mono --jitmap`"),
    _Kind("Erlang", "erlang", r"beam(?:\.smp)?", "start it with `erl +JPperf true`"),
)


def detect(pid: int) -> Runtime | None:
    """None if the process is gone, or runs native code only as far as is known here."""
    try:
        program = os.readlink(procfs.PROC / str(pid) / "exe")
        mapped = (procfs.PROC / str(pid) / "maps").read_text(errors="backslashreplace")
    except OSError:
        return None
    paths = [program, *dict.fromkeys(re.findall(r" (/.+)$", mapped, re.MULTILINE))]
    paths = [path.removesuffix(" (deleted)") for path in paths]
    kind = _kind(paths[:1]) or _kind(paths)
    if kind is None:
        return None
    version = max((_version(kind, path) for path in paths), key=len)
    shows = _has_perf_map(pid)
    return Runtime(kind.name, kind.module, version, shows, _needs(kind, version, pid, shows=shows))


def _kind(paths: list[str]) -> _Kind | None:
    names = [PurePath(path).name for path in paths]
    fit = (kind for kind in _KINDS if any(re.fullmatch(kind.files, name) for name in names))
    return next(fit, None)


def _version(kind: _Kind, path: str) -> str:
    match = re.fullmatch(kind.files, PurePath(path).name)
    if not match:
        return ""
    version = ".".join(filter(None, match.groups()))
    exact = kind.in_path or rf"(?<!\d)(?<!\d\.){re.escape(version)}\.\d+(?!\d)"
    found = re.search(exact, path) if version or kind.in_path else None
    return found[0] if found else version


def _needs(kind: _Kind, version: str, pid: int, *, shows: bool) -> str:
    if shows:
        told = any(kind.settled in _flags(pid, file) for file in ("cmdline", "environ"))
        return "" if told else kind.more.format(pid=pid)
    if kind.name == "CPython" and platform.machine() not in ("x86_64", "aarch64"):
        return "run it on x86-64 or arm64 to see Python functions"
    needs, oldest = kind.needs.format(pid=pid), ".".join(map(str, kind.oldest))
    numbers = tuple(map(int, re.findall(r"\d+", version)))
    if not numbers or numbers >= kind.oldest:
        return needs
    return f"this is {kind.name} {version}: take {oldest} or newer, and {needs}"


def _flags(pid: int, file: str) -> str:
    with contextlib.suppress(OSError):
        text = (procfs.PROC / str(pid) / file).read_text(errors="replace")
        return text.replace("_", "-")
    return ""


def _has_perf_map(pid: int) -> bool:
    process = procfs.process(pid)
    with contextlib.suppress(OSError):
        os.close(open_perf_map(pid, process.start_ns if process else 0))
        return True
    return False


def open_perf_map(pid: int, start_ns: int) -> int:
    """A descriptor of ``/tmp/perf-PID.map``, pid and ``/tmp`` as the process sees them.

    As anybody may write into ``/tmp``, it must belong to the process's user or to root (perf
    asks the same), and must not be left over from one that had the pid before.

    Raises:
        OSError: there is none, it is not trusted, or the process that started then is gone.
    """
    with contextlib.ExitStack() as opened:
        folder = os.open(procfs.PROC / str(pid) / "root", _FOLDER)
        opened.callback(os.close, folder)
        # no links: an absolute one would lead out of the process's root, into ours
        folder = os.open("tmp", _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
        opened.callback(os.close, folder)
        inner_pid = [str(pid), *_fields(pid, "status", "NSpid:")][-1]
        fd = os.open(f"perf-{inner_pid}.map", _READ, dir_fd=folder)
        opened.callback(os.close, fd)
        _check(pid, start_ns, os.fstat(fd))
        return os.dup(fd)


def _check(pid: int, start_ns: int, found: os.stat_result) -> None:
    trusted = ["0", _fields(pid, "status", "Uid:")[1], *_fields(pid, "uid_map", "0")[:1]]
    if not stat.S_ISREG(found.st_mode) or str(found.st_uid) not in trusted:
        raise PermissionError(pid, "a perf map of somebody else")
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    if found.st_mtime < booted + start_ns / NS - _CLOCK_STEP_S:
        raise FileNotFoundError(pid, "a perf map that is older than the process")
    process = procfs.process(pid)
    if not process or process.start_ns != start_ns:
        raise ProcessLookupError(pid)


def _fields(pid: int, file: str, name: str) -> list[str]:
    """What follows the name in its line."""
    for line in (procfs.PROC / str(pid) / file).read_text(errors="replace").split("\n"):
        words = line.split()
        if words[:1] == [name]:
            return words[1:]
    return []


def forked_from(pid: int) -> int | None:
    """The parent, if it runs the same program: then the child probably shares its code."""
    with contextlib.suppress(OSError):
        process = procfs.process(pid)
        if process:
            own, above = (os.stat(procfs.PROC / str(at) / "exe") for at in (pid, process.parent))
            return process.parent if os.path.samestat(own, above) else None
    return None


_V8_FUNCTION = re.compile(
    r"(?:JS|LazyCompile|Function|Eval|Script|Native\w+):[~^+*]*(?P<name>.*?)"
    r" (?P<file>(?:/|file:|node:).*?|\S*?)(?::(?P<line>\d+))?(?::\d+)?"
)
_V8_OTHER = re.compile(r"(?:JS|Builtin|BytecodeHandler|Handler|Stub|RegExp):(?!:).*")


def named(name: str, module: str) -> Frame:
    """The function, from what a runtime calls its code. Unknown forms stay as they are.

    ``line`` is where the function begins, as no runtime tells which line is executed.
    """
    if name.startswith("py::"):
        function, _, file = name[4:].partition(":")
        return Frame(function, "python", file=file or None)
    if found := _V8_FUNCTION.fullmatch(name):
        line = int(found["line"]) if found["line"] else None
        return Frame(found["name"] or "(anonymous)", "node", file=found["file"] or None, line=line)
    return Frame(name, "node" if _V8_OTHER.fullmatch(name) else module)


def runs_python(pid: int) -> bool:
    """Whether CPython is mapped: the program itself, or embedded in another."""
    try:
        program = os.readlink(procfs.PROC / str(pid) / "exe")
        if PurePath(program).name.startswith("python"):
            return True
        return "libpython3" in (procfs.PROC / str(pid) / "maps").read_text(errors="replace")
    except OSError:
        return False
