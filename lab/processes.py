"""How the laboratory starts programs and tcptrace, so that it can end them whatever happens."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import IO, Any

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)

Output = int | IO[bytes] | None


def start(
    command: Sequence[str],
    *,
    stdin: int,
    stdout: Output = None,
    stderr: Output = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """In a session of its own (Ctrl-C is for the laboratory alone, which then ends it).

    If the laboratory is killed, the kernel kills it too.
    """
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        bufsize=0,
        start_new_session=True,
        pass_fds=pass_fds,
        preexec_fn=_die_with_the_laboratory,  # noqa: PLW1509 (there are no threads)
    )


def end(process: subprocess.Popen[Any], patience_s: float) -> None:
    """At once, with its children, also when it is stopped; until nothing of it is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + patience_s
    while _any_left(process.pid) and time.monotonic() < deadline:
        time.sleep(0.001)  # they are init's children now, which tells nobody


def _any_left(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _die_with_the_laboratory() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
