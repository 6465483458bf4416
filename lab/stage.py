"""Where a story is played: two hosts, its programs, and the waiting for facts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tcptrace.lab import sockets
from tcptrace.lab.actors import PATIENCE_S, Actor, StoryError
from tcptrace.lab.facts import Fact, Look
from tcptrace.lab.interrupts import Interrupts
from tcptrace.lab.namespaces import Host, pair
from tcptrace.lab.scenario import CLIENT, SERVER, Pause, Scenario
from tcptrace.lab.sources import Workshop

_POLL_S = 0.02

Teller = Callable[[str], None]


@dataclass
class Stage:
    """Actors by role, in the order in which they came; the one of a role that came last."""

    hosts: dict[str, Host]
    family: int
    workshop: Workshop
    interrupts: Interrupts
    tell: Teller
    actors: dict[str, Actor] = field(default_factory=dict)

    def address(self, host: str) -> str:
        return self.hosts[host].address(self.family)

    def start(self, role: str, host: str, program: str, *words: object) -> Actor:
        """One of our own programs."""
        return self.start_command(role, host, str(self.workshop.program(program)), *words)

    def start_command(self, role: str, host: str, *words: object) -> Actor:
        assert role not in self.actors, role
        with self.interrupts.held():
            actor = Actor(role, self.hosts[host], *map(str, words))
            self.actors[role] = actor
        return actor

    def connect(self, role: str, port: int, own_port: int) -> Actor:
        """A client, connected."""
        actor = self.start(role, CLIENT, "client", self.address(SERVER), port, own_port)
        actor.hear("connected")
        return actor

    def visit(self, role: str, port: int, own_port: int) -> None:
        """A client that connects and closes; its process stays."""
        actor = self.connect(role, port, own_port)
        actor.say("close")
        actor.hear("closed")

    def wait_listening(self, host: str, port: int) -> None:
        """Of a program that does not say so."""
        self._wait(
            lambda: Look(sockets.listens(self.hosts[host], port), "nobody listens"), "LISTEN"
        )

    def confirm(self, fact: Fact) -> None:
        """Wait until it holds.

        Raises:
            StoryError: it does not; with what was seen last.
        """
        seen = self._wait(lambda: fact.look(self), fact.says)
        self.tell(f"  . {fact.says}\n      {seen}")

    def _wait(self, look: Callable[[], Look], what: str) -> str:
        deadline = time.monotonic() + PATIENCE_S
        while not (found := look()).holds:
            if time.monotonic() >= deadline:
                raise StoryError(f"it did not come out: {what}\nseen: {found.seen}")
            time.sleep(_POLL_S)
        return found.seen

    def end(self) -> None:
        for actor in reversed(self.actors.values()):
            actor.end()


@contextmanager
def stage_for(scenario: Scenario, family: int, workshop: Workshop, tell: Teller) -> Iterator[Stage]:
    """The hosts with the scenario's settings; all is taken away again, however it ends."""
    with Interrupts() as interrupts, pair() as (server, client):
        stage = Stage({SERVER: server, CLIENT: client}, family, workshop, interrupts, tell)
        try:
            for host, settings in scenario.settings.items():
                for name, value in settings.items():
                    stage.hosts[host].set(name, value)
            yield stage
        finally:
            interrupts.hold()
            stage.end()


def perform(scenario: Scenario, stage: Stage) -> None:
    """The whole story.

    Raises:
        StoryError: a fact did not hold, or the story left one out.
    """
    met: list[Fact] = []
    for step in scenario.play(stage):
        if isinstance(step, str):
            stage.tell(step)
        elif isinstance(step, Pause):
            stage.tell(step.says)
            time.sleep(step.seconds)
        else:
            stage.confirm(step)
            met.append(step)
    missing = [fact.says for fact in scenario.expect if fact not in met]
    if missing or len(met) != len(scenario.expect):
        raise StoryError(f"{scenario.name} and its expected facts differ: {missing}")
