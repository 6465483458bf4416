"""Stacks for a person: the frames that matter, folded to one line each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tcptrace.probes.diagnose.words import brief, own_frames

_INDENT = " " * 16
_OWN_DOING = {
    "connect",
    "listen",
    "local_close",
    "shutdown",
    "disconnect",
    "rst_sent_unread",
    "rst_sent_linger",
}
"""Reasons that are a call of the owner's: where it was then is the answer."""
_HISTORY = {
    "fin_received": ("birth", "last_read", "last_write", "eof"),
    "process_exit": ("birth", "last_read", "last_write", "eof"),
    "rst_received": ("birth", "last_read", "last_write", "close"),
    "reset": ("birth", "last_read", "last_write", "close"),
    "timeout": ("birth", "last_read", "last_write", "close"),
    "rst_sent_unread": ("last_read",),
    "refused": ("birth",),
    "unreachable": ("birth",),
}
"""Reasons that come from elsewhere: how the owner got there."""
_WORDS = {
    "user": "in",
    "birth": "made in",
    "last_read": "last read in",
    "last_write": "last write in",
    "eof": "end of file read in",
    "close": "closed in",
    "kernel": "kernel",
}


@dataclass(frozen=True, slots=True)
class Depth:
    """How much of a stack is shown. ``frames`` None: all of it, libraries too."""

    frames: int | None = 3


def stack_lines(event: dict[str, Any], depth: Depth) -> Iterator[str]:
    """The lines that follow a transition's own line."""
    for name in _interesting(event):
        frames = event.get(f"{name}_stack")
        if frames:
            yield from _shown(_WORDS[name], frames, depth)


def _interesting(event: dict[str, Any]) -> list[str]:
    """What explains this transition; the read of end of file is not shown twice."""
    names = ["user"] if event["reason"] in _OWN_DOING else []
    if event.get("became") != "time_wait":
        names += _HISTORY.get(event["reason"], ())
    if event.get("eof_stack") == event.get("last_read_stack"):
        names = [name for name in names if name != "last_read" or "eof" not in names]
    return [*names, "kernel"]


def _shown(word: str, frames: list[str], depth: Depth) -> Iterator[str]:
    if depth.frames is None:
        yield f"{_INDENT}{word}:"
        yield from (f"{_INDENT}    {frame}" for frame in frames)
        return
    own = own_frames(frames)
    shown, rest = own[: depth.frames], len(own) - depth.frames
    more = f" < ... {rest} more" if rest > 0 else ""
    yield f"{_INDENT}{word} {' < '.join(map(brief, shown))}{more}"
