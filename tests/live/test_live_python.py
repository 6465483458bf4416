"""Python functions and lines in stacks, of interpreters that were started without any flag."""

import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.live.harness import V4, V6, Tcptrace

SCRIPT = Path(__file__).parent / "programs" / "leaky.py"
LINES = {
    match[1]: number
    for number, line in enumerate(SCRIPT.read_text().splitlines(), 1)
    if (match := re.search(r"# HERE: (\w+)", line))
}
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"


def interpreters():
    """Every CPython from 3.11 on that is installed here: always the one of the distribution."""
    found = {Path(os.path.realpath("/usr/bin/python3")).name: "/usr/bin/python3"}
    for minor in range(11, 16):
        name = f"python3.{minor}"
        # pyenv's own first: what it puts into PATH is a script that may lead nowhere
        candidates = [*sorted(PYENV.glob(f"3.{minor}.*/bin/{name}")), shutil.which(name)]
        if name not in found and (path := next(filter(None, candidates), None)):
            found[name] = str(path)
    return [pytest.param(path, id=name) for name, path in found.items()]


class Server:
    def __init__(self, python, family, *more):
        number = int(socket.AF_INET if family is V4 else socket.AF_INET6)
        self.family = family
        self.process = subprocess.Popen(
            [python, SCRIPT, family.loop, str(number), *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.port = int(self.line())

    def line(self):
        return self.process.stdout.readline().strip()

    def visit(self):
        """A client that says something and goes away; the server closes at the end."""
        with socket.create_connection((self.family.loop, self.port)) as client:
            client.sendall(b"hello")
            port = client.getsockname()[1]
        assert self.line() == "read"
        self.process.stdin.write("go on\n")
        self.process.stdin.flush()
        assert self.line() == "closed"
        return port

    def end(self):
        os.killpg(self.process.pid, signal.SIGKILL)  # a worker may wait for the next visitor
        self.process.communicate()


@pytest.fixture(params=[V4, V6], ids=["ipv4", "ipv6"])
def family(request):
    return request.param


def closing(trace, port):
    """The transition that the server's close() makes."""
    return trace.wait_for(
        lambda events: next(
            (
                event
                for event in events
                if event["event"] == "state"
                and event["dport"] == port
                and event["new_state"] == "LAST_ACK"
            ),
            None,
        ),
        "the close",
    )


def python_frames(stack):
    """``function line`` of those in our script, the innermost first."""
    found = [re.fullmatch(r"(\S+) \(python\) (\S+):(\d+)", frame) for frame in stack]
    return [(m[1], int(m[3])) for m in found if m and Path(m[2]).name == SCRIPT.name]


def expect(stack, *places):
    module = [frame for frame in python_frames(stack) if frame[0] == "<module>"]
    assert python_frames(stack) == [(name, LINES[mark]) for name, mark in places] + module
    assert len(module) == 1
    assert not any("guessed" in frame or frame.startswith("[") for frame in stack), stack


@pytest.mark.parametrize("python", interpreters())
def test_functions_and_lines(python, family):
    server = Server(python, family)
    try:
        with Tcptrace("--inline-stacks", "-p", server.process.pid) as trace:
            for _ in range(2):  # first by a copy of the stack, then walked by the kernel half
                event = closing(trace, server.visit())
                expect(event["close_stack"], ("serve", "close"))
                expect(event["birth_stack"], ("take", "accept"), ("serve", "take"))
                expect(
                    event["eof_stack"],
                    ("read_all", "read"),
                    ("handle", "handle"),
                    ("serve", "serve"),
                )
    finally:
        server.end()


@pytest.mark.parametrize("python", interpreters())
def test_forked_workers(python, family):
    """The first stack of a child may say that its interpreter was not known yet; none is wrong."""
    server = Server(python, family, "fork")
    try:
        with Tcptrace("--inline-stacks", "-f", "-p", server.process.pid) as trace:
            event = closing(trace, server.visit())
            assert event["pid"] != server.process.pid
            frames = python_frames(event["close_stack"])
            assert frames[:1] in ([], [("serve", LINES["close"])])
            if not frames:
                assert "[Python: the interpreter was not known yet]" in event["close_stack"]
    finally:
        server.end()
