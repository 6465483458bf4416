"""The loaded programs and their maps, as descriptors. Whatever closes them detaches all."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tcptrace.probes.engine import bpfcall
from tcptrace.probes.engine.forked import Forked
from tcptrace.probes.engine.layout import Layout
from tcptrace.probes.engine.loader import Loaded, Plan, compile_and_attach


@dataclass(frozen=True, slots=True)
class Map:
    """A map's descriptor and its capacity (of a ring buffer: bytes)."""

    fd: int
    max_entries: int


class Programs:
    """Compiled in a child process, owned here.

    The order: ``Programs(plan)`` starts the compiler and returns at once,
    ``load`` waits for it, then maps can be filled, then ``attach``.
    """

    def __init__(self, plan: Plan) -> None:
        self._child = Forked("the compiler", lambda channel: compile_and_attach(plan, channel))
        self._links: list[int] = []
        self._owned: list[int] = []

    def load(self) -> None:
        """Wait until everything is compiled and verified, and take the descriptors over."""
        loaded: Loaded
        loaded, fds = self._child.receive()
        self._owned = list(fds)
        count = len(loaded.maps)
        self._maps = {
            name: Map(fd, size) for (name, size), fd in zip(loaded.maps, fds[:count], strict=True)
        }
        self._programs = dict(zip(loaded.programs, fds[count:], strict=True))
        self._layouts = loaded.layouts

    def attach(self) -> None:
        """Attach every hook of the plan, in its order; the child ends."""
        self._child.send("attach")
        _, self._links = self._child.receive()
        self._child.close()

    def detach(self) -> None:
        """Take every hook off; the maps stay readable. Safe to call twice."""
        while self._links:
            os.close(self._links.pop())

    def close(self) -> None:
        """Detach and unload; safe to call twice."""
        self._child.close()
        self.detach()
        while self._owned:
            os.close(self._owned.pop())

    def map(self, name: str) -> Map:
        return self._maps[name]

    def layout(self, name: str) -> Layout:
        """The fields of the C struct, as the compiler laid them out."""
        return self._layouts[name]

    def program_fds(self) -> list[int]:
        return list(self._programs.values())

    def run(self, function: str, *arguments: int) -> int:
        """Run an on-demand program in this thread's context; its return value."""
        return bpfcall.run_program(self._programs[function], arguments)

    def put(self, name: str, key: bytes, value: bytes) -> None:
        bpfcall.update(self._maps[name].fd, key, value)
