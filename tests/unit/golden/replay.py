"""Recorded bytes to NDJSON, through the real pipeline. Shared by the test and by record.py."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest import mock

from tcptrace.cli.sinks.base import LineWriter
from tcptrace.cli.sinks.ndjson import NdjsonSink
from tcptrace.probes import publish, stacks
from tcptrace.probes.engine.layout import Layout
from tcptrace.probes.engine.ring import Ring
from tcptrace.probes.enrich.clock import NS, Clock
from tcptrace.probes.enrich.stacks.resolver import KernelSide
from tcptrace.probes.enrich.stacks.stack import Stack, stack_of
from tcptrace.probes.filters import Filters
from tcptrace.probes.states import Interpreter
from tests.unit.fake_ring import FakeRing

HERE = Path(__file__).parent
RECORDS, LAYOUT, LINES = HERE / "states.bin", HERE / "layout.json", HERE / "states.ndjson"
STACKS = HERE / "stacks.json"
EPOCH_NS = 1_763_733_600 * NS
"""2025-11-21T14:00:00Z: the moment at which the recorded machine's clocks stood at 0."""


class FixedClock(Clock):
    """Monotonic and boot time both began at EPOCH_NS."""

    def __init__(self) -> None:
        self.monotonic_ns, self.realtime_ns = 0, EPOCH_NS
        self._mono_offset = self._boot_offset = EPOCH_NS


class RecordedHelper:
    """Stands for the helper process: tells, unasked, all stacks that were recorded."""

    def __init__(self, *_: object) -> None:
        recorded = json.loads(STACKS.read_text())
        self._news = [[(int(id_), stack_of(frames)) for id_, frames in recorded.items()]]

    def has_news(self) -> bool:
        return bool(self._news)

    def receive(self) -> list[tuple[int, Stack]]:
        return self._news.pop()


def recorded_layout() -> Layout:
    told = json.loads(LAYOUT.read_text())
    return Layout(tuple(told["names"]), told["format"], told["size"])


def rows(layout: Layout) -> list[tuple[object, ...]]:
    """The recorded bytes (headers included) as the ring's reader decodes them."""
    fake = FakeRing(layout.size, records=len(RECORDS.read_bytes()) // 8)
    fake.put_raw(RECORDS.read_bytes())
    ring = Ring(fake.fd, fake.size, layout)
    try:
        return ring.drain()
    finally:
        ring.close()
        fake.close()


def replay() -> bytes:
    """What the ndjson sink writes."""
    layout = recorded_layout()
    interpreter = Interpreter(layout.names, json.loads(LAYOUT.read_text())["hz"])
    told = [event for row in rows(layout) for event in interpreter.interpret(row)]
    with mock.patch.object(stacks, "Forked", RecordedHelper):
        stage = stacks.Stacks(KernelSide(), [], inline=False)
    events = stage.pass_on(told) + stage.rest()
    with mock.patch.object(publish, "Clock", FixedClock):
        publisher = publish.Publisher(Filters())
    fd = os.memfd_create("lines")
    try:
        NdjsonSink(LineWriter(fd, owned=False)).write(publisher.publish(events))
        return os.pread(fd, 1 << 24, 0)
    finally:
        os.close(fd)
