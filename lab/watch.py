"""tcptrace itself, beside a story: it watches the two namespaces from before the first program."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson

from tcptrace.lab import processes
from tcptrace.lab.actors import PATIENCE_S
from tcptrace.lab.interrupts import Interrupts
from tcptrace.lab.namespaces import Host
from tcptrace.probes.engine.errors import TcptraceError

Event = dict[str, Any]

OLDER_THAN_S = 0.5
"""So long a socket has to be in CLOSE_WAIT: a story has no time for the usual 5 s."""
COMMAND = ("diagnose", "--format", "ndjson", "--older-than", str(OLDER_THAN_S))
"""As ndjson it gives all events, not the findings alone."""


class Watch:
    """The tracer, ready. ``stop`` ends it and gives all its events."""

    def __init__(self, hosts: Iterable[Host]) -> None:
        words = [sys.executable, "-m", "tcptrace", *COMMAND]
        for host in hosts:
            words += ["--netns", host.name]
        ready, ready_end = os.pipe()
        self.command = " ".join(["tcptrace", *words[3:]])
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (they are closed by close())
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = processes.start(
                [*words, "--ready-fd", str(ready_end)],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._errors,
                pass_fds=[ready_end],
            )
        finally:
            os.close(ready_end)
        self._ready = ready

    def wait_ready(self) -> None:
        """Raises TcptraceError with what it said."""
        came = select.select([self._ready], [], [], PATIENCE_S)[0] and os.read(self._ready, 16)
        if not came:
            raise TcptraceError(f"the tracer did not start: {self._said()}")

    def stop(self) -> list[Event]:
        """Raises TcptraceError: it failed, or its stream has no end."""
        self._process.send_signal(signal.SIGINT)
        code = self._process.wait(PATIENCE_S)
        self._output.seek(0)
        events = [orjson.loads(line) for line in self._output]
        if code or not events or events[-1]["event"] != "end":
            raise TcptraceError(f"the tracer failed (exit code {code}): {self._said()}")
        return events

    def close(self) -> None:
        processes.end(self._process, PATIENCE_S)
        os.close(self._ready)
        self._output.close()
        self._errors.close()

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()


@contextmanager
def watching(hosts: Iterable[Host], interrupts: Interrupts) -> Iterator[Watch]:
    """Everything that happens in here is seen."""
    with interrupts.held():
        watch = Watch(hosts)
    try:
        watch.wait_ready()
        yield watch
    finally:
        with interrupts.held():
            watch.close()
