"""Stacks as text."""

import pytest

from tcptrace.cli.sinks.stack_lines import Depth, stack_lines
from tcptrace.probes.diagnose.words import brief, own_frames

FRAMES = [
    "__read (libc.so.6) ./io/../sysdeps/unix/sysv/linux/read.c:26",
    "fill (srv) /src/buffer.c:7 [inlined]",
    "leaky_handler (srv) /src/srv.c:41",
    "serve (srv) /src/srv.c:60",
    "main (srv) /src/srv.c:70",
    "__libc_start_call_main (libc.so.6)",
]


def event(reason="fin_received", **stacks):
    return {"reason": reason} | {f"{name}_stack": frames for name, frames in stacks.items()}


def test_the_first_frames_of_the_program_itself():
    (line,) = stack_lines(event("local_close", user=FRAMES), Depth(2))
    assert line.strip() == "in fill buffer.c:7 [inlined] < leaky_handler srv.c:41 < ... 3 more"


def test_all_of_them():
    lines = [line.strip() for line in stack_lines(event("shutdown", user=FRAMES), Depth(None))]
    assert lines == ["in:", *FRAMES]


def test_what_is_told_of_close_wait():
    lines = list(stack_lines(event(birth=FRAMES, last_read=FRAMES[3:]), Depth(1)))
    assert [line.split(" in ")[0].strip() for line in lines] == ["made", "last read"]


def test_the_read_of_end_of_file_is_not_told_twice():
    lines = list(stack_lines(event(eof=FRAMES, last_read=FRAMES), Depth(1)))
    assert [line.strip().split(" in ")[0] for line in lines] == ["end of file read"]


def test_where_the_owner_was_when_a_packet_came_explains_nothing():
    assert not list(stack_lines(event("ack_received", user=FRAMES, birth=FRAMES), Depth(1)))


def test_an_ordinary_end_needs_no_stacks():
    ended = event("fin_received", birth=FRAMES) | {"became": "time_wait"}
    assert not list(stack_lines(ended, Depth(1)))


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("connect", ["in"]),
        ("listen", ["in"]),
        ("shutdown", ["in"]),
        ("rst_sent_unread", ["in", "last read"]),
        ("fin_received", ["made", "last read", "last write", "end of file read"]),
        ("process_exit", ["made", "last read", "last write", "end of file read"]),
        ("rst_received", ["made", "last read", "last write", "closed"]),
        ("timeout", ["made", "last read", "last write", "closed"]),
        ("refused", ["made"]),
        ("accept", []),
        ("other", []),
    ],
)
def test_which_stacks_explain_what(reason, told):
    """One of each: the documentation's table says the same."""
    names = ("user", "birth", "last_read", "last_write", "eof", "close")
    each = {name: [f"{name} (srv)"] for name in names}
    lines = [line.strip() for line in stack_lines(event(reason, **each), Depth(1))]
    assert [line.partition("in ")[0].strip() or "in" for line in lines] == told


def test_kernel_functions_are_always_told():
    (line,) = stack_lines(event("ack_received", kernel=["tcp_set_state", "tcp_fin"]), Depth(1))
    assert line.strip() == "kernel tcp_set_state < ... 1 more"


def test_no_stacks_no_lines():
    assert not list(stack_lines(event(), Depth()))


@pytest.mark.parametrize(
    "frame",
    ["__read (libc.so.6)", "__libc_recv (libc-2.31.so)", "_dl_start (ld-linux-x86-64.so.2)"],
)
def test_wrappers_of_system_calls_are_not_the_program(frame):
    assert own_frames([frame, "f (srv)"]) == ["f (srv)"]


@pytest.mark.parametrize("frame", ["f (libcurl.so.4)", "f (ldapd)", "f (libc_like)"])
def test_other_libraries_are(frame):
    assert own_frames([frame, "g (srv)"]) == [frame, "g (srv)"]


def test_the_functions_of_an_interpreted_program():
    frames = [
        "__read (libc.so.6)",
        "_PyEval_EvalFrameDefault (python3.12)",
        "handle (python) /a/s.py:3",
    ]
    assert own_frames([*frames, "main (python3.12)", "serve (python) /a/s.py:9"]) == [
        "handle (python) /a/s.py:3",
        "serve (python) /a/s.py:9",
    ]


@pytest.mark.parametrize("module", ["python", "node", "java", "ruby"])
def test_of_a_program_in_another_language_only_its_own_functions(module):
    mine = [f"handle ({module}) /srv/app.x", f"serve ({module}) /srv/app.x:7"]
    native = ["read (libc.so.6)", "0x5fe545 (python3.11)", "_start (python3.11)"]
    assert own_frames([native[0], mine[0], native[1], mine[1], native[2]]) == mine


def test_a_stack_of_nothing_but_libc_is_shown():
    assert own_frames(FRAMES[:1]) == FRAMES[:1]


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        ("f (srv) /a/b/srv.c:7", "f srv.c:7"),
        ("f (srv)", "f (srv)"),
        ("0x11d9 (srv)", "0x11d9 (srv)"),
        ("std::vector<int (*)(int)>::at (srv) /x/y.h:3", "std::vector<int (*)(int)>::at y.h:3"),
        ("f (srv) [guessed: frame pointer]", "f (srv) [guessed: frame pointer]"),
        ("[unknown: a 32-bit program]", "[unknown: a 32-bit program]"),
    ],
)
def test_brief(frame, text):
    assert brief(frame) == text
