"""Tracepoints of the running kernel: which exist, and how their records are laid out."""

from __future__ import annotations

import ctypes as ct
import functools
import os
import re
from pathlib import Path

from tcptrace.probes.engine.errors import MissingPieceError

TRACEFS = Path("/sys/kernel/tracing")

_FIELD = re.compile(r"field:(?P<declaration>[^;]+);\s*offset:(?P<offset>\d+);")


def ensure_mounted() -> None:
    """Mount tracefs where it is not.

    Raises:
        MissingPieceError: with the line that mounts it, when that is refused.
    """
    witness = TRACEFS / "events"
    if _is_there(witness):
        return
    libc = ct.CDLL(None, use_errno=True)
    if libc.mount(b"none", bytes(TRACEFS), b"tracefs", 0, None) == 0 and _is_there(witness):
        return
    reason = os.strerror(ct.get_errno()) if ct.get_errno() else "it has no events/ below it"
    raise MissingPieceError(
        f"tracefs is not mounted at {TRACEFS}, and mounting it failed: {reason}",
        help=f"Mount it once:  sudo mount -t tracefs none {TRACEFS}\n"
        "In a container, do that on the host and pass -v /sys/kernel:/sys/kernel.",
    )


def exists(tracepoint: str) -> bool:
    """Whether this kernel has ``category:name``."""
    category, name = tracepoint.split(":")
    return _is_there(TRACEFS / "events" / category / name / "format")


def _is_there(path: Path) -> bool:
    """False also where this user may not look."""
    try:
        return path.exists()
    except PermissionError:
        return False


def identity(tracepoint: str) -> int:
    """The number under which perf_event_open(2) knows it."""
    category, name = tracepoint.split(":")
    return int((TRACEFS / "events" / category / name / "id").read_text())


@functools.lru_cache(maxsize=64)
def fields(tracepoint: str) -> dict[str, int]:
    """Offset in bytes of each field, by name, from the format file; empty if there is none."""
    category, name = tracepoint.split(":")
    try:
        text = (TRACEFS / "events" / category / name / "format").read_text()
    except OSError:
        return {}
    return parse_format(text)


def parse_format(text: str) -> dict[str, int]:
    """The fields of a format file, array brackets dropped from the names."""
    found = {}
    for match in _FIELD.finditer(text):
        name = match["declaration"].split()[-1].split("[")[0].lstrip("*")
        found[name] = int(match["offset"])
    return found
