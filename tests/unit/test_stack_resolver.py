"""Whose functions a stack shows: the process's of that moment, or that they are unknown."""

import os
import struct
import subprocess

import pytest

from tcptrace.probes.engine import bpfcall
from tcptrace.probes.engine.constants import Row, Walk
from tcptrace.probes.engine.layout import Layout
from tcptrace.probes.enrich.stacks import resolver, stack
from tcptrace.probes.enrich.stacks.frame import Frame
from tcptrace.probes.enrich.stacks.kernelside import KernelSide
from tcptrace.probes.enrich.stacks.resolver import Resolver
from tcptrace.probes.enrich.stacks.row import FRAME_POINTER, LOST, CallRow
from tcptrace.probes.enrich.stacks.walk import EXACT
from tests.unit.c_text import c_struct, sources, with_numbers

ROWS, CHAINS, ASKED, TELL = 10, 11, 12, 13
STACK_H = with_numbers(sources()["stack.h"])
SNAPSHOT, CHAIN = (Layout.of(c_struct(STACK_H, name)) for name in ("snapshot", "chain"))
KERNEL = KernelSide(ROWS, CHAINS, ASKED, TELL, snapshot=SNAPSHOT, chain=CHAIN)

ME = os.getpid()
IMAGE, SPACE = 1 << 60, 1 << 61
READ, HANDLER, MAIN = 0x1000, 0x2000, 0x3000
NAMES = {READ: "read", HANDLER - 1: "leaky_handler", MAIN - 1: "main"}
SP = 0x7FFC_0000_1000
TABLE = {
    READ: CallRow(Row.SP, 8, -8),
    HANDLER - 1: CallRow(Row.SP, 16, -8),
    MAIN - 1: CallRow(Row.END),
}


class Kernel:
    """The kernel half's maps, and what its program says of a process."""

    def __init__(self):
        self.rows, self.chains = {}, {}
        self.now = {ME: (IMAGE, SPACE)}
        self._answer = None

    def run_program(self, fd, arguments):
        assert fd == TELL
        self._answer = self.now.get(arguments[1])
        return int(self._answer is not None)

    def lookup(self, fd, key, size):
        if fd == ASKED:
            assert size == 16
            return struct.pack("=QQ", *self._answer)
        assert (fd, size) == (CHAINS, CHAIN.size)
        return self.chains.get(struct.unpack("=Q", key)[0])

    def update(self, fd, key, value):
        assert fd == ROWS
        self.rows[struct.unpack("=QQ", key)] = value


class FakeSpace:
    """The mappings of a process; ``compiled``: code that lies in no file."""

    tables, names, read, compiled, note, looked = TABLE, NAMES, [], (), "", 0

    def __init__(self, pid, _binaries):
        if pid != ME:
            raise ProcessLookupError(pid)
        self.table, self.functions, self.regions = FakeSpace.tables, FakeSpace.names, ["region"]
        FakeSpace.read.append(pid)

    def look_closer(self):
        FakeSpace.looked += 1

    def row(self, address):
        return self.table.get(address, LOST)

    def is_fixed(self, address):
        return address in self.table and address not in FakeSpace.compiled

    def named(self, address):
        name = self.functions.get(address)
        return [Frame(name, "srv", address)] if name else []


@pytest.fixture
def kernel(monkeypatch):
    made = Kernel()
    for name in ("run_program", "lookup", "update"):
        monkeypatch.setattr(bpfcall, name, getattr(made, name))
    monkeypatch.setattr(resolver, "Space", FakeSpace)
    monkeypatch.setattr(FakeSpace, "read", [])
    monkeypatch.setattr(FakeSpace, "looked", 0)
    return made


@pytest.fixture
def one(kernel):
    return Resolver(KERNEL)


def row(layout, **fields):
    made = dict.fromkeys(layout.names, 0) | fields
    return tuple(made[name] for name in layout.names)


def words(*values):
    return struct.pack(f"={len(values)}Q", *values)


def addresses(*values):
    return words(*values).ljust(64 * 8, b"\0")


COPIED = words(HANDLER, 0, MAIN)


def snapshot(copied=COPIED, **more):
    """What the kernel half sends when it has no row for the address of read()."""
    fields = {"id": 77, "image": IMAGE, "space": SPACE, "stack_pointer": SP, "pid": ME, "tid": ME}
    fields |= {"addresses": addresses(READ << 1 | EXACT), "count": 1}
    fields |= {"stack": copied.ljust(8192, b"\0"), "bytes": len(copied)}
    return row(SNAPSHOT, **(fields | more))


def chain(end=Walk.COMPLETE, **more):
    """What the kernel half keeps of a walk that it has finished."""
    walked = addresses(READ << 1 | EXACT, HANDLER << 1, MAIN << 1)
    fields = {"image": IMAGE, "space": SPACE, "addresses": walked, "count": 3, "pid": ME}
    values = row(CHAIN, **(fields | {"end": end} | more))
    return CHAIN.decoder().pack(*values)


WHOLE = ("read (srv)", "leaky_handler (srv)", "main (srv)")


def frames(job):
    return job.stack().frames


def test_a_copy_is_walked_to_its_end_and_named(one):
    job = one.snapshot(snapshot())
    assert (job.number, frames(job)) == (77, WHOLE)


@pytest.fixture
def compiled(monkeypatch):
    """leaky_handler() was made by a compiler at run time."""
    monkeypatch.setattr(FakeSpace, "compiled", (HANDLER - 1,))


def test_the_kernel_half_learns_every_row_that_it_took(one, kernel):
    """For as long as the same files are mapped."""
    one.snapshot(snapshot())
    assert kernel.rows == {
        (IMAGE, READ << 1 | EXACT): TABLE[READ].packed(),
        (IMAGE, HANDLER << 1): TABLE[HANDLER - 1].packed(),
        (IMAGE, MAIN << 1): TABLE[MAIN - 1].packed(),
    }


@pytest.mark.usefixtures("compiled")
def test_what_a_compiler_made_is_learnt_for_as_long_as_it_makes_no_more(one, kernel):
    one.snapshot(snapshot())
    assert kernel.rows.keys() == {
        (IMAGE, READ << 1 | EXACT),
        (SPACE, HANDLER << 1),
        (IMAGE, MAIN << 1),
    }


def test_it_is_taught_before_any_function_is_named(one, kernel, monkeypatch):
    """Names may take seconds; until it has the rows, the kernel half sends copy after copy."""
    monkeypatch.setattr(FakeSpace, "named", None)
    one.snapshot(snapshot())
    assert len(kernel.rows) == 3


def test_a_walk_that_the_kernel_half_began_is_gone_on_with(one, kernel):
    so_far = addresses(READ << 1 | EXACT, HANDLER << 1)
    began = snapshot(words(0, MAIN), addresses=so_far, count=2)
    assert frames(one.snapshot(began)) == WHOLE
    assert kernel.rows.keys() == {(IMAGE, HANDLER << 1), (IMAGE, MAIN << 1)}


def test_only_the_bytes_that_were_copied_are_read(one):
    job = one.snapshot(snapshot(bytes=8))
    assert frames(job) == (*WHOLE[:2], "[truncated: the stack beyond was not copied]")


def test_the_mappings_of_one_image_are_read_once(one):
    one.snapshot(snapshot())
    one.snapshot(snapshot(pid=ME + 1))  # a child of it, which may have ended
    assert FakeSpace.read == [ME]


def test_a_walk_of_the_kernel_half_is_named(one, kernel):
    kernel.chains[99] = chain()
    job = one.chain(99)
    assert (job.number, frames(job)) == (99, WHOLE)
    assert kernel.rows == {}


def test_how_the_walk_ended_is_told(one, kernel):
    kernel.chains[99] = chain(Walk.DEEP)
    assert frames(one.chain(99))[-1] == "[truncated: more than 64 frames]"


def test_one_that_the_kernel_half_has_forgotten_is_unknown(one):
    assert one.chain(99).stack() == stack.EVICTED


@pytest.fixture
def gone():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_process_that_has_ended_is_unknown(one, kernel, gone):
    assert one.snapshot(snapshot(pid=gone)).stack() == stack.GONE
    kernel.chains[99] = chain(pid=gone)
    assert one.chain(99).stack() == stack.GONE
    assert kernel.rows == {}


def test_one_that_gives_up_its_memory_meanwhile_is_gone_too(one, kernel):
    del kernel.now[ME]
    assert one.snapshot(snapshot()).stack() == stack.GONE


def test_one_that_ended_after_its_mappings_were_read_is_known(one, kernel):
    one.snapshot(snapshot())
    del kernel.now[ME]
    assert frames(one.snapshot(snapshot())) == WHOLE


@pytest.mark.parametrize("how", ["snapshot", "chain"])
def test_after_exec_nothing_is_shown_of_the_new_program(one, kernel, how):
    kernel.now[ME] = (IMAGE + 1, SPACE + 1)
    kernel.chains[99] = chain()
    job = one.chain(99) if how == "chain" else one.snapshot(snapshot())
    assert job.stack() == stack.REPLACED
    assert kernel.rows == {}


def test_the_old_program_is_still_known_after_exec(one, kernel):
    one.snapshot(snapshot())
    kernel.now[ME] = (IMAGE + 1, SPACE + 1)
    assert frames(one.snapshot(snapshot())) == WHOLE


@pytest.mark.usefixtures("compiled")
def test_code_that_was_compiled_since_is_accepted_if_the_walk_comes_out(one, kernel):
    """A compiler maps code all the time; of its own nothing is taught, as it may be another's."""
    kernel.now[ME] = (IMAGE, SPACE + 1)
    assert frames(one.snapshot(snapshot())) == WHOLE
    assert kernel.rows.keys() == {(IMAGE, READ << 1 | EXACT), (IMAGE, MAIN << 1)}


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("copied", [words(HANDLER), words(HANDLER, 0, 0x9999)])
def test_else_it_is_not(one, kernel, copied):
    kernel.now[ME] = (IMAGE, SPACE + 1)
    assert one.snapshot(snapshot(copied)).stack() == stack.CHANGED


@pytest.mark.parametrize("copied", [COPIED, words(HANDLER)])
def test_what_lies_in_files_is_still_the_same(one, kernel, copied):
    kernel.now[ME] = (IMAGE, SPACE + 1)
    assert frames(one.snapshot(snapshot(copied)))[:2] == WHOLE[:2]


def test_changed_mappings_are_not_kept_as_the_old_ones(one, kernel):
    kernel.now[ME] = (IMAGE, SPACE + 1)
    one.snapshot(snapshot())
    kernel.now[ME] = (IMAGE, SPACE)
    one.snapshot(snapshot())
    assert FakeSpace.read == [ME, ME]
    assert len(kernel.rows) == 3


@pytest.mark.usefixtures("compiled")
def test_a_finished_walk_is_not_named_by_code_that_was_compiled_since(one, kernel):
    """It came out by rows of the old code: that says nothing of what lies there now."""
    kernel.now[ME] = (IMAGE, SPACE + 1)
    kernel.chains[99] = chain()
    assert one.chain(99).stack() == stack.CHANGED


def test_but_by_files_that_are_still_the_same(one, kernel):
    kernel.now[ME] = (IMAGE, SPACE + 1)
    kernel.chains[99] = chain()
    assert frames(one.chain(99)) == WHOLE


def test_what_the_language_runtime_needs_is_told_behind_the_frames(one, monkeypatch):
    monkeypatch.setattr(FakeSpace, "note", "[node 20: start it with ...]")
    assert frames(one.snapshot(snapshot())) == (*WHOLE, "[node 20: start it with ...]")


def test_only_what_is_certain_to_be_the_process_is_looked_at_closer(one, kernel):
    """That takes longer: a process that lives for a moment would be gone."""
    kernel.now[ME] = (IMAGE + 1, SPACE + 1)
    one.snapshot(snapshot())
    assert FakeSpace.looked == 0
    kernel.now[ME] = (IMAGE, SPACE)
    one.snapshot(snapshot())
    assert FakeSpace.looked == 1


def test_mappings_can_be_read_ahead(one, kernel):
    assert one.hold(ME) == ["region"]
    del kernel.now[ME]
    assert frames(one.snapshot(snapshot())) == WHOLE


def test_but_not_if_they_change_at_that_moment(one, kernel, monkeypatch):
    answers = iter([(IMAGE, SPACE), (IMAGE, SPACE + 1)])
    monkeypatch.setattr(Resolver, "_identity", lambda *_: next(answers))
    assert one.hold(ME) == []


def test_and_a_process_that_is_gone_is_no_error(one, gone):
    assert one.hold(gone) == []


def test_what_is_kept_is_bounded(one, kernel, monkeypatch):
    monkeypatch.setattr(resolver, "_MAX_SPACES", 2)
    for number in range(4):
        kernel.now[ME] = (IMAGE, number)
        one.snapshot(snapshot(space=number))
    assert FakeSpace.read == [ME] * 4
    one.snapshot(snapshot(space=2))
    assert len(FakeSpace.read) == 4
    kernel.now[ME] = (IMAGE, 0)
    one.snapshot(snapshot(space=0))
    assert len(FakeSpace.read) == 5


def test_what_a_guess_leads_to_is_marked(one, monkeypatch):
    guessed = CallRow(FRAME_POINTER.kind, 16, -8, -16)
    monkeypatch.setattr(FakeSpace, "tables", {**TABLE, READ: guessed})
    job = one.snapshot(snapshot(words(0, HANDLER, 0, MAIN), frame_pointer=SP))
    assert frames(job) == (
        "read (srv)",
        "leaky_handler (srv) [guessed: frame pointer]",
        "main (srv) [guessed: frame pointer]",
    )


def test_an_address_that_is_no_code_is_no_frame(one):
    """Where a guess led to, or what the kernel half found where a return address should be."""
    job = one.snapshot(snapshot(words(HANDLER, 0, 0x646165720064)))
    assert frames(job) == (*WHOLE[:2], "[truncated: no way on from the frame above]")


def test_no_descriptor_is_left_open(one):
    before = os.listdir("/proc/self/fd")
    one.snapshot(snapshot())
    assert os.listdir("/proc/self/fd") == before


def test_equal_stacks_have_one_id_and_others_have_others(one, kernel):
    kernel.chains[99], kernel.chains[98] = chain(), chain(Walk.DEEP)
    assert one.snapshot(snapshot()).stack().id == one.chain(99).stack().id
    assert one.chain(98).stack().id != one.chain(99).stack().id
