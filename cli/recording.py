"""``tcptrace record``, and reading such a recording again: without root, without bcc."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import orjson

from tcptrace.cli.sinks.base import Sink
from tcptrace.probes.diagnose.engine import Diagnosis
from tcptrace.probes.diagnose.flows import seconds
from tcptrace.probes.engine import schema
from tcptrace.probes.engine.errors import UsageError

Event = dict[str, Any]

_OURS = ("finding",)
"""Events of a recording that are made anew."""


@dataclass
class Recording:
    """The events of a file, as far as they can be read; ``notes`` says what could not."""

    path: Path
    notes: list[str] = field(default_factory=list)
    _rest: Iterator[bytes] | None = None
    _first: Event | None = None

    def start(self) -> None:
        """Open it and look at its first event. A pipe is read as it comes.

        Raises:
            UsageError: the file cannot be read, or is no recording of a schema known here.
        """
        self._rest = self._lines()
        first = next(self._rest, b"")
        self._first = self._event(1, first)
        self._check_start(self._first or {})

    def events(self) -> Iterator[Event]:
        """In order. Raises UsageError, as ``start``, which it calls if nobody has."""
        if self._rest is None:
            self.start()
        assert self._rest is not None
        assert self._first is not None
        yield self._first
        ended = False
        for number, line in enumerate(self._rest, 2):
            event = self._event(number, line)
            if event is not None:
                ended = event["event"] == "end"
                yield event
        if not ended:
            self.notes.append(f"{self.path} has no end: it was cut off; what is there was read")

    def _lines(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                yield from file
        except OSError as error:
            raise UsageError(f"cannot read {self.path}: {error.strerror}") from error

    def _event(self, number: int, line: bytes) -> Event | None:
        try:
            event = orjson.loads(line)
            known = isinstance(event, dict) and isinstance(event["event"], str) and event["ts"]
        except (orjson.JSONDecodeError, KeyError):
            known = None
        if known:
            return dict(event)
        if number == 1:
            raise self._no_recording()
        self.notes.append(f"{self.path} line {number} is no event: left out")
        return None

    def _no_recording(self) -> UsageError:
        return UsageError(
            f"{self.path} is no recording of tcptrace",
            help="Make one:  sudo tcptrace record -o FILE",
        )

    def _check_start(self, event: Event) -> None:
        version = str(event.get("schema", ""))
        if event["event"] != "start" or not version:
            raise UsageError(f"{self.path} does not begin with a start event")
        ours, theirs = schema.VERSION.partition(".")[0], version.partition(".")[0]
        if theirs != ours:
            raise UsageError(
                f"{self.path} has schema {version}; this tcptrace reads {ours}.x",
                help=f"It was written by tcptrace {event.get('version')}: use that one, or newer.",
            )


def diagnose_recording(recording: Recording, diagnosis: Diagnosis, sink: Sink) -> None:
    """All findings of a recording, as a live run gives them."""
    last: Event | None = None
    for event in recording.events():
        if event["event"] in _OURS:
            continue
        try:
            findings = diagnosis.feed([event]) + diagnosis.tick(seconds(event["ts"]))
            shown = {"ts": event["ts"], "seq": int(event["seq"])}
        except (KeyError, ValueError, TypeError, AttributeError):
            recording.notes.append(
                f"{recording.path}: event {event.get('seq')}: lacks fields: left out"
            )
            continue
        _show(findings, shown, sink)
        last = shown
    if last:
        _show(diagnosis.finish(), last, sink)
    for note in recording.notes:
        click.echo(f"tcptrace: {note}", err=True)


def _show(findings: list[Event], event: Event, sink: Sink) -> None:
    """With the time of the event that brought them to light."""
    if findings:
        sink.write([event | finding for finding in findings])
