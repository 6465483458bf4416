"""The filter options: what they mean, and every wrong word as one line with exit code 2."""

import ipaddress
import os
import subprocess
import threading
from pathlib import Path

import click
import pytest

from tcptrace.cli import options
from tcptrace.cli.main import cli, exit_code
from tcptrace.probes.engine.constants import TcpState
from tcptrace.probes.engine.forked import Forked
from tcptrace.probes.filters import PORT_LOCAL, PORT_REMOTE
from tcptrace.probes.rungs import cgroup2_root
from tests.unit.unprivileged import become_nobody

CGROUP1 = Path("/sys/fs/cgroup/cpu/cgroup.procs")
BOTH = PORT_LOCAL | PORT_REMOTE


@click.command()
@options.filters
def choose(**values):
    """Stands for every tracing command; nothing is traced."""
    return options.chosen(values, command=False)


def chosen(*arguments):
    return choose.main(list(arguments), standalone_mode=False)


def gone():
    """A pid that nobody has."""
    process = subprocess.Popen(["true"])
    process.wait()
    return str(process.pid)


BAD = [
    ["-p", "abc"],
    ["-p", "-1"],
    ["-p", "1.5"],
    ["-p", "0"],
    ["-p", "99999999999999999999"],
    ["-p", "9" * 5000],
    ["-p", "²"],  # a digit, but not a number
    ["-p", ","],
    ["-p", ""],
    ["-p", f"{os.getpid()},abc"],
    ["--port", "0"],
    ["--port", "70000"],
    ["--port", "65536"],
    ["--port", "-80"],
    ["--port", "http"],
    ["--port", "²"],
    ["--port", "80-"],
    ["--port", "90-80"],
    ["--port", "1-2-3"],
    ["--port", "1-65535"],
    ["--lport", "1-1000", "--lport", "2001-2100"],
    ["--rport", "0x50"],
    ["--addr", "10.0.0.0/33"],
    ["--addr", "10.0.0.1/8"],
    ["--addr", "300.0.0.1"],
    ["--addr", "example.org"],
    ["--addr", "10.0.0"],
    ["--addr", "::1/129"],
    ["--state", "WAITING"],
    ["--state", "NEW_SYN_RECV"],
    ["--state", "7"],
    ["--netns", "no-such-namespace"],
    ["--netns", "/no/such/file"],
    ["--netns", "/etc/passwd"],  # a file, but no namespace
    ["--netns", "../../etc/passwd"],
    ["--netns", "4294967296"],  # inode numbers of namespaces have 32 bits
    ["--netns", "²"],
    ["--cgroup", "/no/such/cgroup"],
    ["--cgroup", "/etc"],
    ["--cgroup", "/etc/passwd"],
    ["--cgroup", ""],
    ["-4", "-6x"],
]


@pytest.mark.parametrize("arguments", BAD, ids=lambda words: " ".join(words)[:30])
def test_a_wrong_word_is_one_line_and_code_2(arguments, capsys):
    assert exit_code(lambda: chosen(*arguments) and 0) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tcptrace: ")
    assert err.count("\n") == 1


def test_a_pid_that_is_gone_is_named(capsys):
    pid = gone()
    assert exit_code(lambda: chosen("-p", pid)) == 2
    assert f"there is no process {pid}" in capsys.readouterr().err


def test_a_thread_is_told_from_a_process_and_the_process_is_named(capsys):
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert exit_code(lambda: chosen("-p", str(thread.native_id))) == 2
    finally:
        done.set()
        thread.join()
    assert f"a thread of process {os.getpid()}: use -p {os.getpid()}" in capsys.readouterr().err


def test_the_real_command_says_it_too(capsys):
    bad = ["states", "--duration", "0.01", "--port", "70000"]
    assert exit_code(lambda: cli.main(bad, standalone_mode=False)) == 2
    assert "70000 is not within 1 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--netns", "/proc/1/ns/net"], ["--cgroup", "{closed}/x"]], ids=" ".join
)
def test_what_one_may_not_look_at_is_no_traceback(arguments, tmp_path):
    tmp_path.chmod(0)

    def body(channel):
        become_nobody()
        words = [word.format(closed=tmp_path) for word in arguments]
        channel.send(exit_code(lambda: chosen(*words) and 0))

    child = Forked("nobody's options", body)
    try:
        assert child.receive() in (2, 3)
    finally:
        child.close()
        tmp_path.chmod(0o700)


@pytest.mark.skipif(not CGROUP1.exists(), reason="no cgroup v1")
def test_a_cgroup_of_version_1_is_refused(capsys):
    assert exit_code(lambda: chosen("--cgroup", str(CGROUP1.parent)) and 0) == 2


def test_a_name_that_is_no_utf8_is_no_traceback(capsys):
    assert exit_code(lambda: chosen("--comm", "caf\udce9") and 0) in (0, 2)


def test_without_options_everything_is_wanted():
    found = chosen()
    assert found == type(found)()


def test_lists_by_comma_and_by_repetition_add_up():
    mine, parents = str(os.getpid()), str(os.getppid())
    both = frozenset({os.getpid(), os.getppid()})
    assert chosen("-p", f"{mine}, {parents}").pids == both
    assert chosen("-p", mine, "--pid", parents).pids == both
    assert chosen("-p", mine).by_pid
    assert not chosen("-p", mine).follow
    assert chosen("-p", mine, "-f").follow


def test_ports_know_their_side():
    assert chosen("--port", "80").ports == {80: BOTH}
    assert chosen("--lport", "80", "--rport", "443").ports == {80: PORT_LOCAL, 443: PORT_REMOTE}
    assert chosen("--lport", "80", "--rport", "80").ports == {80: BOTH}
    assert chosen("--port", "8000-8003").ports == dict.fromkeys(range(8000, 8004), BOTH)
    assert chosen("--port", "1,65535").ports == {1: BOTH, 65535: BOTH}


def test_networks_of_both_families():
    found = chosen("--addr", "10.0.0.0/8,::1", "--addr", "192.0.2.7").networks
    assert found == tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "::1/128", "192.0.2.7/32")))


@pytest.mark.parametrize("word", ["CLOSE_WAIT", "close_wait", "close-wait", "TCP_CLOSE_WAIT"])
def test_states_by_all_their_spellings(word):
    assert chosen("--state", word).states == {TcpState.CLOSE_WAIT}


def test_the_family_is_that_of_the_traffic():
    assert [chosen(*words).family for words in ([], ["-4"], ["-6"])] == [None, 4, 6]


def test_a_network_namespace_by_path_and_by_number():
    inum = os.stat("/proc/self/ns/net").st_ino
    assert chosen("--netns", "/proc/self/ns/net").netns == {inum}
    assert chosen("--netns", str(inum)).netns == {inum}


@pytest.mark.skipif(cgroup2_root() is None, reason="no cgroup v2 mounted")
def test_a_cgroup_by_path_and_below_the_root():
    root = cgroup2_root()
    assert chosen("--cgroup", root).cgroups == {os.stat(root).st_ino}
    assert chosen("--cgroup", "/").cgroups == {os.stat(root).st_ino}


def test_a_name_is_cut_where_the_kernel_cuts_it():
    ((_, key, _),) = chosen("--comm", "a-name-of-sixteen").map_contents()
    assert key == b"a-name-of-sixte\0"
    ((_, key, _),) = chosen("--comm", "ääääääääää").map_contents()
    assert key == "ääääääääää".encode()[:15] + b"\0"
