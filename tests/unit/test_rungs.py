"""The ladder: the best rung that is offered, and what happens where none is."""

import pytest

from tcptrace.probes import rungs
from tcptrace.probes.engine.compiled import Hook
from tcptrace.probes.engine.errors import KernelRefusedError
from tcptrace.probes.rungs import Fact, Rung, climb

GOOD, PLAIN = Hook("best", "raw", "x"), Hook("plain", "raw", "y")


def rung(name, offered, *hooks, **definitions):
    return Rung(name, lambda: offered, hooks, lambda: definitions)


def test_the_first_rung_that_is_offered_is_taken():
    fact = Fact("who", (rung("best", False, GOOD, A=1), rung("plain", True, PLAIN, B=2)))
    standing = climb([fact])
    assert standing.hooks == (PLAIN,)
    assert standing.definitions == {"B": 2}
    assert standing.described() == ["who: plain"]


def test_a_better_rung_wins_where_both_are_offered():
    fact = Fact("who", (rung("best", True, GOOD), rung("plain", True, PLAIN)))
    assert climb([fact]).hooks == (GOOD,)


def test_a_fact_that_can_be_done_without_stands_on_nothing():
    standing = climb([Fact("extra", (rung("best", False, GOOD, A=1),), without="less is told")])
    assert standing.hooks == ()
    assert standing.definitions == {}
    assert standing.described() == ["extra: none"]


def test_an_indispensable_fact_without_a_rung_is_refused_by_name():
    fact = Fact("who owns it", (rung("hook one", False), rung("hook two", False)))
    with pytest.raises(KernelRefusedError, match="hook one or hook two") as caught:
        climb([fact])
    assert "who owns it" in caught.value.help


def test_nothing_is_asked_below_the_rung_that_holds():
    def refuse():
        raise AssertionError("asked needlessly")

    below = Rung("plain", refuse)
    assert climb([Fact("who", (rung("best", True, GOOD), below))]).hooks == (GOOD,)


def test_hooks_and_definitions_of_several_facts_add_up():
    facts = [Fact("a", (rung("1", True, GOOD, A=1),)), Fact("b", (rung("2", True, PLAIN, B=2),))]
    standing = climb(facts)
    assert standing.hooks == (GOOD, PLAIN)
    assert standing.definitions == {"A": 1, "B": 2}


def names(**how):
    return [fact.name for fact in rungs.needed(**how)]


def test_what_a_run_needs_depends_on_its_filters():
    everything = names(by_pid=False, follow=False)
    assert rungs.TRANSITION.name in everything
    assert rungs.PROCESS_EXIT.name not in everything
    assert rungs.PROCESS_EXIT.name in names(by_pid=True, follow=False)
    assert rungs.FORK.name not in names(by_pid=True, follow=False)
    assert rungs.FORK.name in names(by_pid=True, follow=True)


def test_every_fact_has_a_rung_and_every_rung_a_name():
    for fact in rungs.needed(by_pid=True, follow=True):
        assert fact.rungs
        assert all(rung.name for rung in fact.rungs)


def test_the_unified_hierarchy_is_where_its_controllers_file_is(tmp_path, monkeypatch):
    monkeypatch.setattr(rungs, "CGROUP2_MOUNTS", (str(tmp_path / "a"), str(tmp_path / "b")))
    assert rungs.cgroup2_root() is None
    assert rungs.cookie().rungs[0].hooks == ()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "cgroup.controllers").touch()
    assert rungs.cgroup2_root() == str(tmp_path / "b")
    assert {hook.target for hook in rungs.cookie().rungs[0].hooks} == {str(tmp_path / "b")}
