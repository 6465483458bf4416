"""A part of the start that runs in a forked child: in parallel, and its memory goes with it.

The compiler (clang, LLVM: 120 MB) and pyroute2 (20 MB) are needed once, at the
start. What the child hands over is plain data.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import socket
import struct
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from tcptrace.probes.engine import errors
from tcptrace.probes.engine.errors import TcptraceError

_LENGTH = struct.Struct("=Q")


class Channel:
    """One end of the talk between parent and child."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    @property
    def fd(self) -> int:
        return self._end.fileno()

    def has_news(self) -> bool:
        """Whether ``receive`` has something (perhaps the end of the other side)."""
        poll = select.poll()  # unlike select(), it takes descriptors above 1023
        poll.register(self._end, select.POLLIN)
        return bool(poll.poll(0))

    def send(self, item: Any) -> None:
        """Plain data."""
        raw = pickle.dumps(item)
        self._end.sendall(_LENGTH.pack(len(raw)) + raw)

    def receive(self) -> Any:
        """Raises EOFError when the other side ended without a word."""
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        return pickle.loads(self._exactly(length))  # noqa: S301 (from our own child)

    def _exactly(self, size: int) -> bytes:
        raw = bytearray()
        while len(raw) < size:
            piece = self._end.recv(size - len(raw))
            if not piece:
                raise EOFError
            raw += piece
        return bytes(raw)

    def close(self) -> None:
        self._end.close()


class Forked:
    """Runs ``body(channel)`` in a child. The child's TcptraceError is raised in the parent."""

    def __init__(self, name: str, body: Callable[[Channel], None]) -> None:
        self._name = name
        here, there = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            here.close()
            _run(body, Channel(there))
        there.close()
        self._channel = Channel(here)

    def send(self, item: Any) -> None:
        self._channel.send(item)

    def has_news(self) -> bool:
        """Whether ``receive`` returns, or raises, at once."""
        return self._channel.has_news()

    def receive(self) -> Any:
        """The child's next message.

        Raises:
            TcptraceError: what the child met, or that it died.
        """
        try:
            item = self._channel.receive()
        except (EOFError, OSError) as error:
            raise TcptraceError(f"{self._name}: the helper process died") from error
        if isinstance(item, _Failure):
            raise item.error()
        return item

    def close(self) -> None:
        """End the child if it is still there, and reap it; safe to call twice."""
        self._channel.close()
        if not self._pid:
            return
        pid, self._pid = self._pid, 0  # once reaped, the number may be anybody's
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


class _Failure:
    """An exception on its way from child to parent."""

    def __init__(self, error: BaseException) -> None:
        known = isinstance(error, TcptraceError)
        self._kind = type(error).__name__ if known else "TcptraceError"
        self._message = str(error) if known else f"unexpected: {error!r}"
        self._help = error.help if isinstance(error, TcptraceError) else traceback.format_exc()

    def error(self) -> TcptraceError:
        kind: type[TcptraceError] = getattr(errors, self._kind)
        return kind(self._message, help=self._help)


def _run(body: Callable[[Channel], None], channel: Channel) -> NoReturn:
    """In the child, which must never get back into the parent's code. Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        body(channel)
    except BaseException as error:
        with contextlib.suppress(BaseException):  # the parent has gone
            channel.send(_Failure(error))
    finally:
        os._exit(0)
