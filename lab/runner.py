"""One run of a scenario: the story with the tracer beside it, and what came out."""

from __future__ import annotations

import signal
import time
from collections import Counter
from dataclasses import dataclass

from tcptrace.lab.actors import StoryError
from tcptrace.lab.evidence import Evidence
from tcptrace.lab.namespaces import require
from tcptrace.lab.scenario import Scenario
from tcptrace.lab.sources import Workshop
from tcptrace.lab.stage import Stage, Teller, perform, stage_for
from tcptrace.lab.verdict import Judgement, judge
from tcptrace.lab.watch import Event, watching
from tcptrace.probes.diagnose.words import many


@dataclass(frozen=True, slots=True)
class Outcome:
    """``facts``: how many were met."""

    scenario: Scenario
    facts: int
    judgement: Judgement
    seconds: float

    @property
    def passed(self) -> bool:
        return not self.judgement.wrong

    @property
    def in_short(self) -> str:
        """What came out, counted."""
        found = self.judgement
        counts = [
            many(self.facts, "fact"),
            many(len(found.lives), "socket"),
            many(len(found.findings), "finding"),
        ]
        return ", ".join(counts + [f"{len(found.unchecked)} not checked"] * bool(found.unchecked))


def require_tools(scenario: Scenario) -> None:
    """Before anything is made.

    Raises:
        MissingPieceError: a command is not installed.
    """
    require("ip", "iproute2")
    require("ss", "iproute2")
    if scenario.uses_nft:
        require("nft", "nftables")


def run(
    scenario: Scenario, family: int, workshop: Workshop, tell: Teller, *, keep: bool = False
) -> Outcome:
    """Raises StoryError where a fact did not come true; what tcptrace told is in the outcome."""
    require_tools(scenario)
    started = time.monotonic()
    with stage_for(scenario, family, workshop, tell) as stage:
        try:
            events = _play(scenario, stage)
        except StoryError as error:
            if keep:
                tell(f"\n{error.message}")
                _keep(stage)
            raise
        judgement = judge(scenario, Evidence(stage, events))
        outcome = Outcome(scenario, len(scenario.expect), judgement, time.monotonic() - started)
        report(outcome, tell)
        if keep:
            _keep(stage)
    return outcome


def _play(scenario: Scenario, stage: Stage) -> list[Event]:
    """The story with the tracer beside it; all that the tracer told."""
    with watching(stage.hosts.values(), stage.interrupts) as watch:
        stage.tell(f"$ sudo {watch.command}\n")
        perform(scenario, stage)
        return watch.stop()


def report(outcome: Outcome, tell: Teller) -> None:
    """What was checked, in words."""
    tell("\nWhat tcptrace told, compared with the story:\n")
    for text, times in Counter(outcome.judgement.lives).items():
        tell(f"  {text}" + (f"\n    {times} times" if times > 1 else ""))
    for text in outcome.judgement.findings:
        tell(f"  {text}")
    for text in outcome.judgement.wrong:
        tell(f"  WRONG: {text}")
    for text in outcome.judgement.unchecked:
        tell(f"  not checked: {text}")
    came = "came out" if outcome.passed else "did NOT come out"
    tell(f"\n{outcome.scenario.name}: {came}, {outcome.in_short}, {outcome.seconds:.1f} s")


def _keep(stage: Stage) -> None:
    """Until a signal; the signal is what was asked for, so the outcome stays what it is."""
    stage.tell("\nKept until Ctrl-C. To look around:")
    for host in stage.hosts.values():
        stage.tell(f"  sudo ip netns exec {host.name} ss -tanoe")
    for role, actor in stage.actors.items():
        stage.tell(f"  {role}: pid {actor.pid}, {actor.ended() or 'running'}")
    try:
        signal.pause()
    except KeyboardInterrupt:
        stage.tell("")
