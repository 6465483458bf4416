"""Stacks, places and spans as they stand in a finding's sentence."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

_LIBRARIES = re.compile(
    r"\((?:libc|libpthread|libstdc\+\+|libgcc_s|ld|ld-linux[\w-]*|(?:ld-|libc\.)musl[\w-]*)"
    r"(?:-[\d.]+)?\.so[\d.]*\)"
)
_LANGUAGES = re.compile(r" \((?:python|node|java|dotnet|ruby|php|mono|erlang|jit)\)(?: |$)")
"""The modules of frames that a language runtime told of (enrich/stacks/runtime.py)."""
_PARTS = re.compile(
    r"(?P<function>.+?) \((?P<module>[^()]*)\)(?: (?P<place>[^\[]*\S))?(?P<mark> ?\[.*)?$"
)


def own_frames(frames: list[str]) -> list[str]:
    """From the first frame of the program itself: libc's wrapper of the call says nothing.

    Of a program in Python, JavaScript or Java: its own functions, without the interpreter's.
    """
    if written := [frame for frame in frames if _LANGUAGES.search(frame)]:
        return written
    for index, frame in enumerate(frames):
        if not _LIBRARIES.search(frame):
            return frames[index:] if not frame.startswith("[") else frames
    return frames


def brief(frame: str) -> str:
    """``function file:line``, without folders; the module where no file is known."""
    parts = _PARTS.match(frame)
    if not parts:
        return frame
    where = PurePosixPath(parts["place"]).name if parts["place"] else f"({parts['module']})"
    return f"{parts['function']} {where}{parts['mark'] or ''}"


def place(frames: list[str]) -> str | None:
    """The line that is to blame, in quotes; None if nothing is known."""
    own = own_frames(frames)
    if not own or own[0].startswith("["):
        return None
    return f"`{brief(own[0])}`"


def local(event: dict[str, Any]) -> str:
    """``192.0.2.1:80``, ``[::1]:*``."""
    return _end(event["saddr"], event["sport"])


def peer(event: dict[str, Any]) -> str:
    """The same of the other side."""
    return _end(event["daddr"], event["dport"])


def _end(address: str, port: int | None) -> str:
    host = f"[{address}]" if ":" in address else address
    return f"{host}:{port or '*'}"


def clock(event: dict[str, Any]) -> str:
    """The time of day of an event, UTC, to the millisecond."""
    return str(event["ts"])[11:23]


def span(seconds: float) -> str:
    """``3.2 s``, ``5 min``, ``2.1 h``."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def many(count: int, word: str) -> str:
    """``1 socket``, ``4 sockets``."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
