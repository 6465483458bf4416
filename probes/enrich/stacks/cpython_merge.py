"""One stack of native and Python frames.

CPython's evaluator, a C function, executes Python. Python that calls Python stays within
one evaluator; each call from C makes one more. In it lie variables to which CPython's own
structures lead, so their addresses tell which native frame it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from tcptrace.probes.enrich.stacks.frame import Frame

EVALUATOR = "_PyEval_EvalFrameDefault"
APART = "its place among the native frames is not known"
NO_JOINT = 255  # PYTHON_NO_JOINT of bpf/python.h


def joints_of(entries: Sequence[int], cfas: Sequence[int]) -> list[int]:
    """Which native frame executes each call from C: as python_join() of bpf/python.h.

    ``entries``: ``python_walk.entries``, as many as there were ``calls``. ``cfas``: for each
    native frame, the innermost first, the stack pointer that its caller goes on with.
    """
    found: list[int] = []
    for native, (low, high) in enumerate(itertools.pairwise(cfas), 1):
        if len(found) < len(entries) and low <= entries[len(found)] < high:
            found.append(native)
    return found + [NO_JOINT] * (len(entries) - len(found))


def merged(
    native: Sequence[Sequence[Frame]],
    python: Sequence[Sequence[Frame]],
    joints: Sequence[int] = (),
) -> list[Frame]:
    """One stack: each native frame that executes Python gives way to that Python.

    ``native``: for each address its function, preceded by what was inlined there. ``python``:
    as ``Interpreter.frames`` gives it. ``joints``: as ``joints_of``; without any the
    evaluator's name tells, which a stripped interpreter may lack. If the numbers do not
    match then, all Python frames stand in one place, and are marked.
    """
    groups = [list(group) for group in python]
    places = _places(native, groups, joints)
    if places is None:
        groups, places = _in_one_place(native, groups)
    at = dict(zip(places, groups, strict=True))
    stack: list[Frame] = []
    for index, frames in enumerate(native):
        stack += at.pop(index, []) or frames
    return stack + [frame for group in at.values() for frame in group]


def _places(
    native: Sequence[Sequence[Frame]], groups: list[list[Frame]], joints: Sequence[int]
) -> list[int] | None:
    """For each group a different number: the index of a native frame, or one beyond them."""
    if not any(joint < len(native) for joint in joints):
        return _evaluators(native, groups)
    outside = range(len(native), len(native) + len(groups))
    return [
        joint if joint < len(native) else beyond
        for joint, beyond in zip([*joints, *outside], outside, strict=False)
    ]


def _evaluators(native: Sequence[Sequence[Frame]], groups: list[list[Frame]]) -> list[int] | None:
    places = [index for index, frames in enumerate(native) if any(map(is_evaluator, frames))]
    while len(groups) > len(places) and not groups[-1]:
        groups.pop()  # 3.15 has a mark below everything
    return places if len(groups) == len(places) else None


def _in_one_place(
    native: Sequence[Sequence[Frame]], groups: list[list[Frame]]
) -> tuple[list[list[Frame]], list[int]]:
    """Before the outermost part of the stack, from the innermost evaluator on."""
    marked = [replace(frame, guessed=frame.guessed or APART) for group in groups for frame in group]
    for index, frames in enumerate(native):
        if any(map(is_evaluator, frames)):
            return [[*marked, *frames]], [index]
    return [marked], [len(native)]


def is_evaluator(frame: Frame) -> bool:
    """Also a part of it that the compiler moved elsewhere (``.cold``)."""
    return frame.function is not None and frame.function.split(".")[0] == EVALUATOR
