"""``-- CMD ARGS...``: a command that starts only when everything is attached."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Sequence

from tcptrace.probes.engine.errors import UsageError


class Spawned:
    """A forked child that waits for ``go`` before it becomes the command.

    ``to_stderr``: what the command prints must not get between the events.
    """

    def __init__(self, command: Sequence[str], *, to_stderr: bool) -> None:
        if shutil.which(command[0]) is None:
            raise UsageError(f"there is no command {command[0]!r}")
        self._gate, gate = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(command, gate, self._gate, to_stderr)
        os.close(self._gate)
        self._gate = gate
        self.pidfd = os.pidfd_open(self.pid)

    def go(self) -> None:
        """Let it run."""
        os.write(self._gate, b"g")
        os.close(self._gate)
        self._gate = -1

    def ended(self) -> str | None:
        """How it ended, in words; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return None
        if os.WIFSIGNALED(status):
            return f"the command was killed by {signal.Signals(os.WTERMSIG(status)).name}"
        return f"the command exited with {os.waitstatus_to_exitcode(status)}"

    def stop(self) -> None:
        """End a command that still runs, and reap it."""
        if self._gate >= 0:
            os.close(self._gate)
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(self.pidfd)


def _become(command: Sequence[str], unused: int, gate: int, to_stderr: bool) -> None:
    """In the child: wait, then exec; never returns."""
    os.close(unused)
    if not os.read(gate, 1):  # the tracer gave up
        os._exit(1)
    os.close(gate)
    if to_stderr:
        os.dup2(2, 1)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and exec inherits that
    try:
        os.execvp(command[0], list(command))  # noqa: S606 (the user's own command)
    except OSError as error:
        os.write(2, f"tcptrace: {command[0]}: {error.strerror}\n".encode())
        os._exit(127)
