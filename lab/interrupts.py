"""Ctrl-C, SIGTERM and SIGHUP end a laboratory at any moment, but never its tidying up."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """While it is entered, the first of these signals raises KeyboardInterrupt, no further one."""

    def __init__(self) -> None:
        self._holding = 0
        self._came = self._told = False

    def __enter__(self) -> Interrupts:
        self._old = {number: signal.signal(number, self._on_signal) for number in _ENDING}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._holding = 0
        if error is None:
            self._tell()

    @contextmanager
    def held(self) -> Iterator[None]:
        """What is done in here is done as a whole: a signal has to wait."""
        self._holding += 1
        try:
            yield
        finally:
            self._holding -= 1
        self._tell()

    def hold(self) -> None:
        """From now on there is only tidying up."""
        self._holding += 1

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._came = True
        self._tell()

    def _tell(self) -> None:
        if self._came and not self._told and not self._holding:
            self._told = True
            raise KeyboardInterrupt
