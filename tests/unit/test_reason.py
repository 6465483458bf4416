"""Why a transition happened: one row per way through the kernel's code that leads there."""

import errno

import pytest

from tcptrace.probes.engine.constants import Fact, TcpState
from tcptrace.probes.enrich.reason import REASONS, Cause, cause

S = TcpState
HELD = Fact.HAS_SOCKET | Fact.HAS_FILE
IN_CALL = HELD | Fact.LOCKED_BY_CURRENT  # the owner's own system call
CLOSING = IN_CALL | Fact.FILE_CLOSING  # inside the last close(), before sock_orphan()
EXITING = CLOSING | Fact.CURRENT_EXITING
ORPHANED = CLOSING | Fact.ORPHAN  # inside close(), behind sock_orphan()
ORPHAN = Fact.ORPHAN  # after close(): no struct socket any more
UNACCEPTED = Fact(0)  # a child in the accept queue: no struct socket yet

# old, new, facts, sk_err, accepted, outlived -> reason, became; and where the kernel does it
TABLE = [
    # tcp_v4_connect, tcp_finish_connect (tcp_rcv_synsent_state_process)
    (S.CLOSE, S.SYN_SENT, IN_CALL, 0, False, False, "connect", None),
    (S.SYN_SENT, S.ESTABLISHED, HELD, 0, False, False, "syn_ack_received", None),
    # tcp_rcv_synsent_state_process: simultaneous open
    (S.SYN_SENT, S.SYN_RECV, HELD, 0, False, False, "syn_received", None),
    # inet_csk_listen_start; tcp_create_openreq_child; tcp_rcv_state_process
    (S.CLOSE, S.LISTEN, IN_CALL, 0, False, False, "listen", None),
    (S.LISTEN, S.SYN_RECV, UNACCEPTED, 0, False, False, "syn_received", None),
    (S.SYN_RECV, S.ESTABLISHED, UNACCEPTED, 0, False, False, "handshake", None),
    (S.SYN_RECV, S.ESTABLISHED, HELD, 0, True, False, "accept", None),
    # tcp_fin()
    (S.ESTABLISHED, S.CLOSE_WAIT, HELD, 0, False, False, "fin_received", None),
    (S.FIN_WAIT1, S.CLOSING, ORPHAN, 0, False, False, "fin_received", None),
    # tcp_rcv_state_process, case TCP_FIN_WAIT1
    (S.FIN_WAIT1, S.FIN_WAIT2, ORPHAN, 0, False, False, "ack_received", None),
    # tcp_close_state() of __tcp_close() and of tcp_shutdown()
    (S.ESTABLISHED, S.FIN_WAIT1, CLOSING, 0, False, False, "local_close", None),
    (S.CLOSE_WAIT, S.LAST_ACK, CLOSING, 0, False, False, "local_close", None),
    (S.ESTABLISHED, S.FIN_WAIT1, EXITING, 0, False, False, "process_exit", None),
    (S.CLOSE_WAIT, S.LAST_ACK, EXITING, 0, False, False, "process_exit", None),
    (S.ESTABLISHED, S.FIN_WAIT1, IN_CALL, 0, False, False, "shutdown", None),
    (S.CLOSE_WAIT, S.LAST_ACK, IN_CALL, 0, False, False, "shutdown", None),
    # tcp_close_state() after shutdown(): new_state[] keeps the state, and the tracepoint fires
    (S.FIN_WAIT2, S.FIN_WAIT2, CLOSING, 0, False, False, "local_close", None),
    (S.CLOSING, S.CLOSING, CLOSING, 0, False, False, "local_close", None),
    (S.FIN_WAIT1, S.FIN_WAIT1, EXITING, 0, False, False, "process_exit", None),
    # inet_csk_listen_stop by close() and by shutdown()
    (S.LISTEN, S.CLOSE, CLOSING, 0, False, False, "local_close", "gone"),
    (S.LISTEN, S.CLOSE, EXITING, 0, False, False, "process_exit", "gone"),
    (S.LISTEN, S.CLOSE, IN_CALL, 0, False, False, "shutdown", "gone"),
    # inet_child_forget(): whatever stands in the accept queue goes with its listener
    (S.ESTABLISHED, S.CLOSE, UNACCEPTED, 0, False, False, "listener_closed", "gone"),
    (S.CLOSE_WAIT, S.CLOSE, UNACCEPTED, 0, False, False, "listener_closed", "gone"),
    # tcp_reset(): EPIPE in CLOSE_WAIT, ECONNREFUSED in SYN_SENT, else ECONNRESET
    (S.ESTABLISHED, S.CLOSE, HELD, errno.ECONNRESET, False, False, "rst_received", "gone"),
    (S.CLOSE_WAIT, S.CLOSE, HELD, errno.EPIPE, False, False, "rst_received", "gone"),
    (S.SYN_SENT, S.CLOSE, HELD, errno.ECONNREFUSED, False, False, "refused", "gone"),
    (S.ESTABLISHED, S.CLOSE, UNACCEPTED, errno.ECONNRESET, False, False, "rst_received", "gone"),
    (S.LAST_ACK, S.CLOSE, ORPHAN, errno.ECONNRESET, False, False, "rst_received", "gone"),
    # tcp_reset() from a packet while close() waits for the socket's lock: not by close()
    (
        *(S.ESTABLISHED, S.CLOSE, HELD | Fact.FILE_CLOSING, errno.ECONNRESET, False, False),
        *("rst_received", "gone"),
    ),
    # the same for an orphan: a RST came, or data after close() (LINUX_MIB_TCPABORTONDATA)
    (S.FIN_WAIT1, S.CLOSE, ORPHAN, errno.ECONNRESET, False, False, "reset", "gone"),
    (S.FIN_WAIT2, S.CLOSE, ORPHAN, errno.ECONNRESET, False, False, "reset", "gone"),
    # tcp_write_err(): sk_err_soft, else ETIMEDOUT; tcp_abort(); tcp_v4_err()
    (S.ESTABLISHED, S.CLOSE, HELD, errno.ETIMEDOUT, False, False, "timeout", "gone"),
    (S.FIN_WAIT1, S.CLOSE, ORPHAN, errno.ETIMEDOUT, False, False, "timeout", "gone"),
    (S.SYN_SENT, S.CLOSE, HELD, errno.EHOSTUNREACH, False, False, "unreachable", "gone"),
    (S.SYN_SENT, S.CLOSE, HELD, errno.ENETUNREACH, False, False, "unreachable", "gone"),
    (S.ESTABLISHED, S.CLOSE, HELD, errno.ECONNABORTED, False, False, "aborted", "gone"),
    # __tcp_close(): data_was_unread, or SO_LINGER 0; both are decided before sock_orphan()
    (S.ESTABLISHED, S.CLOSE, CLOSING, 0, False, False, "rst_sent_unread", "gone"),
    (S.CLOSE_WAIT, S.CLOSE, EXITING, 0, False, False, "rst_sent_unread", "gone"),
    (S.FIN_WAIT2, S.CLOSE, CLOSING, 0, False, False, "rst_sent_unread", "gone"),
    (S.FIN_WAIT1, S.CLOSE, CLOSING, 0, False, False, "rst_sent_unread", "gone"),
    (
        *(S.ESTABLISHED, S.CLOSE, CLOSING | Fact.LINGER_ZERO, 0, False, False),
        *("rst_sent_linger", "gone"),
    ),
    (
        *(S.FIN_WAIT2, S.CLOSE, CLOSING | Fact.LINGER_ZERO, 0, False, False),
        *("rst_sent_linger", "gone"),
    ),
    # tcp_time_wait(TCP_TIME_WAIT): from tcp_fin() and from tcp_rcv_state_process
    (
        *(S.FIN_WAIT2, S.CLOSE, ORPHAN | Fact.FIN_RECEIVED, 0, False, False),
        *("fin_received", "time_wait"),
    ),
    (
        *(S.CLOSING, S.CLOSE, ORPHAN | Fact.FIN_RECEIVED, 0, False, False),
        *("ack_received", "time_wait"),
    ),
    # no room in tcp_max_tw_buckets: inet_twsk_alloc() says no
    (
        *(S.FIN_WAIT2, S.CLOSE, ORPHAN | Fact.FIN_RECEIVED | Fact.TIME_WAIT_FULL, 0, False),
        *(False, "fin_received", "gone"),
    ),
    # tcp_time_wait(TCP_FIN_WAIT2): at the end of __tcp_close(), or when the ACK comes later
    (S.FIN_WAIT2, S.CLOSE, ORPHANED, 0, False, False, "orphan_fin_wait2", "fin_wait2"),
    (S.FIN_WAIT2, S.CLOSE, ORPHAN, 0, False, False, "orphan_fin_wait2", "fin_wait2"),
    (S.FIN_WAIT2, S.CLOSE, ORPHAN, 0, False, True, "timeout", "gone"),
    # tcp_rcv_state_process, case TCP_LAST_ACK
    (S.LAST_ACK, S.CLOSE, ORPHAN, 0, False, False, "ack_received", "gone"),
    # tcp_close_state(): SYN_SENT -> CLOSE
    (S.SYN_SENT, S.CLOSE, CLOSING, 0, False, False, "local_close", "gone"),
    (S.SYN_SENT, S.CLOSE, EXITING, 0, False, False, "process_exit", "gone"),
    # tcp_disconnect(): connect(AF_UNSPEC), shutdown() in SYN_SENT
    (S.ESTABLISHED, S.CLOSE, IN_CALL, 0, False, False, "disconnect", "gone"),
    (S.FIN_WAIT2, S.CLOSE, IN_CALL, 0, False, False, "disconnect", "gone"),
    (S.SYN_SENT, S.CLOSE, IN_CALL, 0, False, False, "disconnect", "gone"),
    # nothing that we know of
    (S.ESTABLISHED, S.CLOSE, HELD, 0, False, False, "other", "gone"),
]


def told(row):
    return f"{row[0].name}-{row[1].name}-{row[6]}"


@pytest.mark.parametrize("row", TABLE, ids=told)
def test_the_reason_is_the_kernels(row):
    assert cause(*row[:6]) == Cause(row[6], row[7])


def test_every_documented_reason_is_reached():
    assert {row[6] for row in TABLE} == set(REASONS)


def test_whatever_comes_gets_a_documented_reason_and_only_close_becomes_something():
    facts = [*Fact, Fact(0), HELD, CLOSING, ORPHANED, EXITING]
    for old in TcpState:
        for new in TcpState:
            for fact in facts:
                for error in (0, errno.ECONNRESET, errno.EPROTO):
                    found = cause(old, new, fact, error, False, False)
                    assert found.reason in REASONS
                    assert (found.became is not None) == (new == S.CLOSE)
