"""A user without privileges is told which are missing, and what to paste."""

import os
import sys

import pytest

from tcptrace.cli import privileges
from tcptrace.probes.engine.errors import MissingPieceError, PrivilegeError
from tcptrace.probes.engine.forked import Forked
from tests.unit.unprivileged import become_nobody


def told_to_nobody(*arguments):
    def body(_channel):
        become_nobody()
        sys.argv = ["tcptrace", *arguments]
        privileges.require_privileges()

    child = Forked("nobody", body)
    try:
        with pytest.raises(PrivilegeError) as caught:
            child.receive()
        return caught.value
    finally:
        child.close()


def test_every_missing_capability_is_named():
    message = told_to_nobody().message
    for name in ("CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"):
        assert name in message


def test_the_line_to_paste_repeats_the_command_quoted():
    helped = told_to_nobody("states", "--comm", "two words; rm -rf /").help
    assert f"sudo {sys.executable} -m tcptrace states" in helped
    assert "'two words; rm -rf /'" in helped


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root's capabilities")
def test_root_lacks_nothing():
    assert set(privileges.missing_capabilities()) <= {"CAP_SYS_PTRACE"}  # in a bare container


def test_a_pid_namespace_of_its_own_is_refused(monkeypatch):
    monkeypatch.setattr(privileges, "missing_capabilities", list)
    monkeypatch.setattr(privileges.procfs, "sees_host_pids", lambda: False)
    with pytest.raises(MissingPieceError, match="pid namespace") as caught:
        privileges.require_privileges()
    assert "--pid=host" in caught.value.help
