"""What cannot work is said in one clear line, with the documented exit code."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest
from harness import TCPTRACE, Namespace

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


def states_with(*options, before=(), **more):
    command = [*before, *TCPTRACE, "states", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=15, check=False, **more)


def check_refusal(done, code, *words, lines=1):
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == lines, done.stderr
    assert done.stderr.startswith("tcptrace: ")
    for word in words:
        assert word in done.stderr


def unused_pid():
    last = int(Path("/proc/sys/kernel/pid_max").read_text())
    return next(pid for pid in range(last - 1, 1, -1) if not Path(f"/proc/{pid}").exists())


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["-p", "abc"], "abc"),
        (["-p", "-1"], "-1"),
        (["-p", "0"], "0"),
        (["-p", ""], "nothing"),
        (["--addr", "10.0.0.0/33"], "10.0.0.0/33"),
        (["--addr", "10.0.0.1/8"], "10.0.0.1/8"),
        (["--addr", "::/129"], "::/129"),
        (["--addr", "localhost"], "localhost"),
        (["--port", "70000"], "70000"),
        (["--lport", "0"], "0"),
        (["--rport", "9-3"], "9-3"),
        (["--port", "http"], "http"),
        (["--state", "CLOSED_WAIT"], "CLOSED_WAIT"),
        (["--netns", "no-such-namespace"], "no-such-namespace"),
        (["--netns", "/etc/passwd"], "/etc/passwd"),
        (["--cgroup", "no/such/group"], "no/such/group"),
        (["-o", "/no/such/folder/file"], "/no/such/folder"),
        (["-o", "/proc/1/mem/x"], "/proc/1/mem"),
        (["-o", "/"], "/"),
        (["--ready-fd", "99"], "99"),
        (["--ready-file", "/no/such/folder/file"], "/no/such/folder"),
        (["--duration", "0"], "duration"),
        (["--duration", "nan"], "duration"),
        (["--count", "0"], "count"),
        (["--ring-mib", "0"], "ring"),
        (["--format", "xml"], "xml"),
        (["--no-such-option"], "no-such-option"),
        (["--", "no-such-command-here"], "no-such-command-here"),
        (["--", "/etc/passwd"], "/etc/passwd"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(options, word):
    check_refusal(states_with(*options), 2, word)


def test_pid_that_does_not_exist():
    pid = unused_pid()
    check_refusal(states_with("-p", pid), 2, f"{pid}")


def test_one_of_several_pids_does_not_exist():
    pid = unused_pid()
    check_refusal(states_with("-p", f"{os.getpid()},{pid}"), 2, f"{pid}")


def test_thread_id():
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        done = states_with("-p", thread.native_id)
    finally:
        over.set()
        thread.join()
    check_refusal(done, 2, f"{thread.native_id}", f"{os.getpid()}", "thread")


def test_unwritable_output(tmp_path):
    """root may write anywhere, but not into a file that is immutable by its nature."""
    check_refusal(states_with("-o", "/sys/kernel/btf/vmlinux"), 2, "/sys/kernel/btf/vmlinux")


def test_output_is_not_emptied_by_a_mistake(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("precious\n")
    check_refusal(states_with("-o", kept, "--port", "70000"), 2)
    assert kept.read_text() == "precious\n"


def test_unprivileged():
    done = states_with(before=NOBODY, cwd="/")
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("tcptrace: tracing needs root")
    assert "sudo" in done.stderr.splitlines()[-1]


def test_unprivileged_help_works():
    for words in (["--help"], ["states", "--help"], ["--version"]):
        done = subprocess.run(
            [*NOBODY, *TCPTRACE, *words], capture_output=True, text=True, cwd="/", check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_without_ptrace_capability():
    """Root in name only: /proc/PID/fd would stay closed, and owners unknown without a word."""
    drop = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
    done = states_with(before=drop)
    assert done.returncode == 3, done.stderr
    assert "CAP_SYS_PTRACE" in done.stderr


def test_stdout_is_full():
    """A full disk is an error with a message, not a traceback."""
    with Path("/dev/full").open("wb") as full:
        command = [*TCPTRACE, "states", "--format", "ndjson", "--duration", "0.1"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode not in (0, -13)
    assert "Traceback" not in done.stderr
    assert "No space left" in done.stderr


def test_netns_of_a_removed_name():
    namespace = Namespace()
    namespace.remove()
    check_refusal(states_with("--netns", namespace.name), 2, namespace.name)
