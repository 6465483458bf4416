"""The programs of a story: started on their host, told what to do, listened to."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time

from tcptrace.lab import processes
from tcptrace.lab.namespaces import Host

PATIENCE_S = 30.0
"""How long anything may take before the laboratory says that it did not come."""


class StoryError(Exception):
    """The story did not come out: no error of tcptrace's. The exit code is 1."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Actor:
    """One program. ``role`` is its name in the story, ``pid`` its real one (``ip`` execs)."""

    def __init__(self, role: str, host: Host, *command: str) -> None:
        self.role, self.host, self._buffer = role, host, b""
        pipe = subprocess.PIPE
        self._process = processes.start(host.command(*command), stdin=pipe, stdout=pipe)
        self.pid = self._process.pid

    def say(self, line: str) -> None:
        """What it is to do next."""
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n".encode())

    def hear(self, word: str) -> list[str]:
        """The rest of its next line, which must begin with this word.

        Raises:
            StoryError: it said something else, or nothing, or has ended.
        """
        first, *rest = self._line(time.monotonic() + PATIENCE_S).split()
        if first != word:
            raise StoryError(f"{self.role} was to say {word!r}, said: {first} {' '.join(rest)}")
        return rest

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def ended(self) -> str | None:
        """``SIGPIPE``, ``exit 0``; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        return f"exit {code}" if code >= 0 else signal.Signals(-code).name

    def leave(self) -> None:
        """There is nothing more to do: it exits by itself."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)

    def end(self) -> None:
        """Whatever it is doing."""
        processes.end(self._process, PATIENCE_S)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            pipe.close()

    def _line(self, deadline: float) -> str:
        assert self._process.stdout
        while b"\n" not in self._buffer:
            left = max(deadline - time.monotonic(), 0.0)
            if not select.select([self._process.stdout], [], [], left)[0]:
                raise StoryError(f"{self.role} (pid {self.pid}) says nothing")
            more = os.read(self._process.stdout.fileno(), 65536)
            if not more:
                raise StoryError(f"{self.role} (pid {self.pid}) ended: {self._end_in_words()}")
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode() or " "

    def _end_in_words(self) -> str:
        self._process.wait(PATIENCE_S)
        return self.ended() or ""
