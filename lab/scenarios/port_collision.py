"""D: a new connection from the same port meets the old one, which waits in CLOSE_WAIT."""

from __future__ import annotations

import signal
from dataclasses import replace

from tcptrace.lab.facts import Alive, Counted, Row, Sockets
from tcptrace.lab.scenario import CLIENT, SERVER, Life, Scenario, Story, Verdict
from tcptrace.lab.sources import frames
from tcptrace.lab.stage import Stage

_PORT, _CLIENT_PORT, _BACKLOG = 12345, 40001, 5
_DIAL = frames("client", "dial", "main dial")

_STOPPED = Alive("the listener is stopped: it accepts nobody", "listener", "T")
_OLD = Sockets(
    "the server's end is in CLOSE_WAIT, in the accept queue (LISTEN Recv-Q 1), nobody's",
    SERVER,
    _PORT,
    (Row("LISTEN", 1, _BACKLOG, holder=("listener", 3)), Row("CLOSE_WAIT", 1, 0)),
)
_WAITING = Sockets(
    "the client's kernel waits in FIN_WAIT2",
    CLIENT,
    _CLIENT_PORT,
    (Row("FIN_WAIT2", 0, 0, timer="timewait"),),
)
_FREE = Sockets("and then it is gone: the port is free again", CLIENT, _CLIENT_PORT, ())
_CHALLENGED = Counted(
    "the CLOSE_WAIT socket answered the SYN with an ACK of its own numbers",
    SERVER,
    "TCPChallengeACK",
    1,
    1,
)
_RESET = Counted(
    "the client's kernel answered that with a RST, which ended the old socket",
    CLIENT,
    "OutRsts",
    1,
    1,
)
_AGAIN = Counted("the SYN was sent a second time", CLIENT, "TCPSynRetrans", 1, 1)
_NEW = Sockets(
    "the old socket has no row any more, but still its place in the queue (Recv-Q 2)",
    SERVER,
    _PORT,
    (Row("LISTEN", 2, _BACKLOG), Row("ESTABLISHED", 0, 0)),
)


def _play(stage: Stage) -> Story:
    listener = stage.start(
        "listener", SERVER, "lazy_listener", stage.address(SERVER), _PORT, _BACKLOG
    )
    listener.hear("listening")
    listener.signal(signal.SIGSTOP)
    yield f"A listener (pid {listener.pid}) on port {_PORT} is stopped with SIGSTOP."
    yield _STOPPED
    stage.connect("first client", _PORT, _CLIENT_PORT).leave()
    yield f"A client connects from port {_CLIENT_PORT} and exits."
    yield from (_WAITING, _OLD, _FREE)
    second = stage.start(
        "second client", CLIENT, "client", stage.address(SERVER), _PORT, _CLIENT_PORT
    )
    seconds = float(second.hear("connected")[1])
    yield f"Another one connects from the same port. Its connect() took {seconds:.3f} s."
    yield "(Kernels before 5.6 sent the SYN again after 1 s; since then it is after two ticks.)"
    yield from (_CHALLENGED, _RESET, _AGAIN, _NEW)


def queued_life(port: int, peer: int, path: str, reason: str, listener: str) -> Life:
    """A connection in the accept queue: nobody's."""
    return Life(SERVER, port, peer, path, reason, None, listener=listener)


def client_life(own_port: int, port: int, path: str, reason: str, role: str) -> Life:
    """A client's end, as it was dialled."""
    return Life(CLIENT, own_port, port, path, reason, role, stacks={"birth": _DIAL}, fd=3)


GONE = "SYN_SENT ESTABLISHED FIN_WAIT1 FIN_WAIT2 CLOSE", "orphan_fin_wait2"
"""A client that closed, and whose peer never did."""

SCENARIOS = (
    Scenario(
        name="port-collision",
        letter="D",
        says="a SYN meets a CLOSE_WAIT socket of the same four-tuple",
        teaches="An old CLOSE_WAIT takes the new SYN for an error: ACK, RST, and the SYN again.",
        play=_play,
        expect=(_STOPPED, _WAITING, _OLD, _FREE, _CHALLENGED, _RESET, _AGAIN, _NEW),
        lives=(
            queued_life(
                _PORT,
                _CLIENT_PORT,
                "SYN_RECV ESTABLISHED CLOSE_WAIT CLOSE",
                "rst_received",
                "listener",
            ),
            queued_life(_PORT, _CLIENT_PORT, "SYN_RECV ESTABLISHED", "handshake", "listener"),
            replace(client_life(_CLIENT_PORT, _PORT, *GONE, "first client"), hasty=True),
            client_life(
                _CLIENT_PORT, _PORT, "SYN_SENT ESTABLISHED", "syn_ack_received", "second client"
            ),
        ),
        verdicts=(
            Verdict("close-wait-never-accepted", _PORT, None),
            Verdict("connect-met-close-wait", _CLIENT_PORT, "second client", 3, _DIAL[0]),
        ),
        settings={CLIENT: {"net.ipv4.tcp_fin_timeout": 2}},
    ),
)
