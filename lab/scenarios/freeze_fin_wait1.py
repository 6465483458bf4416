"""G: a firewall in between: FIN_WAIT1 here, LAST_ACK there, until both give up."""

from __future__ import annotations

from tcptrace.lab.facts import Counted, Row, Sockets
from tcptrace.lab.scenario import CLIENT, SERVER, Life, Scenario, Story, Verdict
from tcptrace.lab.scenarios.server_close_wait import CLIENT_PORT, PORT, client_life
from tcptrace.lab.sources import frames
from tcptrace.lab.stage import Stage

_ORPHAN_RETRIES = {"net.ipv4.tcp_orphan_retries": 2}

_FIN_WAIT1 = Sockets(
    "the client is in FIN_WAIT1, Send-Q 1 is its FIN, sent again already: no ACK arrives",
    CLIENT,
    CLIENT_PORT,
    (Row("FIN_WAIT1", 0, 1, timer="on", tries=1),),
)
_LAST_ACK = Sockets(
    "the server, which saw the FIN and closed, is in LAST_ACK, Send-Q 1 is its own FIN",
    SERVER,
    PORT,
    (Row("LAST_ACK", 0, 1, timer="on", tries=1),),
    peer=CLIENT_PORT,
)
_CLIENT_GONE = Sockets("after tcp_orphan_retries the client's end is gone", CLIENT, CLIENT_PORT, ())
_SERVER_GONE = Sockets("and so is the server's", SERVER, PORT, (), peer=CLIENT_PORT)
_CLIENT_TIMEOUT = Counted("the client's kernel has given it up", CLIENT, "TCPAbortOnTimeout", 1, 1)
_SERVER_TIMEOUT = Counted("and so has the server's", SERVER, "TCPAbortOnTimeout", 1, 1)


def _play(stage: Stage) -> Story:
    server = stage.start("server", SERVER, "polite_server", stage.address(SERVER), PORT)
    server.hear("listening")
    client = stage.connect("client", PORT, CLIENT_PORT)
    client.say("ping")
    client.hear("answered")
    yield f"A client (pid {client.pid}) and a server (pid {server.pid}) talk to each other."
    stage.hosts[CLIENT].drop("tcp", "sport", str(PORT))
    yield "A firewall now drops whatever the server sends to the client."
    client.say("close")
    client.hear("closed")
    yield "The client closes; its FIN arrives, so the server closes too."
    yield from SCENARIOS[0].expect


SCENARIOS = (
    Scenario(
        name="freeze-fin-wait1",
        letter="G",
        says="a firewall swallows the ACKs: FIN_WAIT1 and LAST_ACK, until both give up",
        teaches="Both have closed: no process is to blame, the retries end it.",
        play=_play,
        expect=(
            _FIN_WAIT1,
            _LAST_ACK,
            _CLIENT_GONE,
            _SERVER_GONE,
            _CLIENT_TIMEOUT,
            _SERVER_TIMEOUT,
        ),
        lives=(
            client_life(
                "SYN_SENT ESTABLISHED FIN_WAIT1 CLOSE",
                "timeout",
                close=frames("client", "hang_up", "main close"),
            ),
            Life(
                SERVER,
                PORT,
                CLIENT_PORT,
                "SYN_RECV ESTABLISHED CLOSE_WAIT LAST_ACK CLOSE",
                "timeout",
                "server",
                stacks={
                    "birth": frames("polite_server", "serve accept", "main"),
                    "eof": frames("polite_server", "handle_client", "serve", "main"),
                    "close": frames(
                        "polite_server", "hang_up", "handle_client close", "serve", "main"
                    ),
                },
                fd=4,
            ),
        ),
        verdicts=(Verdict("fin-unanswered", None, None, count=2),),
        settings={CLIENT: _ORPHAN_RETRIES, SERVER: _ORPHAN_RETRIES},
        uses_nft=True,
    ),
)
