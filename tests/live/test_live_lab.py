"""Every laboratory, for both families, as a user runs it; and what is left when it is stopped."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest
from harness import PATIENCE_S, TCPTRACE, V6, run

from tcptrace.lab.scenarios import SCENARIOS

STORY_S = 120
"""How long a story may take on a machine that is busy with other things."""
TIMERS = ("net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_orphan_retries", "net.ipv4.tcp_syn_retries")
LONG_STORY = "server-close-wait"


class Laboratory:
    """``tcptrace lab run ...``, its output line by line."""

    def __init__(self, *words):
        self.process = subprocess.Popen(
            [*TCPTRACE, "lab", "run", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        self.pid, self.text, self.members = self.process.pid, "", set()

    def read_until(self, pattern):
        """Until a line matches."""
        deadline = time.monotonic() + STORY_S
        while not re.search(pattern, self.text):
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern!r} did not come: {self.text}"
            if select.select([self.process.stdout], [], [], left)[0]:
                more = os.read(self.process.stdout.fileno(), 65536).decode()
                assert more, f"it ended before {pattern!r}: {self.text}"
                self.text += more
        self.members |= descendants(self.pid)

    def finish(self):
        """Its exit code."""
        rest, _ = self.process.communicate(timeout=STORY_S)
        self.text += rest.decode()
        return self.process.returncode

    def send(self, number):
        self.members |= descendants(self.pid)
        self.process.send_signal(number)

    def hosts(self):
        return {path.name for path in Path("/run/netns").glob(f"tcptrace-{self.pid}-*")}

    def check_nothing_is_left(self):
        assert self.hosts() == set()
        assert [pid for pid in self.members if runs(pid)] == []
        assert run("pgrep", "-f", f"tcptrace-{self.pid}-", check=False) == ""


def descendants(pid):
    found, todo = set(), [pid]
    while todo:
        children = run("ps", "-o", "pid=", "--ppid", todo.pop(), check=False).split()
        todo += children
        found |= set(map(int, children))
    return found


def runs(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def folders():
    return set(Path("/tmp").glob("tcptrace-lab-*"))


@pytest.fixture
def laboratory():
    made, before = [], folders()

    def start(*words):
        made.append(Laboratory(*words))
        return made[-1]

    yield start
    for one in made:
        one.process.kill()
        one.process.wait(PATIENCE_S)
        one.check_nothing_is_left()
    assert folders() <= before


@pytest.mark.parametrize("name", SCENARIOS)
def test_story_comes_out(name, family, laboratory):
    timers = [run("sysctl", "-n", timer) for timer in TIMERS]
    lab = laboratory(name, *(["-6"] if family == V6 else []))
    assert lab.finish() == 0, lab.text
    scenario = SCENARIOS[name]
    assert f"{name}: came out, {len(scenario.expect)} facts" in lab.text
    assert "WRONG" not in lab.text
    for fact in scenario.expect:
        assert f"  . {fact.says}\n" in lab.text
    assert [run("sysctl", "-n", timer) for timer in TIMERS] == timers


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_in_the_middle_of_the_story(number, laboratory):
    lab = laboratory(LONG_STORY)
    lab.read_until("FIN_WAIT2 Recv-Q 0")
    assert len(lab.hosts()) == 2
    lab.send(number)
    assert lab.finish() == 130
    assert "came out" not in lab.text
    lab.check_nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", range(8))
def test_interrupted_anywhere(number, moment, laboratory):
    """As soon as its namespaces begin to be there, and a little later each time."""
    lab = laboratory(LONG_STORY)
    deadline = time.monotonic() + PATIENCE_S
    while not lab.hosts() and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.04 * moment)  # the moment itself is what is tried: nothing is waited for
    lab.send(number)
    lab.process.send_signal(signal.SIGINT)  # and impatience does no harm
    assert lab.finish() == 130
    lab.check_nothing_is_left()


def test_a_stopped_and_a_spinning_program_are_ended_too(laboratory):
    for name, moment in (("accept-queue", "third one stays"), ("client-write-loop", "spins on")):
        lab = laboratory(name)
        lab.read_until(moment)
        lab.send(signal.SIGTERM)
        lab.finish()
        lab.check_nothing_is_left()


def test_keep_leaves_everything_until_it_is_told(laboratory):
    lab = laboratory("client-write-death", "--keep")
    lab.read_until(r"server: pid \d+, running")
    (pid,) = re.findall(r"server: pid (\d+)", lab.text)
    assert runs(pid)
    for command in re.findall(r"sudo (ip netns exec .*)", lab.text):
        run(*command.split())
    lab.send(signal.SIGINT)
    assert lab.finish() == 0
    assert "client-write-death: came out" in lab.text
    lab.check_nothing_is_left()


def test_killed_and_the_next_one_tidies_up(laboratory):
    """Nothing can tidy up after SIGKILL; but its programs end, and the names go later."""
    lab = laboratory(LONG_STORY)
    lab.read_until("FIN_WAIT2 Recv-Q 0")
    programs = [pid for pid in lab.members if "server" in arguments(pid)]
    left = {str(path) for path in folders()}
    lab.send(signal.SIGKILL)
    lab.finish()
    assert lab.hosts()
    assert programs
    deadline = time.monotonic() + PATIENCE_S
    while any(map(runs, lab.members)) and time.monotonic() < deadline:
        time.sleep(0.01)  # the tracer ends when it has noticed; the programs at once
    later = laboratory("client-write-death")
    assert later.finish() == 0, later.text
    lab.check_nothing_is_left()
    for folder in left:
        run("rm", "-r", folder)


def arguments(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    except OSError:
        return ""


def test_a_story_that_is_not_told_right_is_not_passed(laboratory, tmp_path):
    """The same story, with an expectation of another line: exit code 1, and it says what."""
    (tmp_path / "wrong.py").write_text(
        "from dataclasses import replace\n"
        "from tcptrace.cli.main import main\n"
        "from tcptrace.lab.scenarios import SCENARIOS\n"
        "one = SCENARIOS['freeze-fin-wait2']\n"
        "verdict = replace(one.verdicts[0], frame='main busy_server.c:1')\n"
        "SCENARIOS[one.name] = replace(one, verdicts=(verdict,))\n"
        "main()\n"
    )
    command = [TCPTRACE[0], tmp_path / "wrong.py", "lab", "run", "freeze-fin-wait2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=STORY_S)
    assert done.returncode == 1, done.stderr
    assert "expected main busy_server.c:1" in done.stdout
    assert "did NOT come out" in done.stdout


def test_all_is_a_table(tmp_path):
    (tmp_path / "few.py").write_text(
        "from tcptrace.cli.main import main\n"
        "from tcptrace.lab.scenarios import SCENARIOS\n"
        "for name in set(SCENARIOS) - {'client-write-death', 'real-server'}:\n"
        "    del SCENARIOS[name]\n"
        "main()\n"
    )
    command = [TCPTRACE[0], tmp_path / "few.py", "lab", "run", "--all"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=STORY_S)
    assert done.returncode == 0, done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[:3] for row in rows] == [
        ["client-write-death", "C1", "ok"],
        ["real-server", "H", "ok"],
    ]


def test_two_at_the_same_time(laboratory):
    """Each has namespaces of its own, with the same addresses."""
    both = [laboratory("client-write-death"), laboratory("freeze-fin-wait2")]
    assert [lab.finish() for lab in both] == [0, 0], [lab.text for lab in both]
