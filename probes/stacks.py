"""The stage that joins events with their stacks.

Records carry numbers of stacks. A helper process turns these into functions; an
event waits for that, and all later ones behind it, so that the order stays.
Meanwhile records are read on: only the output waits, and not for long.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from tcptrace.probes.engine.compiled import Plan
from tcptrace.probes.engine.constants import Stack as StackId
from tcptrace.probes.engine.errors import TcptraceError
from tcptrace.probes.engine.forked import Forked
from tcptrace.probes.engine.programs import Programs
from tcptrace.probes.enrich.stacks import stack
from tcptrace.probes.enrich.stacks.helper import Hold, serve
from tcptrace.probes.enrich.stacks.kernelside import KernelSide
from tcptrace.probes.enrich.stacks.stack import SPECIAL, Stack
from tcptrace.probes.states import STACKS, Event

PATIENCE_S = 2.0
"""How long an event waits for the functions of its stacks."""
_MAX_KNOWN = 65536
_MAX_WAITING = 20_000
_BATCH = 2048
"""Events handed on at a time: in between, records are read."""
_MAX_ASKED = 1024
_MANY_RESTARTS = 3

Numbers = tuple[int, ...]
"""An event's stacks, as the kernel half numbers them, in the order of STACKS."""

_NONE: Numbers = ()
_NO_IDS: dict[str, Any] = {f"{name}_stack_id": None for name in STACKS}
_NO_FRAMES: dict[str, Any] = {f"{name}_stack": None for name in STACKS}


@dataclass(frozen=True, slots=True)
class _Fields:
    """What events with the same numbers carry."""

    values: dict[str, Any]
    stacks: list[Stack]


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
        self._fields: dict[Numbers, _Fields] = {}
        self._told: set[str] = set()
        self._waiting: deque[tuple[float, Event]] = deque()
        self._to_ask: OrderedDict[int, None] = OrderedDict()
        self._asked: set[int] = set()
        self._restarts = 0
        self._helper: Forked | None = None
        self._start_helper()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_behind(self) -> bool:
        """Whether ``pass_on`` would hand on more at once."""
        if not self._waiting:
            return False
        return self._fields_of(_numbers(self._waiting[0][1])) is not None

    def close(self) -> None:
        if self._helper:
            self._helper.close()
        self._helper = None

    def hold(self, pids: Iterable[int], *, warm: bool) -> None:
        """Have the mappings of these processes read before their first stack comes.

        ``warm``: wait for it, and have the tables of their programs read afterwards.
        """
        chosen = frozenset(pids)
        if not (chosen and self._helper and self._kernel and self._kernel.snapshot):
            return
        try:
            self._helper.send(Hold(chosen, warm))
            while warm and (answers := self._helper.receive()):
                self._learn(answers)
        except (TcptraceError, OSError) as error:
            self._start_helper(error)

    def pass_on(self, events: Iterable[Event]) -> list[Event]:
        """The events whose stacks are known, in order, and ``stack`` events before them."""
        until = time.monotonic() + PATIENCE_S
        out: list[Event] = []
        for event in events:
            fields = self._fields_of(_numbers(event))
            if fields is None or self._waiting:
                self._waiting.append((until, event))
            else:
                self._join(event, fields, out)
        self._talk()
        self._let_go(time.monotonic(), out)
        return out

    def rest(self) -> list[Event]:
        """All that still waits: the run ends."""
        events: list[Event] = []
        while self._waiting:
            events += self.pass_on(())
            if self._waiting:
                time.sleep(0.002)
        return events

    def _let_go(self, now: float, out: list[Event]) -> None:
        while self._waiting and len(out) < _BATCH:
            until, event = self._waiting[0]
            patient = now < until and len(self._waiting) < _MAX_WAITING
            fields = self._fields_of(_numbers(event), patient=patient)
            if fields is None:
                return
            self._waiting.popleft()
            self._join(event, fields, out)

    def _join(self, event: Event, fields: _Fields, out: list[Event]) -> None:
        for found in fields.stacks if not self._inline else ():
            if found.id not in self._told:
                self._told.add(found.id)
                out.append(_stack_event(found, event))
        out.append(event | fields.values)

    def _fields_of(self, numbers: Numbers, *, patient: bool = True) -> _Fields | None:
        """What the event is to carry; None: its stacks are not known yet. Few numbers recur."""
        fields = self._fields.get(numbers)
        if fields is None:
            known = [self._is_known(number) for number in numbers]  # asks for all that are not
            if patient and not all(known):
                return None
            fields = self._made(numbers)
            if patient:
                self._keep(numbers, fields)
        return fields

    def _made(self, numbers: Numbers) -> _Fields:
        values: dict[str, Any] = dict(_NO_IDS)
        if self._inline:
            values |= _NO_FRAMES
        stacks = []
        for name, number in zip(STACKS, numbers, strict=False):
            if found := self._stack(number):
                stacks.append(found)
                values[f"{name}_stack_id"] = found.id
                if self._inline:
                    values[f"{name}_stack"] = list(found.frames)
        return _Fields(values, stacks)

    def _keep(self, numbers: Numbers, fields: _Fields) -> None:
        if len(self._fields) >= _MAX_KNOWN:
            self._fields.clear()
            self._told.clear()
        self._fields[numbers] = fields

    def _stack(self, number: int) -> Stack | None:
        if number in SPECIAL:
            return SPECIAL[number]
        return self._known.get(number) or (stack.LATE if self._helper else stack.BROKEN)

    def _is_known(self, number: int) -> bool:
        """If not, it will be asked for: but copies of stacks come by themselves."""
        if number in SPECIAL:
            return True
        if number in self._known:
            self._known.move_to_end(number)
            return True
        if number not in self._asked and (number < 0 or not number & StackId.UNFINISHED):
            self._to_ask[number] = None
        return False

    def _talk(self) -> None:
        """One question is under way at a time, so that neither side ever blocks the other."""
        try:
            while self._helper and self._helper.has_news():
                self._learn(self._helper.receive())
            if self._helper and self._to_ask and not self._asked:
                self._ask()
        except (TcptraceError, OSError) as error:
            self._start_helper(error)

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

    def _start_helper(self, error: Exception | None = None) -> None:
        """Also after it died: a broken binary may crash libdw. But not for ever."""
        if error:
            self._notes.append(f"the helper process for stacks: {error}")
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
    if "STACK_PYTHON" in plan.definitions:
        found = replace(
            found,
            python_layouts=programs.map("python_layouts").fd,
            python_images=programs.map("python_images").fd,
            python_stacks=programs.map("python_stacks").fd,
            python_stack=programs.layout("python_stack"),
        )
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


def _numbers(event: Event) -> Numbers:
    """An ``existing`` event has them for others (accept_queue), but does not show them."""
    if event["event"] == "existing":
        return _NONE
    numbers: Numbers = event.get("stack_ids", _NONE)
    return numbers


def _stack_event(found: Stack, event: Event) -> Event:
    return {
        "event": "stack",
        "ts_ns": event["ts_ns"],
        "stack_id": found.id,
        "frames": list(found.frames),
    }
