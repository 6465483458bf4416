"""Compiled programs kept between runs: compiling is two thirds of the start.

The key covers all that goes in: the C text, every constant (and so the running
kernel's struct offsets), and the BCC that compiles. The folder belongs to root
alone; a file that anybody else could have written is not used. Whatever goes
wrong with the cache costs time, never the run.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from pathlib import Path

from tcptrace.probes.engine.compiled import Compiled, Plan
from tcptrace.probes.engine.loader import SHARED, bcc_version, joined

_OUR_NAME = re.compile(r"[0-9a-f]{64}")
"""Nothing else in the folder is ever touched, should it not be ours alone."""
_KEPT = 16
"""Plans differ by filters; the oldest files are dropped."""


def folder() -> Path:
    """``$TCPTRACE_CACHE`` if that is an absolute path, else /var/cache/tcptrace."""
    chosen = Path(os.environ.get("TCPTRACE_CACHE", ""))
    return chosen if chosen.is_absolute() else Path("/var/cache/tcptrace")


def key(plan: Plan) -> str:
    """What the compiler's answer depends on, as one number."""
    parts = [joined(SHARED + plan.sources), bcc_version(), os.uname().machine]
    parts += [f"{name}={value}" for name, value in sorted(plan.definitions.items())]
    parts += [*plan.functions, *plan.layouts]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def load(plan: Plan) -> Compiled | None:
    """What an earlier run compiled; None if there is nothing that can be trusted."""
    path = folder() / key(plan)
    try:
        if not (_is_private(path.parent) and _is_private(path)):
            return None
        found = pickle.loads(path.read_bytes())  # noqa: S301 (only root can have written it)
        os.utime(path)
    except Exception:  # a torn or foreign file: compile
        return None
    return found if isinstance(found, Compiled) else None


def save(plan: Plan, compiled: Compiled) -> None:
    """Keep it for the next run, if that is possible."""
    try:
        folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(folder()):
            return
        path = folder() / key(plan)
        fresh = path.with_suffix(f".{os.getpid()}")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(pickle.dumps(compiled))
        fresh.replace(path)
        _drop_oldest()
    except OSError:
        return


def _is_private(path: Path) -> bool:
    """Ours, and writable by nobody else."""
    status = path.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _drop_oldest() -> None:
    ours = [path for path in folder().iterdir() if _OUR_NAME.fullmatch(path.name)]
    for path in sorted(ours, key=lambda path: path.stat().st_mtime, reverse=True)[_KEPT:]:
        path.unlink(missing_ok=True)
