"""Events in, findings out. Live or from a recording: the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tcptrace.probes.diagnose import broken_pipe, resets
from tcptrace.probes.diagnose.broken_pipe import BrokenPipe
from tcptrace.probes.diagnose.close_wait import CloseWait
from tcptrace.probes.diagnose.finding import Finding
from tcptrace.probes.diagnose.flows import Event, Flows

_LOOK_EVERY_S = 1.0


@dataclass
class Diagnosis:
    """``codes``: the rules that are wanted. ``older_than_s``: for CLOSE_WAIT."""

    codes: frozenset[str]
    older_than_s: float = 5.0
    flows: Flows = field(default_factory=Flows)

    def __post_init__(self) -> None:
        self._close_wait = CloseWait(self.older_than_s)
        self._broken_pipe = BrokenPipe()
        self._resets = resets.Resets()
        self._looked_s = 0.0

    def feed(self, events: Iterable[Event]) -> list[Event]:
        """The findings that these published events give rise to, as unnumbered events."""
        findings: list[Finding] = []
        for event in events:
            flow = self.flows.take(event)
            kind = event["event"]
            if kind == "exit":
                findings += self._broken_pipe.exit(event, self.flows)
            elif flow and kind == "write_error":
                findings += self._broken_pipe.write_error(event, flow, self.flows)
            elif flow and kind == "eof":
                findings += broken_pipe.read_loop(event, flow, self.flows)
            elif flow and kind == "reset":
                findings += self._resets.reset(event, flow, self.flows)
        return self._wanted(findings)

    def tick(self, now_s: float) -> list[Event]:
        """What only time brings to light. ``now_s``: seconds since 1970; call it often."""
        self.flows.now_s = max(self.flows.now_s, now_s)
        if self.flows.now_s - self._looked_s < _LOOK_EVERY_S:
            return []
        self._looked_s = self.flows.now_s
        return self._wanted(self._close_wait.look(self.flows))

    def finish(self) -> list[Event]:
        """At the end of the stream."""
        return self._wanted(self._close_wait.look(self.flows))

    def _wanted(self, findings: Iterable[Finding]) -> list[Event]:
        return [finding.event() for finding in findings if finding.code in self.codes]
