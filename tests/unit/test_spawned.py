"""``-- CMD``: it starts only when told, its end is told in words, and it never outlives us."""

import os
import select

import pytest

from tcptrace.cli.spawned import Spawned
from tcptrace.probes.engine.errors import UsageError


@pytest.fixture
def spawn():
    made = []

    def start(*command):
        made.append(Spawned(command, to_stderr=False))
        return made[-1]

    yield start
    for one in made:
        one.stop()


def wait_for(one):
    assert select.select([one.pidfd], [], [], 10)[0]
    return one.ended()


def test_nothing_runs_before_go(spawn, tmp_path):
    one = spawn("touch", str(tmp_path / "ran"))
    assert one.ended() is None
    assert not (tmp_path / "ran").exists()
    one.go()
    assert wait_for(one) == "the command exited with 0"
    assert (tmp_path / "ran").exists()


def test_the_pid_is_the_commands_own(spawn, tmp_path):
    one = spawn("sh", "-c", f"echo $$ > {tmp_path}/pid")
    one.go()
    wait_for(one)
    assert int((tmp_path / "pid").read_text()) == one.pid


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("exit 3", "the command exited with 3"),
        ("kill -TERM $$", "the command was killed by SIGTERM"),
    ],
)
def test_its_end_is_told_in_words(spawn, script, told):
    one = spawn("sh", "-c", script)
    one.go()
    assert wait_for(one) == told


@pytest.mark.parametrize("name", ["no-such-command-at-all", "/etc/passwd", "/"])
def test_a_command_that_cannot_run_is_wrong_usage(name):
    with pytest.raises(UsageError, match="no command"):
        Spawned([name], to_stderr=False)


def test_a_command_that_never_got_its_go_does_not_run(tmp_path):
    one = Spawned(["touch", str(tmp_path / "ran")], to_stderr=False)
    one.stop()
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(one.pid, 0)


def test_a_command_that_still_runs_is_ended():
    one = Spawned(["sleep", "100"], to_stderr=False)
    one.go()
    one.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(one.pid, 0)


def test_a_broken_pipe_ends_the_command_as_it_would_without_us(spawn):
    """Python ignores SIGPIPE and exec() inherits that: it must be put back."""
    one = spawn("sh", "-c", "kill -PIPE $$; exit 7")
    one.go()
    assert wait_for(one) == "the command was killed by SIGPIPE"


def test_no_descriptor_of_ours_is_handed_down(spawn, tmp_path):
    with open(tmp_path / "ours", "w"):
        one = spawn("sh", "-c", f"ls -l /proc/self/fd > {tmp_path}/listed")
        one.go()
        wait_for(one)
    assert "/ours" not in (tmp_path / "listed").read_text()


def test_its_output_can_be_kept_out_of_the_stream(capfd):
    one = Spawned(["echo", "mixed in"], to_stderr=True)
    one.go()
    wait_for(one)
    one.stop()
    assert capfd.readouterr() == ("", "mixed in\n")
