"""Which frames the guilty programs must show, what a stack shows, and what gdb says.

A frame is written ``function file:line``, or ``function file:line [inlined]``. Lines are
never numbers here: the sources mark them with ``HERE: function``.
"""

from __future__ import annotations

import functools
import re
import time
from pathlib import Path

from harness import HERE, PATIENCE_S, run

PROGRAMS = HERE / "programs"
LIBRARIES = re.compile(r"(libc|libpthread|libdl|libstdc\+\+|libgcc_s|ld-linux)[\w.+-]*|\[?vdso\]?")
"""Modules whose frames may stand around a program's own."""

STACKS = ("user", "kernel", "birth", "eof", "last_read", "last_write", "close")
"""``user_stack`` and so on."""

DEEDS = {
    "listen": ["open_shop", "do_listen"],
    "accept": ["take_client", "accept_loop", "do_accept"],
    "connect": ["dial", "do_connect"],
    "connect_later": ["dial", "do_connect_later"],
    "read": ["leaky_handler", "do_read"],
    "write": ["reply_to", "do_write"],
    "close": ["hang_up", "do_close"],
    "shutdown": ["half_close", "do_shutdown"],
    "accept4": ["by_accept4"],
    "recv": ["by_recv"],
    "recvmsg": ["by_recvmsg"],
    "readv": ["by_readv"],
    "plain_write": ["by_write"],
    "sendmsg": ["by_sendmsg"],
    "writev": ["by_writev"],
    "sendfile": ["by_sendfile"],
    "dup2": ["by_dup2"],
    "exit": ["by_exit"],
}
"""Which functions of guilty.c stand between the system call and perform()."""

WAYS = {
    "left": ["left"],
    "right": ["right"],
    "big_room": ["big_room"],
    "gap": ["gap"],
    "variable 200": ["variable"],
    "aligned 100": ["realigned"],
    "inlined": ["inner [inlined]", "middle [inlined]", "outer"],
    "unlikely": ["unlikely"],
    "cloned": ["special", "clone_way"],
    "one_way": ["never_returns", "dead_end", "one_way"],
    "signal": ["on_fault", "touch", "in_signal"],
    "deep 3": ["descend/bottom", *["descend"] * 3, "deep"],
    "deep 30": ["descend/bottom", *["descend"] * 30, "deep"],
    "deep 200": ["descend/bottom", *["descend"] * 200, "deep"],
    "thread": ["run_errand"],
    "coroutine": ["coroutine"],
}
"""Which frames each word before the deed puts around it."""

ENDS = ("then_exit", "then_exec", "vforked")
"""Further ways: the process is another one, or none, before anybody can look at it."""

_MARK = re.compile(r"/\* HERE: (.+?) \*/")


@functools.cache
def marks():
    """(source, mark) -> the frame of that line."""
    found = {}
    for path in (path for path in PROGRAMS.rglob("*") if path.suffix in (".c", ".cpp", ".h")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for mark in _MARK.findall(line):
                assert (path.name, mark) not in found, f"{mark} twice in {path}"
                found[path.name, mark] = f"{mark.partition('/')[0]} {path.name}:{number}"
    return found


def frame(mark, source="guilty.c"):
    name, *inlined = mark.split(" [")
    found = marks()[source if (source, name) in marks() else "obey.h", name]
    return " [".join([found, *inlined])


def frames(*ways, deed, module="guilty"):
    """What the deed looks like from within, outwards to main() or to the thread's function."""
    found = list(DEEDS[deed])
    for way in reversed(ways):
        word = way.split()[0]
        found += ["perform", *([word] if word in ENDS else WAYS[way])]
        if way in ("thread", "coroutine"):
            return [_named(frame(one), module) for one in found]
    return [_named(frame(one), module) for one in [*found, "perform", "obey", "main"]]


def _named(one, module):
    """A twin's functions have other names."""
    return f"innocent_{one}" if module == "innocent" and not one.startswith("main ") else one


# ---- what is seen ----

_FRAME = re.compile(
    r"(?P<function>.+) \((?P<module>[^()]+)\)(?: (?P<file>[^\[]+?)(?::(?P<line>\d+))?)?"
    r"(?P<notes>(?: \[[^]]+\])*)"
)
_COPY = re.compile(r"\.(cold|isra|constprop|part|lto_priv)(\.\d+)*$")
"""The compiler's own additions to a function's name: with or without is both right."""


def parsed(text):
    match = _FRAME.fullmatch(text)
    assert match, f"not a frame: {text!r}"
    return match.groupdict()


def is_note(text):
    """Not a frame, but why there are no more."""
    return text.startswith("[")


def plain(name):
    """Without arguments, and without the compiler's additions."""
    name = _COPY.sub("", name.removesuffix(" const").split(" [clone ")[0])
    if name.endswith(")") and not name.endswith("operator()"):
        depth = 0
        for place in range(len(name) - 1, 0, -1):
            depth += {")": 1, "(": -1}.get(name[place], 0)
            if depth == 0:
                return name[:place]
    return name


def own(stack):
    """The frames that lie in our sources."""
    found = []
    for text in stack:
        one = None if is_note(text) else parsed(text)
        if one and one["file"] and PROGRAMS in Path(one["file"]).parents:
            place = f"{Path(one['file']).name}:{one['line']}"
            found.append(f"{plain(one['function'])} {place}{one['notes']}")
    return found


def modules(stack):
    """Of the programs, not of the libraries that everybody has."""
    names = {parsed(text)["module"] for text in stack or () if not is_note(text)}
    return {name for name in names if not LIBRARIES.fullmatch(name)}


def functions(stack):
    return [plain(parsed(text)["function"]) for text in stack or () if not is_note(text)]


def check(stack, expected, call, module="guilty"):
    """Complete, exact, nothing of anybody else's; the first frame is of this system call."""
    assert stack is not None, f"no stack; expected {expected}"
    assert own(stack) == expected, stack
    assert not [text for text in stack if is_note(text)], stack
    assert modules(stack) == {module}
    assert call in parsed(stack[0])["function"], stack


def check_beginning(stack, expected, call, module="guilty", least=1):
    """It may have been cut, but then it says so, and what is there is right."""
    assert stack is not None, f"no stack; expected {expected}"
    if not is_note(stack[-1]):
        return check(stack, expected, call, module)
    assert stack[-1].startswith("[truncated"), stack
    seen = own(stack)
    assert len(seen) >= least, stack
    return check(stack[:-1], expected[: len(seen)], call, module)


def check_unless_unknown(stack, expected, call, module="guilty"):
    """All of it, or a note instead of it."""
    if stack is None or not is_note(stack[-1]):
        return check(stack, expected, call, module)
    assert stack[-1].startswith(("[unknown", "[truncated")), stack
    seen = own(stack)
    assert seen == expected[: len(seen)], stack
    return None


# ---- gdb ----

_GDB = ["gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set auto-load off"]
_SETTINGS = [
    "set print frame-arguments none",
    "set print address off",
    "set width 0",
    "set filename-display absolute",
    "set backtrace past-main off",
]
_GDB_FRAME = re.compile(r"#\d+ +(.+?) \(.*\) at (.+):(\d+)")


def blocked(process, fd):
    """Wait until one of its threads sleeps in a system call on this descriptor; the thread."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            if (task / "syscall").read_text().split()[1:2] == [f"{fd:#x}"]:
                return int(task.name)
        time.sleep(0.002)  # it falls asleep in silence: there is nothing to wait for
    raise TimeoutError(f"{process.pid} does not block on descriptor {fd}")


def gdb_frames(tid):
    """Our frames of a thread, as gdb sees them."""
    words = [word for setting in [*_SETTINGS, f"attach {tid}", "bt"] for word in ("-ex", setting)]
    text = run(*_GDB, *words, check=False)
    found = [match for match in map(_GDB_FRAME.match, text.splitlines()) if match]
    assert found, text
    return [
        f"{plain(match[1])} {Path(match[2]).name}:{match[3]}"
        for match in found
        if PROGRAMS in Path(match[2]).parents
    ]
