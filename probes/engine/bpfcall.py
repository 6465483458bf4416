"""bpf(2) and perf_event_open(2), as far as tcptrace needs them (include/uapi/linux/bpf.h)."""

from __future__ import annotations

import ctypes as ct
import fcntl
import os
import platform
import struct
from collections.abc import Iterator, Sequence

from tcptrace.probes.engine import tracefs
from tcptrace.probes.engine.compiled import MapShape

_SYSCALLS = {"x86_64": (321, 298), "aarch64": (280, 241)}
_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_NEXT_KEY = 0, 1, 2, 4
_PROG_LOAD, _TEST_RUN, _RAW_TRACEPOINT_OPEN, _LINK_CREATE = 5, 10, 17, 28

_TYPES = {"raw": 17, "tracepoint": 5, "cgroup_sock": 9, "sock_ops": 13}
_ATTACH_TYPES = {"raw": 0, "tracepoint": 0, "cgroup_sock": 2, "sock_ops": 3}
_LICENCE = b"GPL\0"
_LOG_BYTES = 1 << 20

_PERF_TYPE_TRACEPOINT, _PERF_FLAG_CLOEXEC = 2, 8
_PERF_IOC_ENABLE, _PERF_IOC_SET_BPF = 0x2400, 0x40042408

_libc = ct.CDLL(None, use_errno=True)
_libc.syscall.restype = ct.c_long


def _bpf(command: int, attributes: ct.Array[ct.c_char]) -> int:
    number = _SYSCALLS[platform.machine()][0]
    size = ct.c_uint(len(attributes))
    return _checked(_libc.syscall(ct.c_long(number), ct.c_int(command), attributes, size))


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ct.get_errno(), os.strerror(ct.get_errno()))
    return int(result)


def _buffer(raw: bytes, size: int = 128) -> ct.Array[ct.c_char]:
    return ct.create_string_buffer(raw, size)


def create_map(name: str, shape: MapShape) -> int:
    """BPF_MAP_CREATE."""
    sizes = (shape.kind, shape.key_size, shape.value_size, shape.max_entries, shape.flags)
    head = struct.pack("=5I", *sizes)
    return _bpf(_MAP_CREATE, _buffer(head + b"\0" * 8 + _object_name(name)))


def load_program(name: str, how: str, code: bytes) -> int:
    """BPF_PROG_LOAD; an error carries what the verifier said."""
    held = _buffer(code, len(code)), _buffer(_LICENCE, len(_LICENCE))
    try:
        return _load(name, how, held, None)
    except OSError as error:
        log = ct.create_string_buffer(_LOG_BYTES)
        try:
            return _load(name, how, held, log)
        except OSError:
            said = log.value.decode(errors="replace").strip().splitlines()[-3:]
            raise OSError(error.errno, f"{error.strerror}: {'; '.join(said)}") from error


def _load(
    name: str,
    how: str,
    held: tuple[ct.Array[ct.c_char], ct.Array[ct.c_char]],
    log: ct.Array[ct.c_char] | None,
) -> int:
    code = held[0]
    logging = (1, len(log), ct.addressof(log)) if log else (0, 0, 0)
    return _bpf(
        _PROG_LOAD,
        _buffer(
            struct.pack("=IIQQ", _TYPES[how], len(code) // 8, *map(ct.addressof, held))
            + struct.pack("=IIQ", *logging)
            + struct.pack("=II", 0, 0)
            + _object_name(name)
            + struct.pack("=II", 0, _ATTACH_TYPES[how])
        ),
    )


def _object_name(name: str) -> bytes:
    """At most 15 characters, as ``bpftool prog`` shows it."""
    return name.encode()[:15].ljust(16, b"\0")


def open_raw_tracepoint(program_fd: int, name: str) -> int:
    """BPF_RAW_TRACEPOINT_OPEN: attached as long as the returned descriptor lives."""
    held = _buffer(name.encode() + b"\0")
    attributes = _buffer(struct.pack("=QI", ct.addressof(held), program_fd))
    return _bpf(_RAW_TRACEPOINT_OPEN, attributes)


def open_tracepoint(program_fd: int, tracepoint: str) -> int:
    """A perf event of ``category:name`` with the program; detached when it is closed."""
    head = struct.pack("=IIQ", _PERF_TYPE_TRACEPOINT, 128, tracefs.identity(tracepoint))
    number = _SYSCALLS[platform.machine()][1]
    arguments = (ct.c_int(-1), ct.c_int(0), ct.c_int(-1), ct.c_ulong(_PERF_FLAG_CLOEXEC))
    fd = _checked(_libc.syscall(ct.c_long(number), _buffer(head), *arguments))
    try:
        fcntl.ioctl(fd, _PERF_IOC_SET_BPF, program_fd)
        fcntl.ioctl(fd, _PERF_IOC_ENABLE, 0)
    except OSError:
        os.close(fd)
        raise
    return fd


def link_to_cgroup(program_fd: int, cgroup: str, how: str) -> int:
    """BPF_LINK_CREATE (5.7): the attachment lives as long as the returned descriptor."""
    folder = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        attributes = struct.pack("=IIII", program_fd, folder, _ATTACH_TYPES[how], 0)
        return _bpf(_LINK_CREATE, _buffer(attributes))
    finally:
        os.close(folder)


def run_program(program_fd: int, arguments: Sequence[int]) -> int:
    """BPF_PROG_TEST_RUN of a raw tracepoint program (5.10); its return value."""
    context = struct.pack(f"={len(arguments)}Q", *arguments)
    held = _buffer(context, len(context))
    sizes = (program_fd, 0, 0, 0, 0, 0, 0, 0, len(context), 0)
    attributes = _buffer(struct.pack("=IIIIQQIIII", *sizes) + struct.pack("=Q", ct.addressof(held)))
    _bpf(_TEST_RUN, attributes)
    return int(struct.unpack_from("=I", attributes, 4)[0])


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
        attributes = struct.pack("=IIQQ", map_fd, 0, at, ct.addressof(following))
        try:
            _bpf(_MAP_NEXT_KEY, _buffer(attributes))
        except FileNotFoundError:
            return
        yield following.raw
        current.raw = following.raw
        at = ct.addressof(current)
