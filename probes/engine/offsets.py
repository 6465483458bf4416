"""Every kernel field that the C half reads, as -D constants.

``O_sock__sk_err`` is an offset and ``Z_sock__sk_err`` a width, in bytes. A field
of OPTIONAL that this kernel lacks gets no constant and its reader is compiled
out; one of REQUIRED stops the start with its name.
"""

from __future__ import annotations

import os
import platform

from tcptrace.probes.engine.btf import Btf
from tcptrace.probes.engine.errors import KernelRefusedError

REQUIRED = (
    "sock_common.skc_daddr",
    "sock_common.skc_rcv_saddr",
    "sock_common.skc_dport",
    "sock_common.skc_num",
    "sock_common.skc_family",
    "sock_common.skc_state",
    "sock_common.skc_net",
    "sock_common.skc_cookie",
    "sock_common.skc_flags",
    "sock.sk_protocol",
    "sock.sk_socket",
    "sock.sk_err",
    "sock.sk_shutdown",
    "sock.sk_lingertime",
    "sock.sk_lock.owned",
    "sock.sk_ack_backlog",
    "sock.sk_max_ack_backlog",
    "socket.file",
    "socket.sk",
    "file.f_inode",
    "file.private_data",
    "inode.i_ino",
    "inode.i_private",
    "inode.i_mode",
    "net.ns.inum",
    "net.ipv4.sysctl_tcp_fin_timeout",
    "inet_sock.inet_sport",
    "tcp_sock.rcv_nxt",
    "tcp_sock.copied_seq",
    "tcp_sock.write_seq",
    "tcp_sock.snd_una",
    "tcp_sock.linger2",
    "inet_connection_sock.icsk_accept_queue",
    "inet_connection_sock.icsk_rto",
    "request_sock_queue.rskq_accept_head",
    "request_sock_queue.rskq_accept_tail",
    "request_sock.sk",
    "request_sock.dl_next",
    "task_struct.tgid",
    "task_struct.pid",
    "task_struct.comm",
    "task_struct.cred",
    "task_struct.files",
    "task_struct.flags",
    "task_struct.stack",
    "task_struct.signal",
    "task_struct.children",
    "task_struct.sibling",
    "task_struct.group_leader",
    "task_struct.real_parent",
    "task_struct.start_boottime",
    "task_struct.pid_links",
    "signal_struct.live",
    "cred.uid",
    "pid.tasks",
    "files_struct.fdt",
    "fdtable.fd",
    "fdtable.max_fds",
)

OPTIONAL = (
    "task_struct.thread.fsbase",  # x86-64
    "sock_common.skc_v6_rcv_saddr",  # without CONFIG_IPV6
    "sock_common.skc_v6_daddr",
    "sock.sk_cgrp_data",  # without CONFIG_SOCK_CGROUP_DATA
    "cgroup.kn",
    "kernfs_node.id",
    "file.f_ref",  # since 6.13
    "file.f_count",  # until 6.12
)

DEEDS = (  # only for verdicts
    "task_struct.sighand",
    "task_struct.blocked",
    "task_struct.exit_code",
    "sighand_struct.action",
    "signal_struct.group_exit_code",
)

MPTCP = (  # all or none: without CONFIG_MPTCP
    "tcp_sock.is_mptcp",
    "inet_connection_sock.icsk_ulp_data",
    "mptcp_subflow_context.conn",
    "mptcp_sock.first",
)

STACKS = (  # only with user stacks
    "task_struct.mm",
    "mm_struct.start_code",
    "mm_struct.start_stack",
    "mm_struct.start_brk",
    "mm_struct.mmap_base",
    "mm_struct.exec_vm",
    "mm_struct.exe_file",
    "task_struct.thread_pid",
    "pid.level",
    "pid.numbers",
    "upid.nr",
)

_REGISTERS: dict[str, dict[str, tuple[str, int]]] = {
    "x86_64": {
        "first_argument": ("pt_regs.di", 0),
        "ip": ("pt_regs.ip", 0),
        "sp": ("pt_regs.sp", 0),
        "frame_pointer": ("pt_regs.bp", 0),
        "cs": ("pt_regs.cs", 0),
    },
    "aarch64": {
        "first_argument": ("pt_regs.orig_x0", 0),
        "pc": ("pt_regs.pc", 0),
        "sp": ("pt_regs.sp", 0),
        "frame_pointer": ("pt_regs.regs", 29 * 8),
        "link": ("pt_regs.regs", 30 * 8),
        "pstate": ("pt_regs.pstate", 0),
    },
}
"""Name in the C half -> field, and bytes into it."""

SIGNAL_FRAME = {
    # From the stack pointer in the trampoline: struct rt_sigframe without its return address
    # (arch/x86/include/asm/sigframe.h): uc_mcontext at 40, then r8-r15, di, si, bp, bx, dx, ax,
    # cx, sp, ip. ABI.
    "x86_64": {
        "SIGNAL_CONTEXT": 40,
        "SIGNAL_FRAME_POINTER": 80,
        "SIGNAL_STACK_POINTER": 120,
        "SIGNAL_PC": 128,
        "USER32_CS": 0x23,
    },
    # siginfo (128), then ucontext: uc_mcontext at 176, then fault_address, regs[31], sp, pc
    # (arch/arm64/kernel/signal.c). ABI.
    "aarch64": {
        "SIGNAL_CONTEXT": 128 + 176,
        "SIGNAL_FRAME_POINTER": 8 + 29 * 8,
        "SIGNAL_LINK": 8 + 30 * 8,
        "SIGNAL_STACK_POINTER": 8 + 31 * 8,
        "SIGNAL_PC": 8 + 32 * 8,
    },
}
_KERNEL_STACK_BYTES = 16384  # THREAD_SIZE of x86-64 and of arm64 with 4 KiB pages
_TASK_PT_REGS = "BPF_FUNC_task_pt_regs"  # 5.15, commit dd6e10fbd9fb


_EMBEDDED_DEATH_ROW = 64  # bytes; from 5.19 to 6.0 the field was a pointer


def constants(btf: Btf) -> dict[str, int]:
    """All offsets and widths.

    Raises:
        KernelRefusedError: the kernel has no such field, or the processor is
            one whose registers nobody wrote down.
    """
    found: dict[str, int] = {}
    for path in REQUIRED + STACKS + DEEDS + OPTIONAL:
        field = btf.field(path)
        if field is None and path not in OPTIONAL:
            raise _unknown_field(path)
        if field is not None:
            name = path.replace(".", "__")
            found[f"O_{name}"], found[f"Z_{name}"] = field.offset, field.size
    if not {"O_file__f_ref", "O_file__f_count"} & found.keys():
        raise _unknown_field("file.f_ref nor file.f_count")
    return found | _mptcp(btf) | _flags(btf) | _registers(btf) | _time_wait(btf)


def _unknown_field(path: str) -> KernelRefusedError:
    return KernelRefusedError(
        f"this kernel ({os.uname().release}) has no field {path}",
        help="tcptrace never reads a guess. Please report it with the output of\n"
        "tcptrace doctor --json.",
    )


def _mptcp(btf: Btf) -> dict[str, int]:
    fields = {path: btf.field(path) for path in MPTCP}
    found = {
        f"O_{path.replace('.', '__')}": field.offset for path, field in fields.items() if field
    }
    return found | {"HAVE_MPTCP": 1} if len(found) == len(MPTCP) else {}


def _flags(btf: Btf) -> dict[str, int]:
    names = btf.enum("sock_flags")
    wanted = ("SOCK_DEAD", "SOCK_DONE", "SOCK_LINGER")
    return {"SOCK_COMMON_BYTES": btf.size("sock_common")} | {name: names[name] for name in wanted}


def _registers(btf: Btf) -> dict[str, int]:
    machine = platform.machine()
    found = dict(SIGNAL_FRAME.get(machine, {}))
    for name, (path, within) in _REGISTERS.get(machine, {}).items():
        field = btf.field(path)
        if field is None:
            raise _unknown_field(path)
        found[f"O_pt_regs__{name}"] = field.offset + within
    if not found:
        raise KernelRefusedError(f"tcptrace does not know the registers of {machine}")
    found["UPID_BYTES"] = btf.size("upid")
    found["K_SIGACTION_BYTES"] = btf.size("k_sigaction")
    found["PT_REGS_BYTES"] = btf.size("pt_regs")
    found["KERNEL_STACK_BYTES"] = _KERNEL_STACK_BYTES
    if _TASK_PT_REGS in btf.enum("bpf_func_id"):
        found["HAVE_TASK_PT_REGS"] = 1
    return found


def _time_wait(btf: Btf) -> dict[str, int]:
    """The count of TIME_WAIT sockets, where it lies within the namespace itself (since 6.1)."""
    row = btf.field("net.ipv4.tcp_death_row")
    count = btf.field("inet_timewait_death_row.tw_refcount")
    limit = btf.field("inet_timewait_death_row.sysctl_max_tw_buckets")
    if not (row and count and limit) or row.size < _EMBEDDED_DEATH_ROW:
        return {}
    return {
        "O_net__ipv4__tcp_death_row": row.offset,
        "O_inet_timewait_death_row__tw_refcount": count.offset,
        "O_inet_timewait_death_row__sysctl_max_tw_buckets": limit.offset,
    }
