"""What a stack is made of: frames, the innermost first."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Frame:
    """One function that was being executed.

    ``offset`` is the address within the module's file as it was linked (what ``nm``
    and ``addr2line`` use). ``line`` counts from 1. ``guessed`` says why the frame is
    not certain; empty: it is.
    """

    function: str | None
    module: str
    offset: int = 0
    file: str | None = None
    line: int | None = None
    inlined: bool = False
    guessed: str = ""

    def __str__(self) -> str:
        """``function (module) file:line``, as the stream has it."""
        parts = [self.function or f"{self.offset:#x}", f"({self.module})"]
        if self.file:
            parts.append(f"{self.file}:{self.line}" if self.line else self.file)
        if self.inlined:
            parts.append("[inlined]")
        if self.guessed:
            parts.append(f"[guessed: {self.guessed}]")
        return " ".join(parts)
