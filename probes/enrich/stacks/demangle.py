"""Names of functions as their programmers wrote them.

C++ by the C++ runtime library of this machine; without it its names stay mangled.
Rust's older scheme, ``_ZN4core3fmt17h<hash>E``, here, without the hash; its newer one in
rustnames.py.
"""

from __future__ import annotations

import ctypes as ct
import functools
import re
from collections.abc import Iterator

from tcptrace.probes.enrich.stacks import rustnames

MANGLED = ("_Z", "_R")
"""How the names of C++ and Rust begin that say more than the plain name."""

_RUST = re.compile(r"_ZN(?P<path>.+)17h[0-9a-f]{16}E(?:\.llvm\.[0-9A-F]+)?")
_LENGTH = re.compile(r"[1-9][0-9]{0,5}")
_MARKS = {
    "C": ",", "SP": "@", "BP": "*", "RF": "&", "LT": "<", "GT": ">", "LP": "(", "RP": ")",
}  # fmt: skip
_SPECIAL = re.compile(r"\$(C|SP|BP|RF|LT|GT|LP|RP|u[0-9a-f]{1,6})\$|\.\.")

_free = ct.CDLL(None).free
_free.argtypes, _free.restype = [ct.c_void_p], None


@functools.lru_cache(maxsize=4096)
def demangled(name: str) -> str:
    """Unchanged if it is not mangled, or not in a way that is known."""
    if name.startswith("_R"):
        return rustnames.v0(name) or name
    return (_rust_legacy(name) or _cpp(name) or name) if name.startswith("_Z") else name


def _rust_legacy(name: str) -> str | None:
    """A path without its hash; None: the name is not of this scheme."""
    match = _RUST.fullmatch(name)
    parts = list(_identifiers(match["path"])) if match else []
    return "::".join(map(_rust_part, parts)) if parts and all(parts) else None


def _identifiers(path: str) -> Iterator[str]:
    """Of ``4core3fmt``: core, fmt. The last one is empty if the path is none."""
    while path:
        length = _LENGTH.match(path)
        if not length:
            yield ""
            return
        end = length.end() + int(length[0])
        yield path[length.end() : end] if end <= len(path) else ""
        path = path[end:]


def _rust_part(identifier: str) -> str:
    return _SPECIAL.sub(
        _rust_mark, identifier.removeprefix("_") if identifier[:2] == "_$" else identifier
    )


def _rust_mark(match: re.Match[str]) -> str:
    mark = match[1]
    if mark is None:
        return "::"
    if mark in _MARKS:
        return _MARKS[mark]
    code = int(mark[1:], 16)
    return chr(code) if code <= 0x10FFFF and chr(code).isprintable() else match[0]


def _cpp(name: str) -> str | None:
    demangle = _runtime()
    if demangle is None:
        return None
    status = ct.c_int()
    text = ct.c_void_p(demangle(name.encode(errors="replace"), None, None, ct.byref(status)))
    try:
        return ct.string_at(text).decode(errors="backslashreplace") if text else None
    finally:
        _free(text)


@functools.cache
def _runtime() -> ct._NamedFuncPointer | None:
    try:
        function = ct.CDLL("libstdc++.so.6")["__cxa_demangle"]
    except (OSError, AttributeError):
        return None
    function.restype = ct.c_void_p
    return function
