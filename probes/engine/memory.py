"""Giving memory back after the compiler has run.

clang and LLVM leave some 100 MB behind: freed heap that malloc keeps, and pages
of their own read-only file mappings. Both come back by themselves if touched.
"""

from __future__ import annotations

import ctypes as ct
from pathlib import Path

_DONTNEED = 4
_COMPILER = ("libLLVM", "libclang", "libbcc")


def release_compiler() -> None:
    """Return what compiling used to the kernel; does nothing where libc cannot."""
    libc = ct.CDLL(None, use_errno=True)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    libc.madvise.argtypes = [ct.c_void_p, ct.c_size_t, ct.c_int]
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, mode, *_, path = line.split(maxsplit=5) if line.count("/") else (line, "", "")
        if "w" not in mode and any(name in path for name in _COMPILER):
            start, end = (int(part, 16) for part in span.split("-"))
            libc.madvise(start, end - start, _DONTNEED)


def resident_bytes() -> int:
    """This process's resident set."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
