"""What is compiled and loaded for which options."""

import contextlib
import re

import pytest

from tcptrace.probes import rungs, states
from tcptrace.probes.engine import btf, offsets
from tcptrace.probes.engine.compiled import Hook
from tcptrace.probes.engine.errors import KernelRefusedError
from tcptrace.probes.filters import Filters
from tcptrace.probes.plan import Options, plan_of
from tcptrace.probes.rungs import Fact, Rung, climb
from tests.unit.c_text import sources

CGROUP = "O_sock__sk_cgrp_data"


@pytest.fixture(autouse=True)
def kernel(monkeypatch):
    """Its offsets; there is no BTF without root."""
    known = {CGROUP: 8, "O_socket__sk": 24}
    monkeypatch.setattr(btf, "kernel", contextlib.nullcontext)
    monkeypatch.setattr(offsets, "constants", lambda _types: dict(known))
    return known


def made(filters=None, standing=None, **options):
    return plan_of(filters or Filters(), Options(**options), standing or rungs.Standing())


SWITCHES = {"STACK_USER", "STACK_KERNEL", "SNAPSHOT_RING_PAGES", "SNAPSHOTS_PER_SECOND"}


def switches(one):
    return SWITCHES & one.definitions.keys()


def test_the_constants_of_all_who_have_some_are_there(kernel):
    rung = Rung("best", lambda: True, (Hook("on_state_change", "raw", "x"),), lambda: {"HAVE_X": 1})
    one = made(Filters(by_pid=True), climb([Fact("state", (rung,))]))
    assert one.definitions["O_socket__sk"] == 24
    assert one.definitions["TCP_CLOSE_WAIT"] == 8
    assert one.definitions["HAVE_X"] == 1
    assert one.definitions["FILTER_PIDS"] == 1
    assert one.hooks == rung.hooks
    assert one.sources == states.SOURCES


def test_the_ring_buffer_is_given_in_pages():
    assert made(ring_mib=4).definitions["RING_PAGES"] * 4096 == 4 << 20


def test_without_stacks_nothing_of_them_is_compiled_or_loaded():
    one = made()
    assert switches(one) == set()
    assert set(one.on_demand) == set(states.ON_DEMAND)
    assert set(one.layouts) == {"state_record", "child"}


def test_user_stacks_bring_their_program_and_layouts():
    one = made(user_stacks=True)
    assert switches(one) == SWITCHES - {"STACK_KERNEL"}
    assert set(one.on_demand) - set(states.ON_DEMAND) == {"tell_space"}
    assert set(one.layouts) == {"state_record", "child", "snapshot", "chain"}


def test_kernel_stacks_alone_need_no_program():
    one = made(kernel_stacks=True)
    assert switches(one) == {"STACK_KERNEL"}
    assert one.on_demand == made().on_demand
    assert one.layouts == made().layouts


def test_both():
    assert switches(made(user_stacks=True, kernel_stacks=True)) == SWITCHES


def test_how_the_frames_are_written_out_changes_no_program():
    """Else the cache of compiled programs would hold each of them twice."""
    assert made(inline_stacks=True) == made()


def test_every_layout_and_program_is_in_the_c_half():
    text = "\n".join(sources().values())
    one = made(user_stacks=True, kernel_stacks=True)
    for name in one.layouts:
        assert re.search(rf"BPF_\w+\(layout_{name}, struct {name}\b", text), name
    for name in one.on_demand:
        assert re.search(rf"^int {name}\(", text, re.MULTILINE), name


def test_a_cgroup_can_only_be_asked_for_where_the_kernel_knows_a_sockets(kernel):
    filters = Filters(cgroups=frozenset({5}))
    assert made(filters).definitions["FILTER_CGROUPS"] == 1
    del kernel[CGROUP]
    with pytest.raises(KernelRefusedError, match="cgroup"):
        made(filters)
    made()
