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


@pytest.fixture
def tracepoints(monkeypatch):
    """Which ones the kernel has."""
    known = set()
    monkeypatch.setattr(rungs.tracefs, "exists", lambda name: name in known)
    return known


def test_reads_and_writes_are_told_by_the_kernel_since_6_3(tracepoints):
    tracepoints |= {"sock:sock_recv_length", "syscalls:sys_exit_read"}
    standing = climb([rungs.LAST_IO])
    assert {hook.target for hook in standing.hooks} == {"sock_send_length", "sock_recv_length"}
    assert standing.definitions == {"HAVE_IO_LENGTH": 1}


def test_before_that_by_the_exits_of_the_system_calls(tracepoints):
    tracepoints |= {"syscalls:sys_exit_read"}
    standing = climb([rungs.LAST_IO])
    targets = {hook.target.removeprefix("syscalls:sys_exit_"): hook for hook in standing.hooks}
    assert targets.keys() == {
        *("read", "readv", "recvfrom", "recvmsg"),
        *("write", "writev", "sendto", "sendmsg", "sendfile64"),
    }
    for name, hook in targets.items():
        reads = name.startswith(("read", "recv"))
        assert hook.function == ("on_read_exit" if reads else "on_write_exit")
        assert hook.how == "tracepoint"
    assert standing.definitions == {"IO_BY_SYSCALL": 1}


def test_without_either_only_the_stacks_of_reads_and_writes_are_missing(tracepoints):
    assert climb([rungs.LAST_IO]).hooks == ()
    assert "no stacks of reads and writes" in rungs.LAST_IO.without


def test_loaded_code_is_only_looked_at_where_the_tracepoint_says_where_its_arguments_are(
    tracepoints, monkeypatch
):
    assert climb([rungs.LOADED]).hooks == ()
    tracepoints |= {"syscalls:sys_enter_mmap"}
    monkeypatch.setattr(rungs.tracefs, "fields", lambda _name: {"addr": 16, "prot": 32, "fd": 48})
    standing = climb([rungs.LOADED])
    assert {hook.function for hook in standing.hooks} == {"on_mmap", "on_exec", "on_child"}
    assert standing.definitions == {
        "O_sys_enter_mmap__prot": 32,
        "O_sys_enter_mmap__fd": 48,
        "CODE_IS_FOLLOWED": 1,
    }


def names(**how):
    return [fact.name for fact in rungs.needed(**how)]


def test_what_a_run_needs_depends_on_its_filters():
    everything = names(by_pid=False, follow=False)
    assert rungs.TRANSITION.name in everything
    assert rungs.PROCESS_EXIT.name not in everything
    assert rungs.PROCESS_EXIT.name in names(by_pid=True, follow=False)
    assert rungs.FORK.name not in names(by_pid=True, follow=False)
    assert rungs.FORK.name in names(by_pid=True, follow=True)
    assert rungs.LOADED.name not in names(by_pid=True, follow=True)
    assert rungs.LOADED.name in names(by_pid=False, follow=False, stacks=True)
    for how in ({}, {"stacks": True}):
        assert names(by_pid=True, follow=True, **how)[-1] == rungs.TRANSITION.name


def test_every_fact_has_a_rung_and_every_rung_a_name():
    for fact in rungs.needed(by_pid=True, follow=True, stacks=True):
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


DEEDS = {
    rungs.RESETS: {"tcp:tcp_send_reset", "tcp:tcp_receive_reset"},
    rungs.SIGPIPE: {"signal:signal_generate"},
    rungs.END: {"sched:sched_process_exit"},
}
"""What the rules need besides transitions, and what it stands on."""


@pytest.mark.parametrize("fact", DEEDS, ids=lambda fact: fact.name)
def test_deeds_stand_on_raw_tracepoints(fact, tracepoints):
    tracepoints |= DEEDS[fact]
    standing = climb([fact])
    assert {f"{hook.how}:{hook.target}" for hook in standing.hooks} == {
        f"raw:{name.partition(':')[2]}" for name in DEEDS[fact]
    }


@pytest.mark.parametrize("fact", [rungs.RESETS, rungs.SIGPIPE], ids=lambda fact: fact.name)
def test_without_them_less_is_told(fact, tracepoints):
    assert climb([fact]).hooks == ()
    assert fact.without


def test_only_the_rules_need_deeds():
    deeds = {fact.name for fact in DEEDS}
    assert not deeds & set(names(by_pid=True, follow=True, stacks=True))
    told = names(by_pid=True, follow=True, stacks=True, deeds=True)
    assert deeds <= set(told)
    # the end of a process is told before its pid is forgotten
    assert told.index(rungs.END.name) < told.index(rungs.PROCESS_EXIT.name)
    assert told[-1] == rungs.TRANSITION.name
