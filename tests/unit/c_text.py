"""Just enough C to look at our own headers."""

from __future__ import annotations

import ctypes as ct
import re
from pathlib import Path

BPF = Path(__file__).parents[2] / "bpf"

_TYPES: dict[str, type] = {
    "u8": ct.c_ubyte,
    "u16": ct.c_ushort,
    "u32": ct.c_uint,
    "u64": ct.c_ulonglong,
    "s16": ct.c_short,
    "s32": ct.c_int,
    "char": ct.c_char,
}


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)


def sources() -> dict[str, str]:
    """File name -> text without comments, of the kernel half (without its header tree)."""
    paths = [*BPF.glob("*.c"), *BPF.glob("*.h")]
    return {path.name: without_comments(path.read_text()) for path in paths}


def with_numbers(text: str) -> str:
    """Each ``#define NAME 64`` of the text put in place of its name."""
    for name, value in re.findall(r"#define (\w+) (\d+)\s", text):
        text = re.sub(rf"\b{name}\b", value, text)
    return text


def c_struct(text: str, name: str) -> type[ct.Structure]:
    """A C struct as a ctypes structure."""
    body = re.search(rf"struct {name} \{{(.*?)\n\}};", text, re.DOTALL)
    assert body, f"no struct {name}"
    found = re.findall(r"(\w+)\s+(\w+)(?:\[(\d+)\])?;", without_comments(body[1]))
    fields = [
        (field, _TYPES[kind] * int(count) if count else _TYPES[kind])
        for kind, field, count in found
    ]
    return type(name, (ct.Structure,), {"_fields_": fields})
