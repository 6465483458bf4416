"""Which sockets of the inventory are put into the kernel's table, for whom, and what it answers."""

import contextlib
import os

import pytest

from tcptrace.probes.adoption import Adoption
from tcptrace.probes.engine.constants import Adopt, How, TcpState
from tcptrace.probes.engine.errors import KernelRefusedError
from tcptrace.probes.enrich.inventory import Found, Inventory
from tcptrace.probes.enrich.procfs import Holder
from tests.unit.test_existing import row

ME, PARENT = Holder(os.getpid(), 9), Holder(os.getppid(), 4)
INODE = 100


class Programs:
    """The kernel half: notes what it is asked, answers what the test says."""

    def __init__(self, answer=Adopt.DONE, queued=()):
        self.answer, self.queued, self.calls, self.pidfds = answer, list(queued), [], []

    def run(self, program, *arguments):
        self.calls.append((program, *arguments))
        if program == "adopt_children":
            return self.queued.pop(0) if self.queued else 0
        self.pidfds.append(os.fstat(arguments[0]))  # it is open now
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def adopted(self):
        return [call[2:] for call in self.calls if call[0] == "adopt"]


def taken(*holders, inode=INODE, state=TcpState.ESTABLISHED):
    return Inventory([Found(row(state, inode=inode), holders)])


def test_the_first_holder_is_the_owner_if_anybody_is_traced():
    programs = Programs()
    Adoption(programs).all(taken(ME, PARENT), None)
    assert programs.adopted() == [(ME.pid, ME.fd, INODE, How.FD_SCAN)]


def test_of_several_holders_the_one_that_is_traced():
    programs = Programs()
    Adoption(programs).all(taken(ME, PARENT), {PARENT.pid})
    assert programs.adopted() == [(PARENT.pid, PARENT.fd, INODE, How.FD_SCAN)]


@pytest.mark.parametrize(
    ("inventory", "wanted"),
    [(taken(ME), {1}), (taken(), None), (taken(ME, inode=0), None)],
    ids=["a stranger's", "nobody's", "a remainder"],
)
def test_others_are_left_alone(inventory, wanted):
    programs = Programs()
    Adoption(programs).all(inventory, wanted)
    assert programs.calls == []


@pytest.mark.parametrize("answer", [Adopt.DONE_LISTENER, Adopt.ONLY_LISTENER])
def test_a_listeners_queue_is_adopted_until_it_has_no_more(answer):
    programs = Programs(answer, queued=[64, 64, 3])
    Adoption(programs).all(taken(ME), None)
    assert programs.calls[1:] == [("adopt_children", ME.pid)] * 4


def test_a_connection_has_no_queue():
    programs = Programs(Adopt.DONE, queued=[64])
    Adoption(programs).all(taken(ME), None)
    assert len(programs.calls) == 1


@pytest.mark.parametrize(
    ("answer", "unwanted"),
    [
        (Adopt.NOT_WANTED, {INODE}),
        (Adopt.ONLY_LISTENER, {INODE}),
        (Adopt.DONE, set()),
        (Adopt.DONE_LISTENER, set()),
        (Adopt.NO_TASK, set()),
    ],
)
def test_what_the_filters_turned_away_is_remembered(answer, unwanted):
    adoption = Adoption(Programs(answer))
    adoption.all(taken(ME), None)
    assert adoption.unwanted == unwanted


def test_a_holder_that_has_ended_is_no_task():
    pid = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(pid, 0)
    programs = Programs()
    assert Adoption(programs).one(Holder(pid, 3), INODE) == Adopt.NO_TASK
    assert programs.calls == []


@pytest.mark.parametrize("answer", [Adopt.DONE, OSError(22, "Invalid argument")])
def test_no_descriptor_is_left_open(answer):
    before = os.listdir("/proc/self/fd")
    with contextlib.suppress(KernelRefusedError):
        Adoption(Programs(answer)).one(ME, INODE)
    assert os.listdir("/proc/self/fd") == before


def test_a_kernel_that_runs_no_program_on_demand_is_refused():
    with pytest.raises(KernelRefusedError, match="Invalid argument") as caught:
        Adoption(Programs(OSError(22, "Invalid argument"))).one(ME, INODE)
    assert "5.10" in caught.value.help
