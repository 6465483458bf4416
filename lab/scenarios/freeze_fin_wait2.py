"""F: FIN_WAIT2 on one side and CLOSE_WAIT on the other, seen from both ends."""

from __future__ import annotations

from tcptrace.lab.facts import Alive, Row, Sockets
from tcptrace.lab.scenario import CLIENT, SERVER, Life, Scenario, Story, Verdict
from tcptrace.lab.scenarios.server_close_wait import FIN_TIMEOUT, client_life
from tcptrace.lab.sources import frames
from tcptrace.lab.stage import Stage

_PORT, _CLIENT_PORT, _SERVER_FD = 8000, 40001, 4

_BUSY = Alive("the server's thread sleeps, in poll() without any descriptor", "server", "S")
_UNREAD = Sockets(
    "the server is in CLOSE_WAIT with Recv-Q 4: 3 unread bytes, and the FIN counts one",
    SERVER,
    _PORT,
    (Row("CLOSE_WAIT", 4, 0, holder=("server", _SERVER_FD)),),
    peer=_CLIENT_PORT,
)
_TIMED = Sockets(
    "the client's kernel waits in FIN_WAIT2: no process, a timer of tcp_fin_timeout",
    CLIENT,
    _CLIENT_PORT,
    (Row("FIN_WAIT2", 0, 0, timer="timewait"),),
)
_GONE = Sockets("when it expires, the client's end is gone", CLIENT, _CLIENT_PORT, ())
_STAYS = Sockets(
    "the server's end stays, and nothing will ever wake it",
    SERVER,
    _PORT,
    (Row("CLOSE_WAIT", 4, 0, holder=("server", _SERVER_FD)),),
    peer=_CLIENT_PORT,
)


def _play(stage: Stage) -> Story:
    server = stage.start("server", SERVER, "busy_server", stage.address(SERVER), _PORT)
    server.hear("listening")
    client = stage.connect("client", _PORT, _CLIENT_PORT)
    server.hear("accepted")
    yield f"A server (pid {server.pid}) accepts a client, and then waits for something else."
    yield _BUSY
    client.say("send 3")
    client.hear("sent")
    client.say("close")
    client.hear("closed")
    yield f"The client (pid {client.pid}) sends 3 bytes and closes."
    yield from (_TIMED, _UNREAD, _GONE, _STAYS)


_BIRTH = frames("busy_server", "accept_client", "serve accept", "main")

SCENARIOS = (
    Scenario(
        name="freeze-fin-wait2",
        letter="F",
        says="the client closes, the server never reads again: FIN_WAIT2 and CLOSE_WAIT",
        teaches="FIN_WAIT2 without a process ends by a timer, CLOSE_WAIT by the program alone.",
        play=_play,
        expect=(_BUSY, _TIMED, _UNREAD, _GONE, _STAYS),
        lives=(
            Life(
                SERVER,
                _PORT,
                _CLIENT_PORT,
                "SYN_RECV ESTABLISHED CLOSE_WAIT",
                "fin_received",
                "server",
                stacks={"birth": _BIRTH},
                fd=_SERVER_FD,
            ),
            client_life(
                "SYN_SENT ESTABLISHED FIN_WAIT1 FIN_WAIT2 CLOSE",
                "orphan_fin_wait2",
                close=frames("client", "hang_up", "main close"),
            ),
        ),
        verdicts=(Verdict("close-wait-never-read", _PORT, "server", _SERVER_FD, _BIRTH[0]),),
        settings={CLIENT: {FIN_TIMEOUT: 2}},
    ),
)
