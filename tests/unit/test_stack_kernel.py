"""Kernel stacks: entries of the kernel's map, by name, without the tracing itself."""

import struct

import pytest

from tcptrace.probes.engine import bpfcall
from tcptrace.probes.enrich.stacks import kernel, stack
from tcptrace.probes.enrich.stacks.kernel import KernelStacks

FD = 9
CALL = 5
"""Bytes of the call instruction that a return address stands behind."""
FUNCTIONS = {"inet_sk_state_store": 0x1000, "tcp_close": 0x2000, "abort": 0x3000, "next": 0x3010}


class FakeSymbols:
    hidden, why, made = False, "", 0

    def __init__(self):
        FakeSymbols.made += 1

    def name(self, address):
        at = [name for name, start in FUNCTIONS.items() if start <= address < start + 0x10]
        return at[0] if at else None


@pytest.fixture
def entries(monkeypatch):
    """Number -> addresses."""
    content = {}

    def lookup(fd, key, size):
        assert fd == FD
        addresses = content.get(struct.unpack("=I", key)[0])
        return (
            None
            if addresses is None
            else struct.pack(f"={len(addresses)}Q", *addresses).ljust(size, b"\0")
        )

    monkeypatch.setattr(bpfcall, "lookup", lookup)
    monkeypatch.setattr(kernel, "KernelSymbols", FakeSymbols)
    monkeypatch.setattr(FakeSymbols, "made", 0)
    return content


@pytest.fixture
def stacks(entries):
    return KernelStacks(FD)


def returns_to(name):
    return FUNCTIONS[name] + CALL


def test_from_the_innermost_function_outwards(stacks, entries):
    entries[3] = [returns_to("inet_sk_state_store"), returns_to("tcp_close")]
    assert stacks.stack(3).frames == ("inet_sk_state_store", "tcp_close")


def test_a_function_without_a_name_is_an_address_within_its_call(stacks, entries):
    entries[3] = [returns_to("tcp_close"), 0xFFFF_FFFF_8100_0005]
    assert stacks.stack(3).frames == ("tcp_close", "0xffffffff81000004")


def test_the_tracing_itself_is_left_out(stacks, entries, monkeypatch):
    monkeypatch.setitem(FUNCTIONS, "bpf_trace_run3", 0x4000)
    entries[3] = [0x9999, returns_to("bpf_trace_run3"), returns_to("tcp_close")]
    assert stacks.stack(3).frames == ("tcp_close",)


def test_the_innermost_is_no_return_address(stacks, entries):
    entries[3] = [FUNCTIONS["next"], returns_to("tcp_close")]
    assert stacks.stack(3).frames == ("next", "tcp_close")


def test_a_call_that_never_returns_is_its_callers(stacks, entries):
    """The return address is that of the function behind it."""
    entries[3] = [returns_to("tcp_close"), FUNCTIONS["abort"] + 0x10]
    assert stacks.stack(3).frames == ("tcp_close", "abort")


def test_an_entry_that_was_overwritten_is_unknown(stacks):
    assert stacks.stack(3) == stack.EVICTED


def test_hidden_addresses_are_said_with_the_line_to_paste(stacks, entries, monkeypatch):
    monkeypatch.setattr(FakeSymbols, "hidden", True)
    monkeypatch.setattr(FakeSymbols, "why", "sudo sysctl kernel.kptr_restrict=1")
    entries[3] = [returns_to("tcp_close")]
    assert stacks.stack(3).frames == ("[unknown: sudo sysctl kernel.kptr_restrict=1]",)


def test_the_symbols_are_read_once_and_only_if_needed(stacks, entries):
    assert FakeSymbols.made == 0
    entries[3] = [returns_to("tcp_close")]
    stacks.stack(3)
    stacks.stack(3)
    assert FakeSymbols.made == 1


def test_equal_stacks_have_one_id(stacks, entries):
    entries[3] = entries[4] = [returns_to("tcp_close")]
    assert stacks.stack(3) == stacks.stack(4)
