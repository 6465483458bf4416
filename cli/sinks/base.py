"""What a sink is: it takes finished events and looks nothing up."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from typing import Any, Protocol

from tcptrace.probes.engine.errors import TcptraceError

ATOMIC_BYTES = 4096
"""PIPE_BUF: a write of up to so many bytes to a pipe is never torn."""


class Sink(Protocol):
    """Takes events in batches; ``write`` may raise BrokenPipeError, which ends the run quietly."""

    def write(self, events: Sequence[dict[str, Any]]) -> None: ...

    def close(self) -> None: ...


class LineWriter:
    """Writes whole lines to a descriptor, in pieces that a pipe takes at once."""

    def __init__(self, fd: int, *, owned: bool) -> None:
        self._fd = fd
        self._owned = owned

    def write(self, lines: Sequence[bytes]) -> None:
        """Each line must end with a newline."""
        piece = bytearray()
        for line in lines:
            if piece and len(piece) + len(line) > ATOMIC_BYTES:
                self._flush(piece)
                piece = bytearray()
            piece += line
        if piece:
            self._flush(piece)

    def close(self) -> None:
        if self._owned:
            os.close(self._fd)

    def _flush(self, piece: bytearray) -> None:
        view = memoryview(piece)
        try:
            while view:
                view = view[self._taken(view) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise TcptraceError(f"cannot write the events: {error.strerror}") from error

    def _taken(self, view: memoryview) -> int:
        try:
            return os.write(self._fd, view)
        except BlockingIOError:  # somebody who shares the descriptor made it so
            select.select([], [self._fd], [])
            return 0
