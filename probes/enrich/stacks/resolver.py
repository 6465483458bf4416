"""From copies of stacks, and walks, to functions and lines: the body of a helper process.

A process of its own, as reading a large program's tables takes seconds, and a
broken one may crash libdw: neither may hold up or end the stream.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections import OrderedDict
from dataclasses import dataclass, replace

from tcptrace.probes.engine import bpfcall
from tcptrace.probes.engine.constants import Walk
from tcptrace.probes.engine.layout import Layout
from tcptrace.probes.enrich.stacks import stack
from tcptrace.probes.enrich.stacks.row import CallRow
from tcptrace.probes.enrich.stacks.space import Binaries, Space, guesses
from tcptrace.probes.enrich.stacks.stack import Stack, stack_of
from tcptrace.probes.enrich.stacks.walk import Position, Walked, code_address, finish

_MAX_SPACES = 512
_WORD = struct.Struct("=Q")


@dataclass(frozen=True, slots=True)
class KernelSide:
    """Descriptors of the maps and the program that the resolver uses, and their layouts.

    -1 for what is not there: no user stacks, or no kernel stacks, are taken.
    """

    rows: int = -1
    chains: int = -1
    asked_space: int = -1
    tell_space: int = -1
    snapshots: int = -1
    snapshots_bytes: int = 0
    kernel_stacks: int = -1
    snapshot: Layout | None = None
    chain: Layout | None = None


@dataclass(frozen=True, slots=True)
class _Found:
    """A space, or why there is none.

    Not ``certain``: the process has mapped or unmapped code since (a JIT compiler does so all
    the time). A walk that still comes out at the outermost frame was not misled by that.
    """

    space: Space | Stack
    certain: bool = True


class Resolver:
    """One per helper process; everything it keeps is bounded."""

    def __init__(self, kernel: KernelSide) -> None:
        self._kernel = kernel
        self._binaries = Binaries()
        self._spaces: OrderedDict[int, Space] = OrderedDict()

    def snapshot(self, row: tuple[object, ...]) -> tuple[int, Stack]:
        """Finish the walk of one record of the ring buffer: its id, and its stack."""
        assert self._kernel.snapshot
        record = dict(zip(self._kernel.snapshot.names, row, strict=True))
        return record["id"], self._finished(record)  # type: ignore[return-value]

    def chain(self, id_: int) -> Stack:
        """The stack of a walk that the kernel finished by itself."""
        layout = self._kernel.chain
        assert layout
        raw = bpfcall.lookup(self._kernel.chains, _WORD.pack(id_), layout.size)
        if raw is None:
            return stack.EVICTED
        record = dict(zip(layout.names, layout.decoder().unpack(raw), strict=True))
        found = self._space(record["pid"], record["image"], record["space"])
        if isinstance(found.space, Stack):
            return found.space
        addresses = _addresses(record["addresses"], record["count"])
        return self._described(Walked(addresses, Walk(record["end"])), found.space)

    def hold(self, pid: int) -> None:
        """Read a process's mappings now: it may be gone when its first stack comes."""
        with contextlib.suppress(OSError):
            before = self._identity(pid)
            fresh = Space(pid, self._binaries)
            if self._identity(pid) == before:
                self._keep(before[1], fresh)

    def _finished(self, record: dict[str, object]) -> Stack:
        numbers = {name: value for name, value in record.items() if isinstance(value, int)}
        found = self._space(numbers["pid"], numbers["image"], numbers["space"])
        if isinstance(found.space, Stack):
            return found.space
        addresses = _addresses(record["addresses"], numbers["count"])  # type: ignore[arg-type]
        at = Position(
            addresses[-1], numbers["stack_pointer"], numbers["frame_pointer"], numbers["link"]
        )
        copied: bytes = record["stack"][: numbers["bytes"]]  # type: ignore[index]
        walked = finish(addresses, at, copied, found.space.row)
        if found.certain:
            self._teach(numbers["space"], walked.rows)
        elif walked.end != Walk.COMPLETE:
            return stack.CHANGED
        return self._described(walked, found.space)

    def _space(self, pid: int, image: int, identity: int) -> _Found:
        known = self._spaces.get(identity)
        if known:
            self._spaces.move_to_end(identity)
            return _Found(known)
        try:
            fresh = Space(pid, self._binaries)
            now_image, now = self._identity(pid)
        except OSError:
            return _Found(stack.GONE)
        if now_image != image:
            return _Found(stack.EXECUTED)
        if now != identity:
            return _Found(fresh, certain=False)
        return _Found(self._keep(identity, fresh))

    def _keep(self, identity: int, space: Space) -> Space:
        self._spaces[identity] = space
        while len(self._spaces) > _MAX_SPACES:
            self._spaces.popitem(last=False)
        return space

    def _identity(self, pid: int) -> tuple[int, int]:
        """(image, space) of the process as it is now, by the kernel half's own reckoning."""
        pidfd = os.pidfd_open(pid)
        try:
            if not bpfcall.run_program(self._kernel.tell_space, (pidfd, pid)):
                raise ProcessLookupError(pid)
        finally:
            os.close(pidfd)
        raw = bpfcall.lookup(self._kernel.asked_space, struct.pack("=I", 0), 16) or bytes(16)
        image, space = struct.unpack("=QQ", raw)
        return image, space

    def _teach(self, space: int, rows: dict[int, CallRow]) -> None:
        """From now on the kernel half walks over these addresses by itself."""
        for address, row in rows.items():
            bpfcall.update(self._kernel.rows, struct.pack("=QQ", space, address), row.packed())

    def _described(self, walked: Walked, space: Space) -> Stack:
        frames: list[str] = []
        guessed = ""
        for address in walked.addresses:
            at = code_address(address)
            frames += (
                str(replace(frame, guessed=guessed) if guessed else frame)
                for frame in space.frames(at)
            )
            if guesses(space.row(at)):
                guessed = "frame pointer"
        return stack_of(frames, walked.end)


def _addresses(raw: bytes, count: int) -> list[int]:
    return list(struct.unpack_from(f"={count}Q", raw))
