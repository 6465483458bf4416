"""Finishing a walk on a copy of the stack, against stacks laid out by hand."""

import platform
import struct

import pytest

from tcptrace.probes.engine.constants import Row, Walk
from tcptrace.probes.enrich.stacks.row import FRAME_POINTER, LOST, CallRow
from tcptrace.probes.enrich.stacks.walk import EXACT, MAX_FRAMES, Position, code_address, finish

BASE = 0x7FFC_0000_1000
IP, FIRST, SECOND, THIRD = 0x1000, 0x2000, 0x3000, 0x4000


def words(**at):
    """A stack of 64 words from BASE; ``w3=7``: the fourth is 7."""
    stack = [0xDEAD] * 64
    for name, value in at.items():
        stack[int(name[1:])] = value
    return struct.pack("=64Q", *stack)


def start(frame_pointer=0, link=0):
    return Position(IP << 1 | EXACT, BASE, frame_pointer, link)


def walk(stack, rows, **position):
    return finish([IP << 1 | EXACT], start(**position), stack, lambda at: rows.get(at, LOST))


def addresses(walked):
    return [address >> 1 for address in walked.addresses]


def test_a_return_address_is_looked_up_in_the_call_before_it():
    assert code_address(FIRST << 1) == FIRST - 1
    assert code_address(FIRST << 1 | EXACT) == FIRST


def test_by_stack_pointer_to_the_outermost_frame():
    rows = {
        IP: CallRow(Row.SP, 8, -8),
        FIRST - 1: CallRow(Row.SP, 32, -8),
        SECOND - 1: CallRow(Row.END),
    }
    walked = walk(words(w0=FIRST, w4=SECOND), rows)
    assert addresses(walked) == [IP, FIRST, SECOND]
    assert walked.end == Walk.COMPLETE
    assert walked.rows.keys() == {IP << 1 | EXACT, FIRST << 1, SECOND << 1}


def test_the_callers_frame_pointer_is_restored_before_it_is_used():
    rows = {
        IP: CallRow(Row.SP, 24, -8, -16),  # pushes the frame pointer, and changes it
        FIRST - 1: CallRow(Row.FP, 16, -8, -16),
        SECOND - 1: CallRow(Row.END),
    }
    stack = words(w1=BASE + 8 * 10, w2=FIRST, w11=SECOND)
    assert addresses(walk(stack, rows, frame_pointer=1)) == [IP, FIRST, SECOND]


def test_a_function_that_realigned_its_stack():
    rows = {
        IP: CallRow(Row.FP_DEREF, -8, -8),
        FIRST - 1: CallRow(Row.FP, 16, -8, -16),
        SECOND - 1: CallRow(Row.END),
    }
    fp = BASE + 8 * 8
    stack = words(w7=BASE + 8 * 20, w8=BASE + 8 * 30, w19=FIRST, w31=SECOND)
    assert addresses(walk(stack, rows, frame_pointer=fp)) == [IP, FIRST, SECOND]


def test_the_link_register_of_a_leaf():
    rows = {IP: CallRow(Row.SP, 0), FIRST - 1: CallRow(Row.END)}
    assert addresses(walk(words(), rows, link=FIRST)) == [IP, FIRST]


def test_no_table_means_by_frame_pointer():
    rows = {IP: FRAME_POINTER, FIRST - 1: CallRow(Row.END)}
    stack = words(w4=BASE + 80, w5=FIRST)
    assert addresses(walk(stack, rows, frame_pointer=BASE + 32)) == [IP, FIRST]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the frame of x86-64")
def test_out_of_a_signal_handler_into_what_it_interrupted():
    rows = {
        IP: CallRow(Row.SP, 8, -8),
        FIRST - 1: CallRow(Row.SIGNAL),
        SECOND: CallRow(Row.SP, 16, -8),
        THIRD - 1: CallRow(Row.END),
    }
    # ucontext at w1: registers from 40 bytes on: bp at 120, sp at 160, ip at 168
    stack = words(w0=FIRST, w16=0x77, w21=BASE + 8 * 40, w22=SECOND, w41=THIRD)
    walked = walk(stack, rows)
    assert addresses(walked) == [IP, FIRST, SECOND, THIRD]
    assert walked.addresses[2] & EXACT


def test_beyond_the_copy_it_is_cut_but_the_rows_are_learnt():
    rows = {IP: CallRow(Row.SP, 8, -8), FIRST - 1: CallRow(Row.SP, 65536, -8)}
    walked = walk(words(w0=FIRST), rows)
    assert (addresses(walked), walked.end) == ([IP, FIRST], Walk.NOT_COPIED)
    assert FIRST << 1 in walked.rows


def test_below_the_stack_pointer_nothing_is_read():
    rows = {IP: CallRow(Row.FP, 16, -8)}
    assert walk(words(), rows, frame_pointer=BASE - 4096).end == Walk.NOT_COPIED


def test_a_stack_never_grows_upwards():
    rows = {IP: CallRow(Row.SP, 80, -8), FIRST - 1: CallRow(Row.FP, 16, -8)}
    stack = words(w9=FIRST, w3=SECOND)
    assert walk(stack, rows, frame_pointer=BASE + 16).end == Walk.LOST


def test_an_address_that_is_no_code_ends_it():
    walked = walk(words(w0=FIRST), {IP: CallRow(Row.SP, 8, -8)})
    assert (addresses(walked), walked.end) == ([IP, FIRST], Walk.LOST)


def test_a_return_address_of_0_is_the_end():
    assert walk(words(w0=0), {IP: CallRow(Row.SP, 8, -8)}).end == Walk.COMPLETE


def test_recursion_stops_where_the_kernel_stops():
    rows = {IP: CallRow(Row.SP, 8, -8), FIRST - 1: CallRow(Row.SP, 8, -8)}
    stack = struct.pack("=200Q", *[FIRST] * 200)
    walked = finish([IP << 1 | EXACT], start(), stack, rows.__getitem__)
    assert len(walked.addresses) == MAX_FRAMES
    assert walked.end == Walk.DEEP


def test_what_the_kernel_walked_already_stays_in_front():
    before = [0x11 << 1, IP << 1 | EXACT]
    walked = finish(before, start(), words(), lambda _: CallRow(Row.END))
    assert walked.addresses == before


def test_the_struct_of_the_c_half():
    assert CallRow(Row.SP, 65600, -8, -16).packed() == struct.pack("<iiiI", 65600, -8, -16, 1)


@pytest.mark.parametrize(
    "row", [CallRow(Row.SP, 1 << 31, -8), CallRow(Row.SP, 8, -(1 << 31) - 1), CallRow(Row.SP, 8, 8)]
)
def test_rows_that_do_not_fit_say_so(row):
    assert not row.fits
