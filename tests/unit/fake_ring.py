"""A BPF ring buffer laid out in a memfd, for Ring to read (kernel/bpf/ringbuf.c)."""

from __future__ import annotations

import os
import struct

PAGE = os.sysconf("SC_PAGESIZE")
BUSY, DISCARDED = 1 << 31, 1 << 30


class FakeRing:
    """The producer's side. The data is stored twice, as the kernel maps it twice."""

    def __init__(self, record_size: int, *, records: int = 0, start: int = 0) -> None:
        self.record_size = record_size
        self.stride = 8 + (record_size + 7) // 8 * 8
        self.size = PAGE
        while self.size < records * self.stride:
            self.size *= 2
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * PAGE + 2 * self.size)
        self.produced = start
        os.pwrite(self.fd, struct.pack("=Q", start), 0)
        os.pwrite(self.fd, struct.pack("=Q", start), PAGE)

    def put(self, payload: bytes, flags: int = 0) -> int:
        """One record; returns its position, for ``set_flags``."""
        assert len(payload) == self.record_size
        at = self.produced
        header = struct.pack("=II", len(payload) | flags, 0)
        self.put_raw((header + payload).ljust(self.stride, b"\0"))
        return at

    def put_raw(self, raw: bytes) -> None:
        self._write(self.produced, raw)
        self.produced += len(raw)
        os.pwrite(self.fd, struct.pack("=Q", self.produced), PAGE)

    def set_flags(self, at: int, flags: int) -> None:
        """What a writer does when it is done with its record."""
        self._write(at, struct.pack("=I", self.record_size | flags))

    def consumed(self) -> int:
        """The position that the reader has written back."""
        return int(struct.unpack("=Q", os.pread(self.fd, 8, 0))[0])

    def close(self) -> None:
        os.close(self.fd)

    def _write(self, at: int, raw: bytes) -> None:
        for index in range(0, len(raw), 8):  # a header may be the last 8 bytes before the wrap
            offset = (at + index) % self.size
            piece = raw[index : index + 8]
            for copy in (0, self.size):
                os.pwrite(self.fd, piece, 2 * PAGE + copy + offset)
