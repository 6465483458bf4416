"""Programs of all kinds: how they were compiled, and whether their file is still what it was.

A stack that cannot be followed says so; one of another program is never right.
"""

from __future__ import annotations

import contextlib
import os
import re

import pytest
from guilty import (
    USUAL,
    Connection,
    Starter,
    build,
    check_life,
    copy_of,
    empty_folder,
    the,
    twin,
)
from harness import V4, Tcptrace, check_stream, run
from stacks import (
    PROGRAMS,
    frame,
    frames,
    functions,
    is_note,
    modules,
    own,
    parsed,
    plain,
)

BUILDS = {
    "O3": ("-O3", "-g"),
    "Os": ("-Os", "-g"),
    "frame_pointers": ("-O2", "-g", "-fno-omit-frame-pointer"),
    "static": ("-O2", "-g", "-static"),
    "static_pie": ("-O2", "-g", "-static-pie"),
    "no_pie": ("-O2", "-g", "-no-pie"),
    "lto": ("-O2", "-g", "-flto"),
    "dwarf4_compressed": ("-O2", "-gdwarf-4", "-gz"),
    "debug_frame_only": ("-O2", "-g", "-fno-asynchronous-unwind-tables"),
    "avx": ("-O3", "-g", "-mavx2") if os.uname().machine == "x86_64" else ("-O3", "-g"),
}
WAYS = ["left", "inlined", "variable 200", "aligned 100", "cloned", "unlikely", "one_way"]
FIXED = ("-O2", "-g", "-no-pie")
"""A program and its twin lie at the same addresses in every process."""


@pytest.fixture(scope="module")
def tracer():
    with Tcptrace("--inline-stacks", "--ring-mib", 64, "-p", os.getpid(), "-f") as running:
        yield running
        events = running.stop()
        assert running.process.returncode == 0
        check_stream(events)


@pytest.fixture
def start(ns):
    with contextlib.closing(Starter(ns)) as starter:
        yield starter


@pytest.mark.parametrize("kind", BUILDS)
def test_build(start, tracer, kind):
    shop = start.shop(V4, build(*BUILDS[kind]))
    check_life(*shop.arrival(*WAYS).whole(tracer), *WAYS)
    shop.arrival(*WAYS, "signal").whole(tracer)  # the first is cut where the stack changes
    check_life(*shop.arrival(*WAYS, "signal").whole(tracer), *WAYS, "signal")


@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_no_tables_at_all(start, tracer, level):
    """What is behind code without call frame tables is a guess, and marked as one."""
    shop = start.shop(V4, build(level, "-g0", "-fno-asynchronous-unwind-tables"))
    for event in shop.arrival("left", "deep 3").whole(tracer):
        stack = event["birth_stack"]
        names = [one.split()[0] for one in frames("left", "deep 3", deed="accept")]
        mine = [text for text in stack if not is_note(text) and parsed(text)["module"] == "guilty"]
        certain = [text for text in mine if "[guessed" not in text]
        assert functions(certain) == names[: len(certain)], stack
        assert len(certain) == 1  # only its caller is in libc, which has tables
        if level == "-O0":  # frame pointers everywhere: the guesses are right
            assert functions(mine)[: len(names)] == names, stack
            assert "[guessed: frame pointer]" in mine[1]


def stripped(program, *options):
    target = empty_folder() / "guilty"
    run("strip", *options, "-o", target, program)
    return target


def resolved(stack, twin_with_symbols):
    """The bare addresses of a stack, by addr2line."""
    found = []
    for text in stack:
        if is_note(text) or parsed(text)["module"] != "guilty":
            continue
        bare = re.fullmatch(r"0x[0-9a-f]+", parsed(text)["function"])
        assert bare, f"a name in a program without any: {text}"
        name, place = run("addr2line", "-fe", twin_with_symbols, bare[0]).splitlines()
        if str(PROGRAMS) in place:
            found.append(f"{plain(name)} {place.split()[0].rpartition('/')[2]}")
    return found


@pytest.mark.parametrize("flags", [USUAL, FIXED, ("-Os", "-g")], ids=["pie", "no_pie", "Os"])
def test_stripped(start, tracer, flags):
    """The bare addresses are those that addr2line takes, of the call and not of what follows it."""
    ways, program = ["left", "unlikely", "one_way", "signal"], build(*flags)
    shop = start.shop(V4, stripped(program))
    shop.arrival(*ways).whole(tracer)
    last_ack = shop.arrival(*ways).whole(tracer)[1]
    for name, deed in [("birth", "accept"), ("eof", "read"), ("close", "close")]:
        stack = last_ack[f"{name}_stack"]
        assert not is_note(stack[-1]), stack
        assert resolved(stack, program) == frames(*ways, deed=deed)


def test_only_symbols(start, tracer):
    """Without debug information: functions, no lines."""
    shop = start.shop(V4, stripped(build(), "-g"))
    stack = shop.arrival("left").whole(tracer)[1]["eof_stack"]
    mine = [text for text in stack if parsed(text)["module"] == "guilty"]
    expected = [f"{one.split()[0]} (guilty)" for one in frames("left", deed="read")]
    assert mine[: len(expected)] == expected


@pytest.mark.parametrize("where", [".", ".debug"])
@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_debug_file_beside(start, tracer, where, right):
    """.gnu_debuglink; one that does not belong to the program is not used."""
    program = stripped(build())
    (program.parent / where).mkdir(exist_ok=True)
    beside = program.parent / where / "guilty.debug"
    run("objcopy", "--only-keep-debug", build(), beside)
    run("objcopy", f"--add-gnu-debuglink={beside}", program)
    if not right:
        run("objcopy", "--only-keep-debug", twin(), beside)
    shop = start.shop(V4, program)
    events = shop.arrival("left", "inlined").whole(tracer)
    if right:
        check_life(*events, "left", "inlined")
    else:
        assert resolved(events[1]["eof_stack"], build())[0] == frames(deed="read")[0]


@pytest.mark.parametrize("flags", [USUAL, FIXED], ids=["pie", "no_pie"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_file_is_gone(start, tracer, how, when, flags):
    """The process runs on; its file has no name any more, or the name is another one's."""
    program = copy_of(build(*flags))
    shop = start.shop(V4, program)
    if when == "after":
        check_life(*shop.arrival("left").whole(tracer), "left")
    program.unlink() if how == "deleted" else copy_of(twin(*flags)).rename(program)
    check_life(*shop.arrival("left").whole(tracer), "left")
    check_life(*shop.arrival("right").whole(tracer), "right")


def test_new_program_under_the_old_name(start, tracer):
    """The old process and the new one run side by side, from the same path."""
    program = copy_of(build(*FIXED))
    old = start.shop(V4, program)
    check_life(*old.arrival().whole(tracer))
    copy_of(twin(*FIXED)).rename(program)
    new = start.shop(V4, program)
    stack = new.arrival().whole(tracer)[1]["eof_stack"]
    assert own(stack) == frames(deed="read", module="innocent")
    check_life(*old.arrival().whole(tracer))


def test_mount_namespace_of_its_own(start, tracer):
    """Only there is the program; outside, the same path leads to another."""
    program = copy_of(twin(*FIXED))
    script = f'mount -t tmpfs none {program.parent} && cp {build(*FIXED)} {program} && exec "$0"'
    shop = start.shop(V4, program, "unshare", "-m", "sh", "-c", script)
    assert "innocent" in run("nm", program)
    check_life(*shop.arrival("left", "inlined").whole(tracer), "left", "inlined")


def test_cpp(start, tracer):
    """Namespaces, templates, methods, operators, a lambda, a destructor after throw."""
    for flags in [("-O0", "-g"), USUAL]:
        shop = start.shop(V4, build(*flags, source="guilty.cpp"))
        one = Connection(shop, (), shop.server)
        one.left(tracer)
        one.ended(tracer)
        events = tracer.story(one.cookie)
        by_throw = Connection(shop, (), shop.server)
        by_throw.left(tracer)
        shop.server("throw", by_throw.far)
        by_throw = the(tracer.story(by_throw.cookie), "LAST_ACK")["close_stack"]
        last_ack = the(events, "LAST_ACK")
        check_cpp(last_ack["birth_stack"], "shop::Counter::take", "do_accept")
        serve = "shop::Desk<shop::Counter>::serve<5>"
        check_cpp(last_ack["eof_stack"], "shop::Counter::operator()", serve, "do_read")
        check_cpp(by_throw, "shop::Guard::~Guard", "shop::break_down", "do_throw")
        polite = "shop::(anonymous namespace)::Polite::hang_up"
        seen = check_cpp(last_ack["close_stack"], "shop::Counter::hang_up", polite)
        assert seen[2].partition(" guilty.cpp:")[2].split()[0] == line("do_close/lambda")
        assert seen[3:5] == [frame("shop::call", "guilty.cpp"), frame("do_close", "guilty.cpp")]


def line(mark):
    return frame(mark, "guilty.cpp").rpartition(":")[2]


def check_cpp(stack, *marks):
    """It begins with these; all complete names, demangled."""
    assert not is_note(stack[-1]), stack
    assert modules(stack) == {"guilty"}
    seen = [text.removeprefix("int ") for text in own(stack)]  # a template's name has its type
    assert seen[: len(marks)] == [frame(mark, "guilty.cpp") for mark in marks], stack
    assert seen[-1] == frame("main")
    return seen
