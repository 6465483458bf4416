"""The kernel's symbols: the real file against a plain search, and files that bite."""

import bisect
import os
import random
from types import SimpleNamespace

import pytest

from tcptrace.probes.enrich.stacks import kallsyms
from tcptrace.probes.enrich.stacks.kallsyms import KernelSymbols, trimmed

CORE = """\
0000000000001000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000000 T _text
ffffffff81000040 T __pfx_tcp_close
ffffffff81000050 T tcp_close
ffffffff81000090 t __pfx___tcp_close
ffffffff810000a0 t __tcp_close
ffffffff81000200 W weak_one
ffffffff81000300 w weak_two
ffffffff81000340 T __x64_sys_close
ffffffff81000340 T __ia32_sys_close
ffffffff81000400 T __end_of_it
ffffffff81000400 T _etext
ffffffff82000000 D init_task
ffffffff82000100 R some_table
ffffffff83000000 T _sinittext
ffffffff83000010 t init_this
ffffffff83000100 T _einittext
"""
MODULES = """\
ffffffffc0206000 t nf_first\t[nf_tables]
ffffffffc0206100 t nf_last\t[nf_tables]
ffffffffc0208000 d nf_data\t[nf_tables]
ffffffffc0101000 t mptcp_close\t[mptcp]
ffffffffc0101f80 t mptcp_last\t[mptcp]
ffffffffc0102000 t ovl_first\t[overlay]
ffffffffc0025b94 t bpf_prog_91c8619549516284_xdp_main\t[bpf]
ffffffffc0026000 t bpf_prog_6deef7357e7b4530\t[bpf]
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    """``files(kallsyms, kptr_restrict)`` puts them in place of the kernel's."""
    monkeypatch.setattr(kallsyms, "KALLSYMS", tmp_path / "kallsyms")
    monkeypatch.setattr(kallsyms, "KPTR_RESTRICT", tmp_path / "kptr_restrict")

    def put(text, restrict="1"):
        (tmp_path / "kallsyms").write_text(text)
        (tmp_path / "kptr_restrict").write_text(f"{restrict}\n")

    put(CORE + MODULES)
    return put


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(s=1000.0)
    monkeypatch.setattr(kallsyms, "time", SimpleNamespace(monotonic=lambda: now.s))
    return now


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (0, None),
        (0x1000, None),  # data of the CPUs, on old kernels
        (0xFFFFFFFF80FFFFFF, None),
        (0xFFFFFFFF81000050, "tcp_close"),
        (0xFFFFFFFF8100008F, "tcp_close"),
        (0xFFFFFFFF81000090, "tcp_close"),  # after a call that does not return: still its caller
        (0xFFFFFFFF810000A0, "__tcp_close"),
        (0xFFFFFFFF810001FF, "__tcp_close"),
        (0xFFFFFFFF81000200, "weak_one"),
        (0xFFFFFFFF81000300, "weak_two"),
        (0xFFFFFFFF81000350, "__x64_sys_close"),  # the first of several, as in the kernel's traces
        (0xFFFFFFFF81000400, None),  # where code ends
        (0xFFFFFFFF82000004, None),
        (0xFFFFFFFF83000010, "init_this"),
        (0xFFFFFFFF83000100, None),
        (0xFFFFFFFFBFFFFFFF, None),
        (0xFFFFFFFFC0206000, "nf_first [nf_tables]"),
        (0xFFFFFFFFC02060FF, "nf_first [nf_tables]"),
        (0xFFFFFFFFC0206FFF, "nf_last [nf_tables]"),
        (0xFFFFFFFFC0207000, None),  # perhaps of a BPF program without a name
        (0xFFFFFFFFC0101010, "mptcp_close [mptcp]"),
        (0xFFFFFFFFC0101FFF, "mptcp_last [mptcp]"),
        (0xFFFFFFFFC0102000, "ovl_first [overlay]"),
        (0xFFFFFFFFC0025BC0, "bpf_prog_91c8619549516284_xdp_main [bpf]"),
        (0xFFFFFFFFC0026FFF, "bpf_prog_6deef7357e7b4530 [bpf]"),
        (0xFFFFFFFFC0027000, None),
        (0xFFFFFFFFFFFFFFFF, None),
    ],
)
def test_a_name_is_that_of_the_code_at_the_address_or_none(files, address, name):
    assert KernelSymbols().name(address) == name


def test_modules_may_stand_before_the_kernel_in_memory(files):
    """As on arm64."""
    files(CORE + "ffff800000102000 t b_last\t[b]\nffff800000101000 t a_last\t[a]\n")
    symbols = KernelSymbols()
    assert [symbols.name(0xFFFF800000101010), symbols.name(0xFFFF800000102FFF)] == [
        "a_last [a]", "b_last [b]",
    ]  # fmt: skip
    assert symbols.name(0xFFFF800000103000) is None
    assert symbols.name(0xFFFFFFFF81000051) == "tcp_close"


def test_the_kernels_own_file_against_a_plain_search():
    symbols, lines = KernelSymbols(), []
    with open("/proc/kallsyms") as file:
        for line in file:
            address, kind, name = line.rstrip("\n").split(" ", 2)
            if kind in "tTwW" and not name.startswith("__pfx_"):
                lines.append((int(address, 16), name.replace("\t", " ")))
    if not any(address for address, _ in lines):
        assert symbols.hidden
        assert symbols.name(0xFFFFFFFF81000050) is None
        return
    assert not symbols.hidden
    assert symbols.why == ""
    lines.sort(key=lambda line: line[0])
    starts = [address for address, _ in lines]
    names = dict(reversed(lines))  # the first of several
    kernel = next(n for n, (_, name) in enumerate(lines) if name == "_stext")
    for number in random.Random(1).sample(range(kernel, len(lines) - 1), 5000):
        if "[" in lines[number][1] or lines[number][1] in ("_etext", "_einittext"):
            continue
        start, end = starts[number], starts[bisect.bisect_right(starts, starts[number])]
        found = {symbols.name(at) for at in (start, (start + end) // 2, end - 1)}
        assert found <= {names[start], None}
        assert names[start] in found or "text" in names[start]


@pytest.mark.parametrize(
    ("restrict", "said"),
    [
        ("2", ["kernel.kptr_restrict=2", "sudo sysctl kernel.kptr_restrict=1"]),
        ("1", ["kernel.kptr_restrict=1", "CAP_SYSLOG", "sudo"]),
        ("0", ["kernel.kptr_restrict=0", "CAP_SYSLOG", "sudo"]),
    ],
)
def test_hidden_addresses_are_told_with_the_reason(files, restrict, said):
    zeros = "".join(f"{0:016x}{line[16:]}\n" for line in (CORE + MODULES).splitlines())
    files(zeros, restrict)
    symbols = KernelSymbols()
    assert symbols.hidden
    assert [words for words in said if words not in symbols.why] == []
    assert symbols.name(0) is None
    assert symbols.name(0xFFFFFFFF81000050) is None


def test_a_kernel_without_the_file_hides_them_too(tmp_path, monkeypatch):
    monkeypatch.setattr(kallsyms, "KALLSYMS", tmp_path / "absent")
    symbols = KernelSymbols()
    assert symbols.hidden
    assert "No such file" in symbols.why
    assert symbols.name(0xFFFFFFFF81000050) is None


def test_addresses_that_are_shown_later_are_seen(files, clock):
    files("0000000000000000 T _stext\n", "2")
    symbols = KernelSymbols()
    assert symbols.hidden
    files(CORE)
    assert symbols.hidden
    clock.s += 60
    assert not symbols.hidden
    assert symbols.why == ""


def test_a_module_that_is_loaded_later_is_found_within_a_minute(files, clock):
    symbols = KernelSymbols()
    assert symbols.name(0xFFFFFFFFC0300000) is None
    files(CORE + "ffffffffc0300000 t sctp_close\t[sctp]\n")
    clock.s += 59
    assert symbols.name(0xFFFFFFFFC0300000) is None
    assert symbols.name(0xFFFFFFFFC0101000) == "mptcp_close [mptcp]"
    clock.s += 1
    assert symbols.name(0xFFFFFFFFC0300000) == "sctp_close [sctp]"
    assert symbols.name(0xFFFFFFFFC0101000) is None


def test_the_file_is_read_once_for_what_it_knows_and_once_a_minute_for_the_rest(
    files, clock, monkeypatch
):
    read = []
    table = kallsyms._Table
    monkeypatch.setattr(kallsyms, "_Table", lambda path: read.append(path) or table(path))
    symbols = KernelSymbols()
    assert read == []
    for _ in range(10):
        assert (symbols.hidden, symbols.why) == (False, "")
        assert symbols.name(0xFFFFFFFF81000050)
        clock.s += 100
    assert len(read) == 1
    for _ in range(10):
        assert symbols.name(1) is None
        clock.s += 31
    assert len(read) == 1 + 5


def test_two_hundred_thousand_functions_take_a_few_mib(files):
    files("".join(f"{0xFFFFFFFF81000000 + n * 64:016x} t a_usual_name_{n:07d}\n"
                  for n in range(200_000)))  # fmt: skip
    symbols = KernelSymbols()
    assert symbols.name(0xFFFFFFFF81000000 + 199_999 * 64) == "a_usual_name_0199999"
    table = symbols._table
    parts = (table._addresses, table._ends, table._order, table._names)
    assert sum(part.__sizeof__() for part in parts) < 9 << 20


CLOSE = [
    "inet_sk_state_store", "__tcp_close", "tcp_close", "inet_release", "sock_close", "__fput",
    "__x64_sys_close", "do_syscall_64", "entry_SYSCALL_64_after_hwframe",
]  # fmt: skip


@pytest.mark.parametrize(
    "machinery",
    [
        [],  # a plain tracepoint's stack begins where it stands
        # a raw tracepoint: recorded on 5.10, 6.1, 6.12 and 6.18
        ["bpf_prog_91c8619549516284_raw_tracepoint__inet_sock_set_state [bpf]", "bpf_trace_run3"],
        ["bpf_prog_91c8619549516284_on_state_change", "bpf_trace_run3"],
        ["bpf_prog_91c8619549516284", "bpf_prog_91c8619549516284", "bpf_trace_run3"],
        # net.core.bpf_jit_kallsyms=0
        ["0xffffffffc0025bc0", "bpf_trace_run3"],
        # several programs on one tracepoint; the interpreter; a trampoline
        ["bpf_prog_91c8619549516284_x [bpf]", "bpf_trace_run3",
         "__bpf_trace_inet_sock_set_state", "__traceiter_inet_sock_set_state"],
        ["___bpf_prog_run", "__bpf_prog_run32", "bpf_trace_run3"],
        ["bpf_prog_91c8619549516284_x [bpf]", "bpf_trampoline_6442531234 [bpf]"],
        ["bpf_get_stackid_raw_tp", "bpf_prog_91c8619549516284_x [bpf]", "bpf_trace_run3"],
        ["bpf_prog_91c8619549516284_x [bpf]", "trace_call_bpf", "kprobe_perf_func",
         "kprobe_ftrace_handler", "ftrace_trampoline [__builtin__ftrace]"],
    ],
)  # fmt: skip
def test_the_tracing_itself_is_left_out(machinery):
    assert trimmed(machinery + CLOSE) == CLOSE


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["0xffffffffc0123456", "nf_hook_slow", "ip_output"],  # a module without a name stays
        ["0xffffffffc0123456", "0xffffffffc0123499"],
        ["tcp_set_state", "bpf_prog_91c8619549516284_x [bpf]", "bpf_trace_run3"],  # not innermost
        ["tcp_v4_rcv", "bpf_prog_run_generic_xdp", "do_xdp_generic"],
        ["bpf_prog_run_generic_xdp", "do_xdp_generic"],
        ["bpf_prog_test_run_skb", "__sys_bpf"],
        ["tracing_release", "__fput"],
    ],
)
def test_all_else_stays(names):
    assert trimmed(names) == names


@pytest.mark.skipif(os.geteuid() == 0, reason="root sees the addresses")
def test_without_root_they_are_hidden():
    assert KernelSymbols().hidden
