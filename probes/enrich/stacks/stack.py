"""A stack as the stream shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from tcptrace.probes.engine.constants import Stack as StackId
from tcptrace.probes.engine.constants import Walk

_ENDS = {
    Walk.DEEP: "[truncated: more than 64 frames]",
    Walk.UNREADABLE: "[truncated: the stack beyond could not be read]",
    Walk.NOT_COPIED: "[truncated: the stack beyond was not copied]",
    Walk.LOST: "[truncated: no way on from the frame above]",
}


@dataclass(frozen=True, slots=True)
class Stack:
    """``frames``: strings, the innermost first. Equal stacks have the same ``id``."""

    id: str
    frames: tuple[str, ...]


def stack_of(frames: Sequence[str], end: Walk = Walk.COMPLETE) -> Stack:
    """The id is made from the text, so that it is the same in every run of a program."""
    lines = (*frames, *([_ENDS[end]] if end in _ENDS else []))
    digest = blake2b("\n".join(lines).encode(errors="replace"), digest_size=8)
    return Stack(digest.hexdigest(), lines)


def unknown(because: str) -> Stack:
    """A stack of which nothing can be said."""
    return stack_of([f"[unknown: {because}]"])


GONE = unknown("the process had ended before its mappings were read")
REPLACED = unknown("another program or library was loaded before the mappings were read")
CHANGED = unknown("what the process had mapped changed before it was read")
EVICTED = unknown("too many other stacks came in between")
LATE = unknown("its functions could not be looked up in time")
BROKEN = unknown("the helper process that looks up functions died")

SPECIAL: dict[int, Stack | None] = {
    StackId.NONE: None,
    StackId.SUPPRESSED: unknown("too many new stacks came in that second"),
    StackId.USER32: unknown("a 32-bit program"),
    StackId.COLLISION: unknown("another stack has its place in the kernel's table"),
}
"""Ids that have no frames."""
