"""Struct offsets of the running kernel, against a reader of our own and the kernel's ABI."""

import os

import pytest

from tcptrace.probes.engine import btf, offsets
from tcptrace.probes.engine.btf import Field
from tcptrace.probes.engine.errors import KernelRefusedError
from tests.unit.btf_oracle import Oracle

pytestmark = pytest.mark.skipif(
    not os.access(btf.VMLINUX, os.R_OK), reason=f"{btf.VMLINUX} cannot be read"
)


@pytest.fixture(scope="module")
def kernel():
    with btf.kernel() as types:
        yield types


@pytest.fixture(scope="module")
def oracle():
    return Oracle(btf.VMLINUX)


@pytest.mark.parametrize("path", offsets.REQUIRED + offsets.OPTIONAL + offsets.MPTCP)
def test_every_offset_that_the_c_half_reads_is_what_the_file_says(kernel, oracle, path):
    found = kernel.field(path)
    assert (found.offset if found else None) == oracle.offset(path)


@pytest.mark.parametrize(
    ("path", "size"),
    [
        ("sock_common.skc_daddr", 4),
        ("sock_common.skc_dport", 2),
        ("sock_common.skc_family", 2),
        ("sock_common.skc_state", 1),
        ("sock_common.skc_v6_daddr", 16),
        ("sock_common.skc_cookie", 8),  # atomic64_t
        ("task_struct.comm", 16),
        ("task_struct.tgid", 4),
        ("task_struct.start_boottime", 8),
        ("net.ns.inum", 4),
        ("cred.uid", 4),  # kuid_t, a struct
        ("tcp_sock.rcv_nxt", 4),
        ("socket.file", 8),
    ],
)
def test_widths_that_are_the_same_on_every_64_bit_kernel(kernel, path, size):
    assert kernel.field(path).size == size


def test_members_of_nameless_structs_and_unions_are_found(kernel):
    found = kernel.field
    assert found("sock_common.skc_addrpair").offset == 0
    assert found("sock_common.skc_daddr") == Field(0, 4)
    assert found("sock_common.skc_rcv_saddr") == Field(4, 4)


def test_the_way_through_a_named_struct_adds_up(kernel):
    found = kernel.field
    assert found("sock.sk_lock.owned").offset > found("sock.sk_lock").offset
    assert found("sock.__sk_common.skc_dport").offset == found("sock_common.skc_dport").offset


@pytest.mark.parametrize("path", ["sock_common.skc_nothing", "no_such_struct.x", "sock.sk_err.x"])
def test_what_is_not_there_is_none_and_never_a_guess(kernel, path):
    assert kernel.field(path) is None


def test_sizes_and_enums(kernel):
    assert kernel.size("list_head") == 16
    assert kernel.size("no_such_struct") == 0
    assert kernel.enum("sock_flags")["SOCK_DEAD"] == 0  # include/net/sock.h: the first one
    assert kernel.enum("no_such_enum") == {}


def test_each_field_becomes_an_offset_and_a_width(kernel):
    found = offsets.constants(kernel)
    assert found["O_sock_common__skc_daddr"] == 0
    assert found["Z_task_struct__comm"] == 16
    for path in offsets.REQUIRED:
        assert f"O_{path.replace('.', '__')}" in found


class Lacking(btf.Btf):
    """This kernel's types, without one field."""

    def __init__(self, lacks):
        super().__init__()
        self.lacks = lacks

    def field(self, path):
        return None if path == self.lacks else super().field(path)


def test_a_required_field_that_is_missing_is_named():
    lacking = Lacking("sock.sk_err")
    with pytest.raises(KernelRefusedError, match=r"no field sock\.sk_err") as caught:
        offsets.constants(lacking)
    lacking.close()
    assert "never reads a guess" in caught.value.help


def test_an_optional_field_that_is_missing_has_no_constant():
    lacking = Lacking("sock.sk_cgrp_data")
    found = offsets.constants(lacking)
    lacking.close()
    assert "O_sock__sk_cgrp_data" not in found
    assert "O_sock__sk_err" in found
