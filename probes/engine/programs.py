"""Loaded programs and their maps, as descriptors. Whatever closes them detaches all."""

from __future__ import annotations

import contextlib
import os
import resource
import struct
from dataclasses import dataclass

from tcptrace.probes.engine import bpfcall, cache
from tcptrace.probes.engine.compiled import Compiled, Hook, Plan
from tcptrace.probes.engine.constants import COPIES
from tcptrace.probes.engine.errors import KernelRefusedError
from tcptrace.probes.engine.forked import Forked
from tcptrace.probes.engine.layout import Layout
from tcptrace.probes.engine.loader import compile_in_child


@dataclass(frozen=True, slots=True)
class Map:
    """A map's descriptor and its capacity (of a ring buffer: bytes)."""

    fd: int
    max_entries: int


class Programs:
    """``Programs(plan)`` compiles (or finds it compiled), makes the maps and loads the programs.

    Then maps can be filled, then ``attach``.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._links: list[int] = []
        self._maps: dict[str, Map] = {}
        self._programs: dict[str, int] = {}
        self._copies: dict[str, list[int]] = {}
        compiled = _compiled(plan)
        self._layouts = compiled.layouts
        _lift_memory_limit()
        try:
            self._make_maps(compiled)
            self._load(compiled)
        except BaseException:
            self.close()
            raise

    def attach(self) -> None:
        """Attach every hook of the plan, in its order."""
        for hook in self._plan.hooks:
            try:
                self._links += [self._attached(hook, fd) for fd in self._all_copies(hook.function)]
            except OSError as error:
                raise _refused(f"{hook.function} at {hook.target}", error) from error

    def detach(self) -> None:
        """Take every hook off; the maps stay readable. Safe to call twice."""
        while self._links:
            os.close(self._links.pop())

    def close(self) -> None:
        """Detach and unload; safe to call twice."""
        self.detach()
        maps = [each.fd for each in self._maps.values()]
        copies = [fd for fds in self._copies.values() for fd in fds]
        for fd in [*self._programs.values(), *copies, *maps]:
            os.close(fd)
        self._programs.clear()
        self._copies.clear()
        self._maps.clear()

    def map(self, name: str) -> Map:
        return self._maps[name]

    def layout(self, name: str) -> Layout:
        """The fields of the C struct, as the compiler laid them out."""
        return self._layouts[name]

    def program(self, function: str) -> int:
        """Its descriptor (of several copies: the first)."""
        return self._programs[function]

    def run(self, function: str, *arguments: int) -> int:
        """Run an on-demand program in this thread's context; its return value."""
        return bpfcall.run_program(self._programs[function], arguments)

    def put(self, name: str, key: bytes, value: bytes) -> None:
        bpfcall.update(self._maps[name].fd, key, value)

    def _make_maps(self, compiled: Compiled) -> None:
        for name, shape in compiled.maps.items():
            try:
                fd = bpfcall.create_map(name, shape)
            except OSError as error:
                raise _refused(f"the map {name}", error) from error
            self._maps[name] = Map(fd, shape.max_entries)

    def _load(self, compiled: Compiled) -> None:
        fds = {name: each.fd for name, each in self._maps.items()}
        for function, how in self._plan.kinds.items():
            code = compiled.programs[function]
            self._programs[function] = _loaded(function, how, code.with_maps(fds))
        for role in range(1, COPIES if self._plan.copied else 1):
            self._load_copies(compiled, fds, role)

    def _load_copies(self, compiled: Compiled, fds: dict[str, int], role: int) -> None:
        """The same code, with a ``role`` map of its own that tells it its place."""
        own = bpfcall.create_map("role", compiled.maps["role"])
        self._maps[f"role {role}"] = Map(own, 1)
        bpfcall.update(own, struct.pack("=I", 0), struct.pack("=Q", role))
        for function in self._plan.copied:
            code = compiled.programs[function].with_maps(fds | {"role": own})
            loaded = _loaded(function, self._plan.kinds[function], code)
            self._copies.setdefault(function, []).append(loaded)

    def _all_copies(self, function: str) -> list[int]:
        return [self._programs[function], *self._copies.get(function, [])]

    def _attached(self, hook: Hook, program: int) -> int:
        if hook.how == "raw":
            return bpfcall.open_raw_tracepoint(program, hook.target)
        if hook.how == "tracepoint":
            return bpfcall.open_tracepoint(program, hook.target)
        return bpfcall.link_to_cgroup(program, hook.target, hook.how)


def _loaded(function: str, how: str, code: bytes) -> int:
    try:
        return bpfcall.load_program(function, how, code)
    except OSError as error:
        raise _refused(function, error) from error


def _compiled(plan: Plan) -> Compiled:
    found = cache.load(plan)
    if found is None:
        child = Forked("the compiler", lambda channel: compile_in_child(plan, channel))
        try:
            found = child.receive()
        finally:
            child.close()
        cache.save(plan, found)
    return found


def _lift_memory_limit() -> None:
    """Before 5.11 (memcg accounting) maps counted against RLIMIT_MEMLOCK."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)


def _refused(what: str, error: OSError) -> KernelRefusedError:
    return KernelRefusedError(
        f"the kernel refuses {what}: {error}",
        help="Run  sudo tcptrace doctor  to see what this kernel allows.",
    )
