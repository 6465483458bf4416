"""The stage that joins events with their stacks.

Records carry numbers of stacks. A helper process turns these into functions; an
event waits for that, and all later ones behind it, so that the order stays.
Meanwhile records are read on: only the output waits, and not for long.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from tcptrace.probes.engine.compiled import Plan
from tcptrace.probes.engine.constants import Stack as StackId
from tcptrace.probes.engine.errors import TcptraceError
from tcptrace.probes.engine.forked import Forked
from tcptrace.probes.engine.programs import Programs
from tcptrace.probes.enrich.stacks import stack
from tcptrace.probes.enrich.stacks.helper import Hold, serve
from tcptrace.probes.enrich.stacks.resolver import KernelSide
from tcptrace.probes.enrich.stacks.stack import SPECIAL, Stack
from tcptrace.probes.states import STACKS, Event

PATIENCE_S = 2.0
"""How long an event waits for the functions of its stacks."""
_MAX_KNOWN = 65536
_MAX_WAITING = 200_000
_MAX_ASKED = 256
_MANY_RESTARTS = 3

_NO_IDS: dict[str, Any] = {f"{name}_stack_id": None for name in STACKS}
_NO_FRAMES: dict[str, Any] = {f"{name}_stack": None for name in STACKS}


class Stacks:
    """Use one for each run; ``close`` ends its helper process.

    Args:
        kernel: what the helper works on; None: no stacks are taken.
        notes: where to say what went wrong, for the end of the run.
        inline: events carry the frames; else a ``stack`` event before the first use does.
    """

    def __init__(self, kernel: KernelSide | None, notes: list[str], *, inline: bool) -> None:
        self._kernel = kernel
        self._notes = notes
        self._inline = inline
        self._known: OrderedDict[int, Stack] = OrderedDict()
        self._told: OrderedDict[str, None] = OrderedDict()
        self._waiting: deque[tuple[float, Event]] = deque()
        self._to_ask: OrderedDict[int, None] = OrderedDict()
        self._asked: set[int] = set()
        self._restarts = 0
        self._helper: Forked | None = None
        self._start_helper()

    def __len__(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        if self._helper:
            self._helper.close()
        self._helper = None

    def hold(self, pids: Iterable[int]) -> None:
        """Have the mappings of these processes read before their first stack comes."""
        if self._helper and (chosen := frozenset(pids)):
            self._helper.send(Hold(chosen))

    def pass_on(self, events: Iterable[Event]) -> list[Event]:
        """The events whose stacks are known, in order, and ``stack`` events before them."""
        until = time.monotonic() + PATIENCE_S
        for event in events:
            self._wish(event)
            self._waiting.append((until, event))
        self._talk()
        return list(self._ready(time.monotonic()))

    def rest(self) -> list[Event]:
        """All that still waits: the run ends."""
        events: list[Event] = []
        while self._waiting:
            events += self.pass_on(())
            if self._waiting:
                time.sleep(0.002)
        return events

    def _ready(self, now: float) -> Iterator[Event]:
        while self._waiting:
            until, event = self._waiting[0]
            patient = now < until and len(self._waiting) < _MAX_WAITING
            if patient and not all(id_ in self._known for id_ in _ids(event)):
                return
            self._waiting.popleft()
            yield from self._joined(event)

    def _joined(self, event: Event) -> Iterator[Event]:
        numbers = event.get("stack_ids")
        event |= _NO_IDS
        if self._inline:
            event |= _NO_FRAMES
        for name, number in zip(STACKS, numbers or (), strict=False):
            found = self._stack(number)
            if found is None:
                continue
            event[f"{name}_stack_id"] = found.id
            if self._inline:
                event[f"{name}_stack"] = list(found.frames)
            elif found.id not in self._told:
                self._told[found.id] = None
                if len(self._told) > _MAX_KNOWN:
                    self._told.popitem(last=False)
                yield _stack_event(found, event)
        yield event

    def _stack(self, number: int) -> Stack | None:
        if number in SPECIAL:
            return SPECIAL[number]
        return self._known.get(number) or (stack.LATE if self._helper else stack.BROKEN)

    def _wish(self, event: Event) -> None:
        for number in _ids(event):
            if number in self._known:
                self._known.move_to_end(number)
            elif (number not in self._asked and not number & StackId.UNFINISHED) or number < 0:
                self._to_ask[number] = None

    def _talk(self) -> None:
        """One question is under way at a time, so that neither side ever blocks the other."""
        try:
            while self._helper and self._helper.has_news():
                self._learn(self._helper.receive())
            if self._helper and self._to_ask and not self._asked:
                self._ask()
        except (TcptraceError, OSError) as error:
            self._notes.append(f"the helper process for stacks: {error}")
            self._start_helper()

    def _learn(self, answers: list[tuple[int, Stack]]) -> None:
        for number, found in answers:
            self._known[number] = found
            self._asked.discard(number)
        while len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)

    def _ask(self) -> None:
        assert self._helper
        while self._to_ask and len(self._asked) < _MAX_ASKED:
            number, _ = self._to_ask.popitem(last=False)
            if number not in self._known:
                self._asked.add(number)
        if self._asked:
            self._helper.send(list(self._asked))

    def _start_helper(self) -> None:
        """Also after it died: a broken binary may crash libdw. But not for ever."""
        self.close()
        self._to_ask |= dict.fromkeys(self._asked)
        self._asked = set()
        self._restarts += 1
        kernel = self._kernel
        if kernel and self._restarts <= _MANY_RESTARTS:
            self._helper = Forked("stacks", lambda channel: serve(channel, kernel))


def kernel_side(programs: Programs, plan: Plan) -> KernelSide | None:
    """What the helper inherits; None if no stacks are taken."""
    if not {"STACK_KERNEL", "STACK_USER"} & plan.definitions.keys():
        return None
    found = KernelSide()
    if "STACK_KERNEL" in plan.definitions:
        found = replace(found, kernel_stacks=programs.map("kernel_stacks").fd)
    if "STACK_USER" not in plan.definitions:
        return found
    return replace(
        found,
        rows=programs.map("rows").fd,
        chains=programs.map("chains").fd,
        asked_space=programs.map("asked_space").fd,
        tell_space=programs.program("tell_space"),
        snapshots=programs.map("snapshots").fd,
        snapshots_bytes=programs.map("snapshots").max_entries,
        snapshot=programs.layout("snapshot"),
        chain=programs.layout("chain"),
    )


def _ids(event: Event) -> list[int]:
    return [number for number in event.get("stack_ids") or () if number not in SPECIAL]


def _stack_event(found: Stack, event: Event) -> Event:
    return {
        "event": "stack",
        "ts_ns": event["ts_ns"],
        "stack_id": found.id,
        "frames": list(found.frames),
    }
