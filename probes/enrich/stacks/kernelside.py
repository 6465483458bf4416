"""What the helper process shares with the kernel half."""

from __future__ import annotations

from dataclasses import dataclass

from tcptrace.probes.engine.layout import Layout


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
    python_layouts: int = -1
    python_images: int = -1
    python_stacks: int = -1
    snapshot: Layout | None = None
    chain: Layout | None = None
    python_stack: Layout | None = None
