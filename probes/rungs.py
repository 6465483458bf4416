"""The ladder: for each fact, the best hook that this kernel offers.

Chosen from tracefs, BTF and /proc, never from the version number. ``doctor``
prints the outcome; ``start`` events carry it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tcptrace.probes.engine import tracefs
from tcptrace.probes.engine.compiled import Hook
from tcptrace.probes.engine.errors import KernelRefusedError

CGROUP2_MOUNTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to learn a fact. ``offered`` asks the kernel."""

    name: str
    offered: Callable[[], bool]
    hooks: tuple[Hook, ...] = ()
    definitions: Callable[[], dict[str, int]] = dict


@dataclass(frozen=True, slots=True)
class Fact:
    """Something tcptrace needs to know; its rungs, best first.

    ``without`` says what the user loses where no rung is offered; a fact whose
    ``without`` is empty is indispensable.
    """

    name: str
    rungs: tuple[Rung, ...]
    without: str = ""


@dataclass(slots=True)
class Standing:
    """What was chosen: fact name -> rung (None: none offered)."""

    chosen: dict[str, Rung | None] = field(default_factory=dict)

    @property
    def hooks(self) -> tuple[Hook, ...]:
        return tuple(hook for rung in self.chosen.values() if rung for hook in rung.hooks)

    @property
    def definitions(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for rung in self.chosen.values():
            if rung:
                found |= rung.definitions()
        return found

    def described(self) -> list[str]:
        """``fact: rung`` lines."""
        return [f"{fact}: {rung.name if rung else 'none'}" for fact, rung in self.chosen.items()]


def climb(facts: Sequence[Fact]) -> Standing:
    """Pick the first rung that is offered, for each fact.

    Raises:
        KernelRefusedError: an indispensable fact has none.
    """
    standing = Standing()
    for fact in facts:
        rung = next((rung for rung in fact.rungs if rung.offered()), None)
        if rung is None and not fact.without:
            wanted = " or ".join(rung.name for rung in fact.rungs)
            raise KernelRefusedError(
                f"this kernel does not offer {wanted}",
                help=f"Without it tcptrace cannot learn: {fact.name}.",
            )
        standing.chosen[fact.name] = rung
    return standing


def cgroup2_root() -> str | None:
    """Where the unified hierarchy is mounted."""
    for folder in CGROUP2_MOUNTS:
        if (Path(folder) / "cgroup.controllers").is_file():
            return folder
    return None


def tracepoint(name: str) -> Callable[[], bool]:
    """Offered if the kernel has this tracepoint."""
    return lambda: tracefs.exists(name)


def _accept_definitions() -> dict[str, int]:
    offset = tracefs.fields("syscalls:sys_exit_accept4")["ret"]
    return {"ACCEPT_BY_SYSCALL": 1, "O_sys_exit_accept__ret": offset}


def _cookie_hooks() -> tuple[Hook, ...]:
    root = cgroup2_root()
    if root is None:
        return ()
    return (
        Hook("number_new_socket", "cgroup_sock", root),
        Hook("number_new_child", "sock_ops", root),
    )


TRANSITION = Fact(
    "state transition",
    (
        Rung(
            "raw tracepoint sock:inet_sock_set_state",
            tracepoint("sock:inet_sock_set_state"),
            (Hook("on_state_change", "raw", "inet_sock_set_state"),),
        ),
    ),
)

ACCEPTED = Fact(
    "owner by accept",
    (
        Rung(
            "tracepoints syscalls:sys_exit_accept, sys_exit_accept4 and the descriptor table",
            tracepoint("syscalls:sys_exit_accept4"),
            (
                Hook("on_accept_exit", "tracepoint", "syscalls:sys_exit_accept"),
                Hook("on_accept_exit", "tracepoint", "syscalls:sys_exit_accept4"),
            ),
            _accept_definitions,
        ),
    ),
    without="who accepted a connection is looked up in /proc, which misses short ones",
)

_IO_CALLS = {
    "read": ("read", "readv", "recvfrom", "recvmsg"),
    "write": ("write", "writev", "sendto", "sendmsg", "sendfile64"),
}

LAST_IO = Fact(
    "reads and writes",
    (
        Rung(
            "raw tracepoints sock:sock_send_length, sock_recv_length",
            tracepoint("sock:sock_recv_length"),
            (
                Hook("on_send", "raw", "sock_send_length"),
                Hook("on_receive", "raw", "sock_recv_length"),
            ),
            lambda: {"HAVE_IO_LENGTH": 1},
        ),
        Rung(
            "tracepoints of the system calls' exits: read, recvfrom, ... (before 6.3)",
            tracepoint("syscalls:sys_exit_read"),
            tuple(
                Hook(f"on_{what}_exit", "tracepoint", f"syscalls:sys_exit_{call}")
                for what, calls in _IO_CALLS.items()
                for call in calls
            ),
            lambda: {"IO_BY_SYSCALL": 1},
        ),
    ),
    without="no stacks of reads and writes; a socket passed by SCM_RIGHTS is looked up in /proc",
)

DESTROYED = Fact(
    "end of a socket",
    (
        Rung(
            "raw tracepoint tcp:tcp_destroy_sock",
            tracepoint("tcp:tcp_destroy_sock"),
            (Hook("on_destroy", "raw", "tcp_destroy_sock"),),
        ),
    ),
)


def cookie() -> Fact:
    """A function, as where cgroup2 is mounted may change between two runs in one process."""
    return Fact(
        "cookie",
        (
            Rung(
                "cgroup programs that make the kernel number each socket at birth",
                lambda: cgroup2_root() is not None,
                _cookie_hooks(),
            ),
        ),
        without="new sockets get tcptrace's own numbers (t...), which ss does not know",
    )


PROCESS_EXIT = Fact(
    "end of a process",
    (
        Rung(
            "raw tracepoint sched:sched_process_exit",
            tracepoint("sched:sched_process_exit"),
            (Hook("on_process_exit", "raw", "sched_process_exit"),),
        ),
    ),
)

FORK = Fact(
    "children of a traced process",
    (
        Rung(
            "raw tracepoint sched:sched_process_fork",
            tracepoint("sched:sched_process_fork"),
            (Hook("on_fork", "raw", "sched_process_fork"),),
        ),
    ),
)


def _mmap_definitions() -> dict[str, int]:
    offsets = tracefs.fields("syscalls:sys_enter_mmap")
    found = {f"O_sys_enter_mmap__{name}": offsets[name] for name in ("prot", "fd")}
    return found | {"CODE_IS_FOLLOWED": 1}


LOADED = Fact(
    "loaded code",
    (
        Rung(
            "tracepoints syscalls:sys_enter_mmap, sched:sched_process_exec, sched_process_fork",
            tracepoint("syscalls:sys_enter_mmap"),
            (
                Hook("on_mmap", "tracepoint", "syscalls:sys_enter_mmap"),
                Hook("on_exec", "raw", "sched_process_exec"),
                Hook("on_child", "raw", "sched_process_fork"),
            ),
            _mmap_definitions,
        ),
    ),
    without="a library loaded in place of another one of the same size is taken for it in stacks",
)


def _reset_definitions() -> dict[str, int]:
    """The reason is told since 6.10 (commit 19822a980e19)."""
    return {"HAVE_RESET_REASON": 1} if "reason" in tracefs.fields("tcp:tcp_send_reset") else {}


RESETS = Fact(
    "RST",
    (
        Rung(
            "raw tracepoints tcp:tcp_send_reset, tcp_receive_reset",
            tracepoint("tcp:tcp_send_reset"),
            (
                Hook("on_reset_sent", "raw", "tcp_send_reset"),
                Hook("on_reset_received", "raw", "tcp_receive_reset"),
            ),
            _reset_definitions,
        ),
    ),
    without="RSTs are known only by the transitions that they cause",
)

SIGPIPE = Fact(
    "SIGPIPE",
    (
        Rung(
            "raw tracepoint signal:signal_generate",
            tracepoint("signal:signal_generate"),
            (Hook("on_signal", "raw", "signal_generate"),),
        ),
    ),
    without="whether a failed write brought a SIGPIPE is not known",
)

END = Fact(
    "how a process ended",
    (
        Rung(
            "raw tracepoint sched:sched_process_exit",
            tracepoint("sched:sched_process_exit"),
            (Hook("on_end", "raw", "sched_process_exit"),),
        ),
    ),
)


def needed(*, by_pid: bool, follow: bool, stacks: bool = False, deeds: bool = False) -> list[Fact]:
    """The facts of ``states``, with these filters, in the order of attaching.

    Transitions come last: whoever sees one also sees how its socket is numbered,
    accepted and destroyed.
    """
    facts = [cookie(), DESTROYED, ACCEPTED, LAST_IO]
    if stacks:
        facts.append(LOADED)
    if deeds:
        facts += [RESETS, SIGPIPE, END]  # the end before the pid is forgotten
    if by_pid:
        facts.append(PROCESS_EXIT)
    if by_pid and follow:
        facts.append(FORK)
    return [*facts, TRANSITION]
