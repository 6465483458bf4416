"""One run: attach, take the inventory, then turn records into events until told to stop.

The order that leaves no gap and makes no duplicate: hooks are attached first and
report everything (the *window*); then the inventory is taken and put into the
kernel's table; then the window is closed. Transitions of the window are told
after the inventory, which shows each socket as it was before them.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tcptrace.probes import rungs
from tcptrace.probes.accept_queue import AcceptQueue
from tcptrace.probes.adoption import Adoption
from tcptrace.probes.deeds import DeedInterpreter
from tcptrace.probes.engine import bpfcall, tracefs
from tcptrace.probes.engine.compiled import Plan
from tcptrace.probes.engine.constants import Setting
from tcptrace.probes.engine.errors import KernelRefusedError
from tcptrace.probes.engine.forked import Forked
from tcptrace.probes.engine.losses import Losses
from tcptrace.probes.engine.programs import Programs
from tcptrace.probes.engine.ring import Ring, Row
from tcptrace.probes.enrich import inventory, procfs
from tcptrace.probes.enrich.clock import ticks_per_second
from tcptrace.probes.enrich.inventory import Inventory
from tcptrace.probes.enrich.owner import OwnerSearch
from tcptrace.probes.enrich.stacks import runtime
from tcptrace.probes.filters import Filters
from tcptrace.probes.handover import Handover
from tcptrace.probes.plan import MAX_CHILDREN, Options, plan_of
from tcptrace.probes.stacks import Stacks, kernel_side
from tcptrace.probes.states import Event, Interpreter

_SETTLE_S = 0.005
"""A system call that was past the tracepoint when it was attached, and lost its CPU before it
stored the new state, would be seen by the inventory in its old state: let it come to its end."""
_HELD_AT_START = 512
_UNDER_WAY_NS = 1_000_000
"""A record that old is in its ring, if its program was not interrupted for longer."""
_CHILD_WAITS_NS = 100_000_000
"""A child that nobody accepted for so long is told as it stands."""


@dataclass
class Tracer:
    """Use as a context manager: leaving it detaches everything."""

    filters: Filters
    options: Options = field(default_factory=Options)
    standing: rungs.Standing = field(default_factory=rungs.Standing)
    notes: list[str] = field(default_factory=list)

    def __enter__(self) -> Tracer:
        tracefs.ensure_mounted()
        self.standing = rungs.climb(
            rungs.needed(
                by_pid=self.filters.by_pid,
                follow=self.filters.follow,
                stacks=self.options.user_stacks,
                deeds=self.options.deeds,
            )
        )
        self._scout = Forked("the inventory", inventory.scout)
        try:
            plan = self._load()
        except BaseException:
            self._scout.close()
            raise
        ring = self._programs.map("events")
        self._ring = Ring(ring.fd, ring.max_entries, self._programs.layout("state_record"))
        self._deeds = self._open_deeds()
        self._interpreter = Interpreter(self._ring.names, ticks_per_second())
        self._adoption = Adoption(self._programs)
        self._owners = OwnerSearch(self._adoption.one)
        self._losses = Losses(self._programs)
        self._accept_queue = AcceptQueue()
        self._spawned: set[int] = set()
        self._held: list[Event] = []
        self._stacks = Stacks(
            kernel_side(self._programs, plan), self.notes, inline=self.options.inline_stacks
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._stacks.close()
        if self._deeds:
            self._deeds.close()
        self._ring.close()
        self._scout.close()
        self._programs.close()

    @property
    def ring_fd(self) -> int:
        return self._ring.fd

    @property
    def lost(self) -> int:
        """Events lost in the kernel since the start."""
        return self._losses.total

    def start(self) -> list[Event]:
        """Attach everything; returns the ``existing`` events, then the window's transitions."""
        for name, key, value in self.filters.map_contents():
            self._programs.put(name, key, value)
        self._trace_pids(self.filters.pids)
        self._set(Setting.SELF, os.getpid())
        self._set(Setting.WINDOW, 1)
        self._programs.attach()
        self._set(Setting.ATTACHED, 1)
        time.sleep(_SETTLE_S)
        pids = self._family()
        self._trace_pids(pids)
        self._scout.send(pids or None)
        taken = self._scout.receive()
        self.notes += taken.unreadable
        self._stacks.hold((pids or _holders(taken)) - self._spawned, warm=bool(pids))
        self._adoption.all(taken, pids if self.filters.by_pid else None)
        self._set(Setting.WINDOW, 0)
        return self._stacks.pass_on(self._hand_over(taken, pids))

    def detach(self) -> None:
        """No further records; those in the buffer can still be read."""
        self._programs.detach()

    def traces_anybody(self) -> bool:
        """Whether any process is left in the traced set (children, with -f)."""
        fd = self._programs.map("traced_pids").fd
        return any(True for _ in bpfcall.keys(fd, 4, 1))

    def trace_also(self, pid: int) -> None:
        """A process that was started for this run (``-- CMD``). Before ``start``."""
        self.filters = replace(self.filters, pids=self.filters.pids | {pid})
        self._spawned.add(pid)  # not exec'ed yet: its mappings are still ours

    def read(self) -> list[Event]:
        """The transitions since the last call, owners settled."""
        until = time.monotonic_ns() - _UNDER_WAY_NS
        told = [event for row in self._ring.drain() for event in self._events(row)]
        if self._deeds:
            told = self._in_order(told + self._drain_deeds(), until)
        told += [self._settled(event) for event in self._accept_queue.overdue()]
        # several CPUs write, and some events were kept back
        return self._stacks.pass_on(sorted(told, key=_time))

    def rest(self) -> list[Event]:
        """What was still kept back: call it last."""
        events = self.read()
        while self._ring.has_backlog:
            events += self.read()
        last = self._held + [self._settled(event) for event in self._accept_queue.rest()]
        self._held = []
        return events + self._stacks.pass_on(last) + self._stacks.rest()

    @property
    def keeps_back(self) -> bool:
        """Whether ``read`` has to be called again soon, also if no record comes."""
        return len(self._accept_queue) > 0 or len(self._stacks) > 0 or bool(self._held)

    @property
    def is_behind(self) -> bool:
        """Whether ``read`` has more to give at once."""
        return self._ring.has_backlog or self._stacks.is_behind

    def stash(self) -> None:
        """Make room in the ring buffer; what was in it is read later."""
        self._ring.pump()

    def fill(self) -> float:
        """Share of the ring buffer in use."""
        return self._ring.fill()

    def tell_waiting_children(self, *, at_once: bool = False) -> None:
        """Have children told that have waited in an accept queue for longer than a moment."""
        fd = self._programs.map("children").fd
        before_ns = time.monotonic_ns() - (0 if at_once else _CHILD_WAITS_NS)
        layout = self._programs.layout("child")
        decoder, established = layout.decoder(), layout.names.index("established_ns")
        for key in bpfcall.keys(fd, 8, MAX_CHILDREN):
            raw = bpfcall.lookup(fd, key, layout.size)
            if raw and 0 < decoder.unpack(raw)[established] < before_ns:
                self._programs.run("tell_child", *struct.unpack("=Q", key))

    def losses(self) -> list[Event]:
        """One ``loss`` event per place where something was lost since the last call."""
        return self._losses.news()

    def _set(self, setting: Setting, value: int) -> None:
        self._programs.put("settings", struct.pack("=I", setting), struct.pack("=Q", value))

    def _trace_pids(self, pids: Any) -> None:
        for pid in pids if self.filters.by_pid else ():
            self._programs.put("traced_pids", struct.pack("=I", pid), struct.pack("=Q", 0))

    def _family(self) -> set[int]:
        if not self.filters.follow:
            return set(self.filters.pids)
        return procfs.descendants(self.filters.pids)

    def _load(self) -> Plan:
        """CPython is only looked for where it runs: the programs for it take long to load."""
        asked = self.options.user_stacks and (self.filters.pids or self.options.look_for_python)
        if asked and _python_is_running(self.filters.pids):
            plan = plan_of(self.filters, replace(self.options, python_stacks=True), self.standing)
            try:
                self._programs = Programs(plan)
            except KernelRefusedError:
                self.notes.append("this kernel does not load what looks for Python functions")
            else:
                return plan
        plan = plan_of(self.filters, self.options, self.standing)
        self._programs = Programs(plan)
        return plan

    def _open_deeds(self) -> Ring | None:
        if not self.options.deeds:
            return None
        ring, layout = self._programs.map("deeds"), self._programs.layout("deed")
        self._deed_interpreter = DeedInterpreter(layout.names)
        return Ring(ring.fd, ring.max_entries, layout)

    def _in_order(self, events: list[Event], until_ns: int) -> list[Event]:
        """Two rings are read one after the other: what is newer than both waits for the next time.

        So do the events of the other ring that are newer than one which waits.
        """
        events = sorted(self._held + events, key=_time)
        self._held = [event for event in events if _time(event) > until_ns]
        return events[: len(events) - len(self._held)]

    def _drain_deeds(self) -> list[Event]:
        rows = self._deeds.drain() if self._deeds else []
        return [self._settled(self._deed_interpreter.interpret(row)) for row in rows]

    def _events(self, row: Row) -> Iterator[Event]:
        for event in self._interpreter.interpret(row):
            for passed in self._accept_queue.pass_on(event):
                yield self._settled(passed)

    def _settled(self, event: Event) -> Event:
        if event["uncertain"]:
            event = self._owners.settle(event)
        if event["pid"]:
            event["listener_pid"] = None
        elif event.get("listener_pid"):
            listener = procfs.process(event["listener_pid"])
            event["listener_comm"] = listener.comm if listener else None
        return event

    def _hand_over(self, taken: Inventory, pids: set[int]) -> list[Event]:
        """Join the inventory with the transitions that happened while it was taken."""
        events: list[Event] = []
        while rows := self._ring.drain():
            events += [event for row in rows for event in self._interpreter.interpret(row)]
        handover = Handover(taken, self.filters, pids, self._adoption.unwanted)
        shown = handover.existing(events) if self.options.existing else []
        told = [
            self._settled(passed)
            for event in handover.live(events)
            for passed in self._accept_queue.pass_on(event)
        ]
        return shown + told


def _python_is_running(pids: Iterable[int]) -> bool:
    """In one of these processes; without any, on this host (ourselves left out)."""
    return any(map(runtime.runs_python, pids or set(procfs.pids()) - {os.getpid()}))


def _time(event: Event) -> int:
    moment: int = event["ts_ns"]
    return moment


def _holders(taken: Inventory) -> set[int]:
    found = {holder.pid for found in taken.found for holder in found.holders}
    return set(sorted(found)[:_HELD_AT_START])
