"""Why a RST was sent: by the kernel's word, or from what is known of the socket."""

import pytest

from tcptrace.probes.engine.constants import Fact
from tcptrace.probes.enrich import resetreason
from tcptrace.probes.enrich.resetreason import REASONS, kernels_word, reason

CLOSING = Fact.FILE_CLOSING | Fact.LOCKED_BY_CURRENT


@pytest.mark.parametrize(
    ("kernels", "facts", "state", "expected"),
    [
        # before 6.10 the kernel says nothing
        (None, CLOSING, "CLOSE", "unread_data"),
        (None, CLOSING | Fact.LINGER_ZERO, "CLOSE", "linger_zero"),
        (None, Fact.ORPHAN, "FIN_WAIT2", "data_after_close"),
        (None, 0, "LISTEN", "listener"),
        (None, 0, "TIME_WAIT", "time_wait"),
        (None, 0, "NEW_SYN_RECV", "handshake"),
        (None, 0, "SYN_SENT", "handshake"),
        (None, 0, "ESTABLISHED", "other"),
        (None, 0, None, "other"),
        # since then
        ("TCP_ABORT_ON_CLOSE", CLOSING, "CLOSE", "unread_data"),
        ("TCP_ABORT_ON_DATA", Fact.ORPHAN, "CLOSE", "data_after_close"),
        ("TCP_ABORT_ON_LINGER", 0, "CLOSE", "linger_zero"),
        ("TCP_KEEPALIVE_TIMEOUT", 0, "ESTABLISHED", "keepalive"),
        ("TCP_TIMEOUT", Fact.ORPHAN, "FIN_WAIT1", "timeout"),
        ("TCP_ABORT_ON_MEMORY", Fact.ORPHAN, "FIN_WAIT1", "memory"),
        ("TCP_INVALID_ACK_SEQUENCE", 0, "NEW_SYN_RECV", "handshake"),
        ("NO_SOCKET", 0, None, "no_socket"),
        # close() with SO_LINGER 0 goes by way of tcp_disconnect(), and connect(AF_UNSPEC) too
        ("TCP_STATE", CLOSING | Fact.LINGER_ZERO, "CLOSE", "linger_zero"),
        ("TCP_STATE", Fact.LOCKED_BY_CURRENT, "CLOSE", "disconnect"),
        # linger, but data was left: that comes first in __tcp_close()
        ("TCP_ABORT_ON_CLOSE", CLOSING | Fact.LINGER_ZERO, "CLOSE", "unread_data"),
        # a word that is not known here
        ("A_NEW_ONE", 0, "TIME_WAIT", "time_wait"),
        ("NOT_SPECIFIED", Fact.ORPHAN, "FIN_WAIT2", "data_after_close"),
    ],
)
def test_sent(kernels, facts, state, expected):
    assert reason(kernels, facts, state, sent=True) == expected


def test_received():
    assert reason(None, CLOSING, "ESTABLISHED", sent=False) == "rst_received"


def test_every_reason_is_explained():
    assert set(resetreason._KERNELS.values()) <= set(REASONS)


@pytest.fixture
def words(monkeypatch):
    known = {0: "SK_RST_REASON_NOT_SPECIFIED", 20: "SK_RST_REASON_TCP_TIMEOUT"}
    monkeypatch.setattr(resetreason, "_words", lambda: known)


@pytest.mark.parametrize(
    ("value", "word"), [(20, "TCP_TIMEOUT"), (0, "NOT_SPECIFIED"), (21, None), (-1, None)]
)
def test_the_kernels_word(words, value, word):
    assert kernels_word(value) == word
