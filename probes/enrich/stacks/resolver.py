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
from tcptrace.probes.enrich.stacks import stack
from tcptrace.probes.enrich.stacks.frame import Frame
from tcptrace.probes.enrich.stacks.kernelside import KernelSide
from tcptrace.probes.enrich.stacks.pythons import Pythons, PythonStack
from tcptrace.probes.enrich.stacks.row import CallRow
from tcptrace.probes.enrich.stacks.space import Files, Region, Space, guesses
from tcptrace.probes.enrich.stacks.stack import Stack, stack_of
from tcptrace.probes.enrich.stacks.walk import Position, Walked, code_address, finish

_MAX_SPACES = 512
_WORD = struct.Struct("=Q")


@dataclass(frozen=True, slots=True)
class _Found:
    """A space, or why there is none.

    Not ``certain``: a JIT compiler has mapped or unmapped code since. What is mapped from
    files is the same, or the image would be another. A walk that still comes out at the
    outermost frame was not misled.
    """

    space: Space | Stack
    certain: bool = True


class Resolver:
    """One per helper process; everything it keeps is bounded."""

    def __init__(self, kernel: KernelSide) -> None:
        self._kernel = kernel
        self._files = Files()
        self._spaces: OrderedDict[int, Space] = OrderedDict()
        self._pythons = Pythons(kernel) if kernel.python_stack else None

    def snapshot(self, row: tuple[object, ...]) -> Job:
        """Finish the walk of one record of the ring buffer, and teach the kernel half.

        That takes well under a millisecond; naming the functions, which is left to the
        job, may take long.
        """
        assert self._kernel.snapshot
        record = dict(zip(self._kernel.snapshot.names, row, strict=True))
        number: int = record["id"]  # type: ignore[assignment]
        return self._finished(number, record)

    def chain(self, number: int) -> Job:
        """A walk that the kernel half finished by itself."""
        layout = self._kernel.chain
        assert layout
        raw = bpfcall.lookup(self._kernel.chains, _WORD.pack(number), layout.size)
        if raw is None:
            return Job(number, stack.EVICTED)
        record = dict(zip(layout.names, layout.decoder().unpack(raw), strict=True))
        found = self._space(record["pid"], record["image"], record["space"])
        if isinstance(found.space, Stack):
            return Job(number, found.space)
        addresses = _addresses(record["addresses"], record["count"])
        if not found.certain and not _all_fixed(addresses, found.space):
            return Job(number, stack.CHANGED)
        walked = Walked(addresses, Walk(record["end"]))
        return Job(number, found.space, walked, self._python(record, joined=True))

    def hold(self, pid: int) -> list[Region]:
        """Read a process's mappings now: it may be gone when its first stack comes."""
        with contextlib.suppress(OSError):
            before = self._identity(pid)
            fresh = Space(pid, self._files)
            if self._identity(pid) == before:
                self._look_closer(fresh, before[0])
                return self._keep(before[1], fresh).regions
        return []

    def _finished(self, number: int, record: dict[str, object]) -> Job:
        numbers = {name: value for name, value in record.items() if isinstance(value, int)}
        found = self._space(numbers["pid"], numbers["image"], numbers["space"])
        if isinstance(found.space, Stack):
            return Job(number, found.space)
        addresses = _addresses(record["addresses"], numbers["count"])  # type: ignore[arg-type]
        at = Position(
            addresses[-1], numbers["stack_pointer"], numbers["frame_pointer"], numbers["link"]
        )
        copied: bytes = record["stack"][: numbers["bytes"]]  # type: ignore[index]
        walked = finish(addresses, at, copied, found.space.row)
        for address, row in walked.rows.items():
            if found.space.is_fixed(code_address(address)):
                self._teach(numbers["image"], address, row)
            elif found.certain:
                self._teach(numbers["space"], address, row)
        whole = walked.end == Walk.COMPLETE or _all_fixed(walked.addresses, found.space)
        if found.certain or whole:
            return Job(number, found.space, walked, self._python(numbers, joined=False))
        return Job(number, stack.CHANGED)

    def _python(self, record: dict[str, int], *, joined: bool) -> PythonStack | None:
        if self._pythons is None:
            return None
        pid, image, number = record["pid"], record["image"], record["python"]
        return self._pythons.stack(pid, image, number, joined=joined)

    def _space(self, pid: int, image: int, identity: int) -> _Found:
        known = self._spaces.get(identity)
        if known:
            self._spaces.move_to_end(identity)
            return _Found(known)
        try:
            fresh = Space(pid, self._files)
            now_image, now = self._identity(pid)
        except OSError:
            return _Found(stack.GONE)
        if now_image != image:
            return _Found(stack.REPLACED)
        self._look_closer(fresh, image)
        if now != identity:
            return _Found(fresh, certain=False)
        return _Found(self._keep(identity, fresh))

    def _look_closer(self, space: Space, image: int) -> None:
        space.look_closer()
        if self._pythons and space.runs_python:
            space.python_trouble = self._pythons.know(space.pid, image)

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

    def _teach(self, mapping: int, address: int, row: CallRow) -> None:
        """From now on the kernel half walks over this address by itself."""
        bpfcall.update(self._kernel.rows, struct.pack("=QQ", mapping, address), row.packed())


@dataclass(frozen=True, slots=True)
class Job:
    """A stack that is still to be named: ``number`` is what the kernel half calls it."""

    number: int
    space: Space | Stack
    walked: Walked | None = None
    python: PythonStack | None = None

    def stack(self) -> Stack:
        """The functions; the first look into a large program may take seconds."""
        if isinstance(self.space, Stack) or self.walked is None:
            return self.space  # type: ignore[return-value]
        return _described(self.walked, self.space, self.python)


def _described(walked: Walked, space: Space, python: PythonStack | None) -> Stack:
    """What a guess led to is marked; where it led to no code, it is left out."""
    native: list[list[Frame]] = []
    guessed, end = "", walked.end
    for address in walked.addresses:
        at = code_address(address)
        named = space.named(at)
        if not named:
            end = Walk.LOST
            break
        native.append([replace(one, guessed=guessed) for one in named] if guessed else named)
        if guesses(space.row(at)):
            guessed = "frame pointer"
    if python:
        frames, notes = python.merged_into(native)
    else:
        frames, notes = [frame for group in native for frame in group], []
    return stack_of([*map(str, frames), *notes, *filter(None, [space.note])], end)


def _all_fixed(addresses: list[int], space: Space) -> bool:
    return all(space.is_fixed(code_address(address)) for address in addresses)


def _addresses(raw: bytes, count: int) -> list[int]:
    return list(struct.unpack_from(f"={count}Q", raw))
