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
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tcptrace.probes import rungs, states
from tcptrace.probes.accept_queue import AcceptQueue
from tcptrace.probes.engine import bpfcall, btf, constants, offsets, tracefs
from tcptrace.probes.engine.compiled import Plan
from tcptrace.probes.engine.constants import Adopt, Fact, Setting
from tcptrace.probes.engine.errors import KernelRefusedError
from tcptrace.probes.engine.forked import Forked
from tcptrace.probes.engine.losses import Losses
from tcptrace.probes.engine.programs import Programs
from tcptrace.probes.engine.ring import Ring, Row
from tcptrace.probes.enrich import inventory, procfs
from tcptrace.probes.enrich.clock import ticks_per_second
from tcptrace.probes.enrich.inventory import Found, Inventory
from tcptrace.probes.enrich.owner import OwnerSearch
from tcptrace.probes.enrich.procfs import Holder
from tcptrace.probes.existing import existing_event
from tcptrace.probes.filters import Filters
from tcptrace.probes.states import Event, Interpreter

_MAX_CHILDREN = 16384
_SETTLE_S = 0.005
"""A system call that was past the tracepoint when it was attached, and lost its CPU before it
stored the new state, would be seen by the inventory in its old state: let it come to its end."""
_CHILD_WAITS_NS = 100_000_000
"""A child that nobody accepted for so long is told as it stands."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to run; what to look for is in Filters."""

    existing: bool = True
    ring_mib: int = 8
    max_sockets: int = 65536


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
            rungs.needed(by_pid=self.filters.by_pid, follow=self.filters.follow)
        )
        self._scout = Forked("the inventory", inventory.scout)
        try:
            self._programs = Programs(self._plan())
        except BaseException:
            self._scout.close()
            raise
        ring = self._programs.map("events")
        self._ring = Ring(ring.fd, ring.max_entries, self._programs.layout("state_record"))
        self._interpreter = Interpreter(self._ring.names, ticks_per_second())
        self._owners = OwnerSearch(self._adopt)
        self._losses = Losses(self._programs)
        self._accept_queue = AcceptQueue()
        self._unwanted: set[int] = set()
        return self

    def __exit__(self, *_: object) -> None:
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
        self._adopt_all(taken, pids)
        self._set(Setting.WINDOW, 0)
        return self._hand_over(taken, pids)

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

    def read(self) -> list[Event]:
        """The transitions since the last call, owners settled."""
        told = [event for row in self._ring.drain() for event in self._events(row)]
        told += [self._settled(event) for event in self._accept_queue.overdue()]
        return sorted(told, key=_time)  # several CPUs write, and some events were kept back

    def rest(self) -> list[Event]:
        """What was still kept back: call it last."""
        events = self.read()
        while self._ring.has_backlog:
            events += self.read()
        return events + [self._settled(event) for event in self._accept_queue.rest()]

    @property
    def keeps_back(self) -> bool:
        """Whether ``read`` has to be called again soon, also if no record comes."""
        return len(self._accept_queue) > 0

    @property
    def is_behind(self) -> bool:
        """Whether ``read`` has more to give at once."""
        return self._ring.has_backlog

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
        for key in bpfcall.keys(fd, 8, _MAX_CHILDREN):
            raw = bpfcall.lookup(fd, key, layout.size)
            if raw and 0 < decoder.unpack(raw)[established] < before_ns:
                self._programs.run("tell_child", *struct.unpack("=Q", key))

    def losses(self) -> list[Event]:
        """One ``loss`` event per place where something was lost since the last call."""
        return self._losses.news()

    def _plan(self) -> Plan:
        with btf.kernel() as types:
            definitions = constants.definitions() | offsets.constants(types)
        if self.filters.cgroups and "O_sock__sk_cgrp_data" not in definitions:
            raise KernelRefusedError("this kernel does not know the cgroup of a socket")
        definitions |= self.standing.definitions | self.filters.definitions()
        definitions |= {
            "MAX_SOCKETS": self.options.max_sockets,
            "MAX_CHILDREN": _MAX_CHILDREN,
            "RING_PAGES": self.options.ring_mib * 256,
        }
        return Plan(
            sources=states.SOURCES,
            hooks=self.standing.hooks,
            on_demand=states.ON_DEMAND,
            copied=states.COPIED,
            layouts=("state_record", "child"),
            definitions=definitions,
        )

    def _set(self, setting: Setting, value: int) -> None:
        self._programs.put("settings", struct.pack("=I", setting), struct.pack("=Q", value))

    def _trace_pids(self, pids: Any) -> None:
        for pid in pids if self.filters.by_pid else ():
            self._programs.put("traced_pids", struct.pack("=I", pid), struct.pack("=Q", 0))

    def _family(self) -> set[int]:
        if not self.filters.follow:
            return set(self.filters.pids)
        return procfs.descendants(self.filters.pids)

    def _adopt_all(self, taken: Inventory, pids: set[int]) -> None:
        wanted = pids if self.filters.by_pid else None
        for found in taken.found:
            holder = _chosen_holder(found, wanted)
            if not holder or not found.row.inode:
                continue
            outcome = self._adopt(holder, found.row.inode)
            if outcome in (Adopt.DONE_LISTENER, Adopt.ONLY_LISTENER):
                self._adopt_queue(holder.pid)
            if outcome in (Adopt.NOT_WANTED, Adopt.ONLY_LISTENER):
                self._unwanted.add(found.row.inode)

    def _adopt_queue(self, listener_pid: int) -> None:
        for _ in range(_MAX_CHILDREN):  # 64 children at a time
            if not self._programs.run("adopt_children", listener_pid):
                return

    def _adopt(self, holder: Holder, inode: int) -> Adopt:
        try:
            pidfd = os.pidfd_open(holder.pid)
        except OSError:
            return Adopt.NO_TASK
        try:
            arguments = (pidfd, holder.pid, holder.fd, inode, constants.How.FD_SCAN)
            return Adopt(self._programs.run("adopt", *arguments))
        except OSError as error:
            raise KernelRefusedError(
                f"the kernel does not run the adoption program: {error}",
                help="It needs BPF_PROG_TEST_RUN of raw tracepoints (Linux 5.10).",
            ) from error
        finally:
            os.close(pidfd)

    def _events(self, row: Row) -> Iterator[Event]:
        for event in self._interpreter.interpret(row):
            for passed in self._accept_queue.pass_on(event):
                yield self._settled(passed)

    def _settled(self, event: Event) -> Event:
        if event["uncertain"]:
            event = self._owners.settle(event)
        if event["pid"]:
            event["listener_pid"] = None
        elif event["listener_pid"]:
            listener = procfs.process(event["listener_pid"])
            event["listener_comm"] = listener.comm if listener else None
        return event

    def _hand_over(self, taken: Inventory, pids: set[int]) -> list[Event]:
        """Join the inventory with the transitions that happened while it was taken."""
        events: list[Event] = []
        while rows := self._ring.drain():
            events += [event for row in rows for event in self._interpreter.interpret(row)]
        first: dict[Any, Event] = {}
        for event in events:
            first.setdefault(_identity(event), event)
        shown = [
            existing_event(found, first.get(_cookie(found)) or first.get(found.row.flow))
            for found in taken.found
            if self.options.existing and self._shows(found)
        ]
        known = {_cookie(found) for found in taken.found} | {
            found.row.flow for found in taken.found
        }
        live = [event for event in events if self._in_hand(event, known, pids)]
        told = [
            self._settled(passed)
            for event in live
            for passed in self._accept_queue.pass_on(_numbered(event, taken))
        ]
        return [event for event in shown if event] + told

    def _shows(self, found: Found) -> bool:
        row = found.row
        return (
            self._passed_kernel_filters(found)
            and self.filters.wants_state(row.state)
            and self.filters.wants_row(row.sport, row.dport, row.saddr, row.daddr, row.netns)
        )

    def _passed_kernel_filters(self, found: Found) -> bool:
        """The cgroup is only known to the kernel half, which answers when a socket is adopted."""
        if not self.filters.cgroups:
            return True
        return bool(found.row.inode) and found.row.inode not in self._unwanted

    def _in_hand(self, event: Event, known: set[Any], pids: set[int]) -> bool:
        """Whether a transition of the window concerns a traced process."""
        if not self.filters.by_pid or not event["facts"] & Fact.IN_WINDOW:
            return True
        return event["pid"] in pids or event["listener_pid"] in pids or _identity(event) in known


def _time(event: Event) -> int:
    moment: int = event["ts_ns"]
    return moment


def _chosen_holder(found: Found, wanted: set[int] | None) -> Holder | None:
    """Of several holders, the first that is traced; without -p, simply the first."""
    for holder in found.holders:
        if wanted is None or holder.pid in wanted:
            return holder
    return None


def _cookie(found: Found) -> str | None:
    return states.cookie_text(found.row.cookie)


def _numbered(event: Event, taken: Inventory) -> Event:
    """With the cookie that the inventory made the kernel give the socket meanwhile."""
    if event["cookie"] is None:
        rows = (found.row for found in taken.found if found.row.flow == _flow(event))
        event["cookie"] = next((states.cookie_text(row.cookie) for row in rows), None)
    return event


def _identity(event: Event) -> Any:
    """The kernel's cookie; the addresses of a socket that had none before the inventory."""
    cookie = event["cookie"]
    return cookie if cookie and not cookie.startswith("t") else _flow(event)


def _flow(event: Event) -> tuple[Any, ...]:
    return tuple(event[name] for name in ("netns", "saddr", "sport", "daddr", "dport"))
