"""How a story is played: waiting, failing, and being interrupted."""

import os
import signal
from dataclasses import dataclass, field, replace

import pytest

from tcptrace.lab import stage as stage_module
from tcptrace.lab.actors import StoryError
from tcptrace.lab.facts import Look
from tcptrace.lab.interrupts import Interrupts
from tcptrace.lab.scenario import Pause, Scenario
from tcptrace.lab.stage import Stage, perform


@dataclass(frozen=True)
class Fake:
    """Holds from the given look on."""

    says: str
    holds_at: int
    looks: list = field(default_factory=list, compare=False)

    def look(self, cast):
        self.looks.append(cast)
        return Look(len(self.looks) >= self.holds_at, f"look {len(self.looks)}")


@pytest.fixture
def told():
    return []


@pytest.fixture
def stage(told, monkeypatch):
    monkeypatch.setattr(stage_module, "PATIENCE_S", 0.1)
    monkeypatch.setattr(stage_module, "_POLL_S", 0.001)
    return Stage({}, 4, None, Interrupts(), told.append)


def scenario(*steps, expect=None):
    facts = tuple(step for step in steps if isinstance(step, Fake))
    return Scenario(
        name="one", letter="A", says="", teaches="", play=lambda stage: iter(steps),
        expect=facts if expect is None else expect, lives=(), verdicts=(),
    )  # fmt: skip


def test_sentences_and_facts_are_told_in_order(stage, told):
    perform(scenario("First.", Fake("it holds", 3), Pause("Then.", 0.0)), stage)
    assert told == ["First.", "  . it holds\n      look 3", "Then."]


def test_a_fact_that_never_holds_ends_the_story_with_what_was_seen(stage):
    with pytest.raises(StoryError, match=r"it holds\nseen: look \d+") as caught:
        perform(scenario(Fake("it holds", 10**9)), stage)
    assert caught.value.exit_code == 1


def test_a_story_may_not_leave_out_a_fact_nor_add_one(stage):
    one, other = Fake("one", 1), Fake("other", 1)
    with pytest.raises(StoryError, match="other"):
        perform(scenario(one, expect=(one, other)), stage)
    with pytest.raises(StoryError):
        perform(scenario(one, other, expect=(one,)), stage)


def test_facts_that_say_the_same_are_told_apart():
    assert Fake("one", 1) != replace(Fake("one", 1), holds_at=2)


def send(number):
    os.kill(os.getpid(), number)


def under_interrupts(body):
    """What a laboratory does while signals come."""
    with Interrupts() as interrupts:
        body(interrupts)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_interrupts_and_no_other(number):
    before, done = signal.getsignal(number), []

    def body(interrupts):
        try:
            send(number)
        finally:
            send(signal.SIGINT)  # a second one, while it tidies up
            done.append("tidied up")

    with pytest.raises(KeyboardInterrupt):
        under_interrupts(body)
    assert done == ["tidied up"]
    assert signal.getsignal(number) is before


def test_a_signal_waits_while_it_is_held():
    done = []

    def body(interrupts):
        with interrupts.held():
            send(signal.SIGTERM)
            done.append("whole")
        done.append("never")

    with pytest.raises(KeyboardInterrupt):
        under_interrupts(body)
    assert done == ["whole"]


def test_a_signal_during_the_tidying_up_is_told_after_it():
    done = []

    def body(interrupts):
        interrupts.hold()
        send(signal.SIGTERM)
        done.append("tidied up")

    with pytest.raises(KeyboardInterrupt):
        under_interrupts(body)
    assert done == ["tidied up"]


def test_an_error_is_not_hidden_by_a_signal_that_came_while_tidying_up():
    def body(interrupts):
        interrupts.hold()
        send(signal.SIGTERM)
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        under_interrupts(body)


def test_nothing_happened():
    under_interrupts(lambda interrupts: None)
