"""E: why Recv-Q of a LISTEN socket is not the number of rows below it."""

from __future__ import annotations

import signal

from tcptrace.lab.facts import Alive, Counted, Row, Sockets
from tcptrace.lab.scenario import CLIENT, SERVER, Scenario, Story, Verdict
from tcptrace.lab.scenarios.port_collision import GONE, client_life, queued_life
from tcptrace.lab.stage import Stage

_PORT, _OTHER_PORT, _BACKLOG = 12345, 12346, 1
_FIRST, _SECOND, _THIRD, _TWICE = 40001, 40002, 40003, 40004

_STOPPED = Alive("the first listener is stopped", "listener", "T")
_OTHER_STOPPED = Alive("and so is the second", "other listener", "T")
_TWO_AND_TWO = Sockets(
    "two clients, two ports: LISTEN Recv-Q 2 (one more than the backlog), two CLOSE_WAIT rows",
    SERVER,
    _PORT,
    (
        Row("LISTEN", 2, _BACKLOG, holder=("listener", 3)),
        Row("CLOSE_WAIT", 1, 0),
        Row("CLOSE_WAIT", 1, 0),
    ),
)
_KNOCKING = Sockets(
    "a third one stays in SYN_SENT, and sends its SYN again and again",
    CLIENT,
    _THIRD,
    (Row("SYN_SENT", 0, 1, timer="on", tries=1),),
)
_OVERFLOWN = Counted("the server's kernel drops each of them", SERVER, "ListenOverflows", 2)
_ONE_AND_ONE = Sockets(
    "one client, and its port is free again after FIN_WAIT2: LISTEN Recv-Q 1",
    SERVER,
    _OTHER_PORT,
    (Row("LISTEN", 1, _BACKLOG), Row("CLOSE_WAIT", 1, 0)),
)
_FREE = Sockets("the client's end is gone", CLIENT, _TWICE, ())
_TWO_AND_ONE = Sockets(
    "the same port again: LISTEN Recv-Q 2, but one CLOSE_WAIT row; the reset child has none",
    SERVER,
    _OTHER_PORT,
    (Row("LISTEN", 2, _BACKLOG, holder=("other listener", 3)), Row("CLOSE_WAIT", 1, 0)),
)


def _open(stage: Stage, role: str, port: int) -> None:
    listener = stage.start(role, SERVER, "lazy_listener", stage.address(SERVER), port, _BACKLOG)
    listener.hear("listening")
    listener.signal(signal.SIGSTOP)


def _play(stage: Stage) -> Story:
    _open(stage, "listener", _PORT)
    _open(stage, "other listener", _OTHER_PORT)
    yield f"Two listeners, ports {_PORT} and {_OTHER_PORT}, backlog {_BACKLOG}, are stopped."
    yield _STOPPED
    yield _OTHER_STOPPED
    stage.visit("first", _PORT, _FIRST)
    stage.visit("second", _PORT, _SECOND)
    yield "Two clients connect to the first from different ports, and close."
    yield _TWO_AND_TWO
    stage.start("third", CLIENT, "client", stage.address(SERVER), _PORT, _THIRD)
    yield _KNOCKING
    yield _OVERFLOWN
    stage.visit("early", _OTHER_PORT, _TWICE)
    yield _ONE_AND_ONE
    yield _FREE
    stage.visit("late", _OTHER_PORT, _TWICE)
    yield "Two clients connect to the second, one after the other, from the same port."
    yield _TWO_AND_ONE


_WAITS = "SYN_RECV ESTABLISHED CLOSE_WAIT", "fin_received"

SCENARIOS = (
    Scenario(
        name="accept-queue",
        letter="E",
        says="what stands in an accept queue, and what happens when it is full",
        teaches="Recv-Q of LISTEN counts places in the queue, also those of dead connections.",
        play=_play,
        expect=(
            _STOPPED,
            _OTHER_STOPPED,
            _TWO_AND_TWO,
            _KNOCKING,
            _OVERFLOWN,
            _ONE_AND_ONE,
            _FREE,
            _TWO_AND_ONE,
        ),
        lives=(
            queued_life(_PORT, _FIRST, *_WAITS, "listener"),
            queued_life(_PORT, _SECOND, *_WAITS, "listener"),
            queued_life(
                _OTHER_PORT,
                _TWICE,
                "SYN_RECV ESTABLISHED CLOSE_WAIT CLOSE",
                "rst_received",
                "other listener",
            ),
            queued_life(_OTHER_PORT, _TWICE, *_WAITS, "other listener"),
            client_life(_FIRST, _PORT, *GONE, "first"),
            client_life(_SECOND, _PORT, *GONE, "second"),
            client_life(_THIRD, _PORT, "SYN_SENT", "connect", "third"),
            client_life(_TWICE, _OTHER_PORT, *GONE, "early"),
            client_life(_TWICE, _OTHER_PORT, *GONE, "late"),
        ),
        verdicts=(
            Verdict("close-wait-never-accepted", _PORT, None, count=2),
            Verdict("close-wait-never-accepted", _OTHER_PORT, None),
            Verdict("accept-queue-full", _PORT, "listener", 3, count=2),
            Verdict("accept-queue-dead-entries", _OTHER_PORT, "other listener", 3, count=2),
        ),
        settings={CLIENT: {"net.ipv4.tcp_fin_timeout": 2}},
    ),
)
