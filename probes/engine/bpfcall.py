"""The few bpf(2) calls that BCC's Python does not offer (include/uapi/linux/bpf.h)."""

from __future__ import annotations

import ctypes as ct
import os
import platform
import struct
from collections.abc import Iterator, Sequence

_SYSCALL = {"x86_64": 321, "aarch64": 280}
_MAP_LOOKUP, _MAP_UPDATE, _MAP_NEXT_KEY, _TEST_RUN, _LINK_CREATE = 1, 2, 4, 10, 28

CGROUP_INET_SOCK_CREATE = 2
CGROUP_SOCK_OPS = 3

_libc = ct.CDLL(None, use_errno=True)
_libc.syscall.restype = ct.c_long
_libc.syscall.argtypes = [ct.c_long, ct.c_int, ct.c_void_p, ct.c_uint]


def _bpf(command: int, attributes: ct.Array[ct.c_char]) -> int:
    number = _SYSCALL[platform.machine()]
    result = int(_libc.syscall(number, command, attributes, len(attributes)))
    if result < 0:
        raise OSError(ct.get_errno(), os.strerror(ct.get_errno()))
    return result


def _buffer(raw: bytes, size: int = 128) -> ct.Array[ct.c_char]:
    return ct.create_string_buffer(raw, size)


def run_program(program_fd: int, arguments: Sequence[int]) -> int:
    """BPF_PROG_TEST_RUN of a raw tracepoint program (5.10); its return value."""
    context = struct.pack(f"={len(arguments)}Q", *arguments)
    held = ct.create_string_buffer(context, len(context))
    attributes = _buffer(
        struct.pack(
            "=IIIIQQIIIIQ", program_fd, 0, 0, 0, 0, 0, 0, 0, len(context), 0, ct.addressof(held)
        )
    )
    _bpf(_TEST_RUN, attributes)
    return int(struct.unpack_from("=I", attributes, 4)[0])


def link_to_cgroup(program_fd: int, cgroup: str, attach_type: int) -> int:
    """BPF_LINK_CREATE (5.7): the attachment lives as long as the returned descriptor."""
    folder = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _bpf(_LINK_CREATE, _buffer(struct.pack("=IIII", program_fd, folder, attach_type, 0)))
    finally:
        os.close(folder)


def update(map_fd: int, key: bytes, value: bytes) -> None:
    """Set one element."""
    held = _buffer(key, len(key)), _buffer(value, len(value))
    _bpf(_MAP_UPDATE, _buffer(struct.pack("=IIQQQ", map_fd, 0, *map(ct.addressof, held), 0)))


def lookup(map_fd: int, key: bytes, value_size: int) -> bytes | None:
    """One element's value; None if it is not there."""
    held = _buffer(key, len(key)), ct.create_string_buffer(value_size)
    try:
        _bpf(_MAP_LOOKUP, _buffer(struct.pack("=IIQQQ", map_fd, 0, *map(ct.addressof, held), 0)))
    except FileNotFoundError:
        return None
    return held[1].raw


def keys(map_fd: int, key_size: int, limit: int) -> Iterator[bytes]:
    """The keys of a map that changes meanwhile: at most ``limit``, so that it ends."""
    current = ct.create_string_buffer(key_size)
    following = ct.create_string_buffer(key_size)
    at = 0  # NULL asks for the first key
    for _ in range(limit):
        try:
            _bpf(
                _MAP_NEXT_KEY, _buffer(struct.pack("=IIQQ", map_fd, 0, at, ct.addressof(following)))
            )
        except FileNotFoundError:
            return
        yield following.raw
        current.raw = following.raw
        at = ct.addressof(current)
