"""Numbers that both halves use. They are defined here and reach the C half as -D.

The TCP states are kernel ABI (include/net/tcp_states.h, pinned for BPF since
5.x by BPF_TCP_*); everything else is tcptrace's own.
"""

from __future__ import annotations

import enum
import socket


class TcpState(enum.IntEnum):
    """The kernel's names of include/net/tcp_states.h, without the prefix TCP_."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12


class How(enum.IntEnum):
    """How the owner of a socket was learnt."""

    UNKNOWN = 0
    ACCEPT = 1
    CONNECT = 2
    LISTEN = 3
    FORK = 4
    LAST_IO = 5
    FD_SCAN = 6
    CLOSE = 7


class Kind(enum.IntEnum):
    """What a record of the ring buffer tells."""

    STATE = 1
    ACCEPTED = 2
    """A child was accepted: its SYN_RECV and ESTABLISHED, with the owner."""
    EXISTING = 3
    """A socket came into a traced process's hands that the table did not know."""
    WAITING = 4
    """A child that has waited in its accept queue for some time, not accepted yet."""


class Fact(enum.IntFlag):
    """What was true of the socket at the moment of the transition."""

    TRACKED = 1
    VERIFIED = 2
    LOCKED_BY_CURRENT = 4
    ORPHAN = 8
    FIN_RECEIVED = 16
    LINGER_ZERO = 32
    HAS_SOCKET = 64
    HAS_FILE = 128
    FILE_CLOSING = 256
    CURRENT_EXITING = 512
    IN_WINDOW = 1024
    TIME_WAIT_FULL = 2048
    CHILD = 4096
    """No accept() of it has returned yet."""


class Count(enum.IntEnum):
    """Slots of the kernel's loss counters."""

    RING_FULL = 0
    TABLE_FULL = 1
    LISTENERS_FULL = 2
    TAKEN_OVER = 3
    """Not a loss: events that the first copy of a program missed and a later one took."""
    STACKS_SUPPRESSED = 4
    """Not a lost event: a stack that is not known, as too many new ones came in one second."""
    DEEDS_FULL = 5


COPIES = 2
"""In how many copies a program is loaded that may interrupt itself (bpf/nesting.h)."""


class Adopt(enum.IntEnum):
    """What the adoption of an older socket came to."""

    DONE = 1
    KNOWN = 2
    NO_TASK = 3
    NO_FILE = 4
    NOT_WANTED = 5
    NO_ROOM = 6
    DONE_LISTENER = 7
    """Done, and its accept queue can be adopted next."""
    ONLY_LISTENER = 8
    """The same, but the listener itself is filtered out."""


class Setting(enum.IntEnum):
    """Slots of the map that user space and the programs share."""

    WINDOW = 0
    """1 from attach until the inventory is in the table."""
    QUEUE = 1
    """Where the adoption of an accept queue goes on."""
    SELF = 2
    """The tracer's pid."""
    LISTENED = 3
    """1 once a listener has been in the table: from then on there may be children."""
    ATTACHED = 4
    """1 once every hook is on: what is told before could miss its next transition."""


class Row(enum.IntEnum):
    """How a row of a call frame table finds the CFA, the caller's stack pointer."""

    SP = 1
    """Stack pointer + offset."""
    FP = 2
    """Frame pointer + offset."""
    FP_DEREF = 3
    """What stands at frame pointer + offset (a function that realigns its stack)."""
    SIGNAL = 4
    """A signal handler's return: the registers lie in the signal frame at the stack pointer."""
    END = 5
    """The outermost frame."""
    GUESS = 6
    """No table covers this code: by frame pointer, as FP, and marked."""
    LOST = 7
    """The walk cannot go on from here."""


class Deed(enum.IntEnum):
    """What a record of the ring ``deeds`` tells."""

    EOF = 1
    WRITE_ERROR = 2
    RESET_SENT = 3
    RESET_RECEIVED = 4
    EXIT = 5


class Pipe(enum.IntEnum):
    """What a SIGPIPE would do; 0: none was sent (MSG_NOSIGNAL)."""

    DEFAULT = 1
    IGNORED = 2
    HANDLED = 3
    BLOCKED = 4


class Walk(enum.IntEnum):
    """How a walk up a stack ended."""

    GOES_ON = 0
    COMPLETE = 1
    MISSING = 2
    """No row for this address yet: never the end of a finished walk."""
    DEEP = 3
    """More frames than are walked."""
    UNREADABLE = 4
    """The stack's memory could not be read."""
    LOST = 5
    """No way on from the last address: no code, or a table that cannot be followed."""
    NOT_COPIED = 6
    """User space came to the end of its copy of the stack."""


class Stack(enum.IntEnum):
    """Ids of user stacks that have no frames, and the bits of those that have."""

    NONE = 0
    """The owner was not running."""
    SUPPRESSED = 1
    USER32 = 2
    """A 32-bit program: its stack is not read."""
    COLLISION = 3
    """A kernel stack whose place in the kernel's table is taken by another."""
    FIRST_CHAIN = 16
    """This bit is set in the id of every finished walk."""
    UNFINISHED = 1 << 63
    """A snapshot, to be finished by user space."""


def definitions() -> dict[str, int]:
    """All of the above as C constants, ``TCP_LISTEN=10`` and so on."""
    named: dict[str, type[enum.IntEnum] | type[enum.IntFlag]] = {
        "TCP": TcpState,
        "HOW": How,
        "KIND": Kind,
        "FACT": Fact,
        "COUNT": Count,
        "ADOPT": Adopt,
        "SETTING": Setting,
        "ROW": Row,
        "DEED": Deed,
        "PIPE": Pipe,
        "WALK": Walk,
        "STACK": Stack,
    }
    found = {f"{prefix}_{item.name}": int(item) for prefix, kind in named.items() for item in kind}
    found |= {
        "COUNT_SLOTS": len(Count),
        "SETTING_SLOTS": len(Setting),
        "AF_INET": int(socket.AF_INET),
        "AF_INET6": int(socket.AF_INET6),
        "IPPROTO_TCP": int(socket.IPPROTO_TCP),
        "COPIES": COPIES,
        "IPPROTO_MPTCP": 262,  # socket.IPPROTO_MPTCP is there since Python 3.10, on some builds
    }
    return found
