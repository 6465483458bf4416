"""How a run is to be made: what to compile, with which constants, and where to attach it."""

from __future__ import annotations

from dataclasses import dataclass

from tcptrace.probes import states
from tcptrace.probes.engine import btf, constants, offsets
from tcptrace.probes.engine.compiled import Plan
from tcptrace.probes.engine.errors import KernelRefusedError
from tcptrace.probes.filters import Filters
from tcptrace.probes.rungs import Standing

MAX_CHILDREN = 16384
_SNAPSHOT_RING_PAGES = 1024
_SNAPSHOTS_PER_SECOND = 250
_DEED_RING_PAGES = 256


@dataclass(frozen=True, slots=True)
class Options:
    """How to run; what to look for is in Filters."""

    existing: bool = True
    ring_mib: int = 8
    max_sockets: int = 65536
    user_stacks: bool = False
    kernel_stacks: bool = False
    look_for_python: bool = False
    """Also without -p: where any Python runs on this host."""
    python_stacks: bool = False
    """With user stacks: also look for the frames of CPython. It makes the start 0.6 s longer."""
    inline_stacks: bool = False
    deeds: bool = False
    """Also reads of end of file, failed writes, RSTs, SIGPIPE and ends of processes."""


def plan_of(filters: Filters, options: Options, standing: Standing) -> Plan:
    """Everything that the loader needs.

    Raises:
        KernelRefusedError: this kernel lacks what the filters ask for.
    """
    with btf.kernel() as types:
        definitions = constants.definitions() | offsets.constants(types)
    if filters.cgroups and "O_sock__sk_cgrp_data" not in definitions:
        raise KernelRefusedError("this kernel does not know the cgroup of a socket")
    definitions |= standing.definitions | filters.definitions()
    definitions |= {
        "MAX_SOCKETS": options.max_sockets,
        "MAX_CHILDREN": MAX_CHILDREN,
        "RING_PAGES": options.ring_mib * 256,
    }
    return Plan(
        sources=states.SOURCES,
        hooks=standing.hooks,
        on_demand=(*states.ON_DEMAND, *(("tell_space",) if options.user_stacks else ())),
        copied=states.COPIED,
        layouts=_layouts(options),
        definitions=definitions | _stacks(options),
    )


def _layouts(options: Options) -> tuple[str, ...]:
    stacks = ("snapshot", "chain") if options.user_stacks else ()
    python = ("python_stack",) if options.python_stacks else ()
    return ("state_record", "child", *stacks, *python, *(("deed",) if options.deeds else ()))


def _stacks(options: Options) -> dict[str, int]:
    found: dict[str, int] = {}
    if options.kernel_stacks:
        found["STACK_KERNEL"] = 1
    if options.user_stacks:
        found["STACK_USER"] = 1
        found["SNAPSHOT_RING_PAGES"] = _SNAPSHOT_RING_PAGES
        found["SNAPSHOTS_PER_SECOND"] = _SNAPSHOTS_PER_SECOND
    if options.python_stacks:
        found["STACK_PYTHON"] = 1
    if options.deeds:
        found |= {"DEEDS": 1, "DEED_RING_PAGES": _DEED_RING_PAGES}
    return found
