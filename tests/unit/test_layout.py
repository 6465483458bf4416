"""Layout.of: a ctypes structure, as BCC describes a C struct, turned into a decoder."""

import ctypes as ct

import pytest

from tcptrace.probes.engine.errors import KernelRefusedError
from tcptrace.probes.engine.layout import Layout


class Padded(ct.Structure):
    """What the compiler pads by itself, between fields and at the end."""

    _fields_ = [("small", ct.c_ubyte), ("large", ct.c_ulonglong), ("half", ct.c_ushort)]


class Everything(ct.Structure):
    _fields_ = [
        ("u8", ct.c_ubyte),
        ("s8", ct.c_byte),
        ("u16", ct.c_ushort),
        ("s16", ct.c_short),
        ("u32", ct.c_uint),
        ("s32", ct.c_int),
        ("u64", ct.c_ulonglong),
        ("s64", ct.c_longlong),
    ]


class WithArrays(ct.Structure):
    _fields_ = [
        ("address", ct.c_ubyte * 16),
        ("comm", ct.c_char * 16),
        ("pad", ct.c_ubyte * 3),
        ("__pad_1", ct.c_ubyte),
        ("last", ct.c_uint),
    ]


class WithStruct(ct.Structure):
    _fields_ = [("inner", Padded)]


class WithBits(ct.Structure):
    _fields_ = [("flag", ct.c_uint, 1), ("rest", ct.c_uint, 31)]


def decoded(leaf, **values):
    layout = Layout.of(leaf)
    return dict(zip(layout.names, layout.decoder().unpack(bytes(leaf(**values))), strict=True))


def test_gaps_that_the_compiler_leaves_are_jumped_over():
    layout = Layout.of(Padded)
    assert layout.size == ct.sizeof(Padded) == layout.decoder().size == 24
    assert decoded(Padded, small=1, large=2**64 - 1, half=3) == {
        "small": 1,
        "large": 2**64 - 1,
        "half": 3,
    }


def test_every_integer_keeps_its_width_and_sign():
    values = {"u8": 255, "s8": -1, "u16": 65535, "s16": -2, "u32": 2**32 - 1, "s32": -3}
    values |= {"u64": 2**64 - 1, "s64": -4}
    assert decoded(Everything, **values) == values


def test_arrays_are_bytes_and_pad_fields_are_left_out():
    found = decoded(WithArrays, address=(ct.c_ubyte * 16)(*range(16)), comm=b"curl", last=7)
    assert found == {"address": bytes(range(16)), "comm": b"curl".ljust(16, b"\0"), "last": 7}
    assert Layout.of(WithArrays).names == ("address", "comm", "last")


def test_records_that_follow_each_other_are_decoded_in_one_go():
    raw = b"".join(bytes(Padded(number, number, number)) for number in range(10))
    assert [row[1] for row in Layout.of(Padded).decoder().iter_unpack(raw)] == list(range(10))


@pytest.mark.parametrize("leaf", [WithStruct, WithBits])
def test_what_cannot_be_decoded_is_refused_by_its_name(leaf):
    with pytest.raises(KernelRefusedError, match=leaf._fields_[0][0]):
        Layout.of(leaf)
