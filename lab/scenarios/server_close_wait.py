"""A: the client goes away, and the server never calls close()."""

from __future__ import annotations

import signal
from collections.abc import Generator

from tcptrace.lab.actors import Actor
from tcptrace.lab.facts import Ended, Row, Sockets, Unlisted
from tcptrace.lab.scenario import CLIENT, SERVER, Life, Pause, Scenario, Step, Story, Verdict
from tcptrace.lab.sources import frames
from tcptrace.lab.stage import Stage

PORT, CLIENT_PORT = 8000, 40001
SERVER_FD, CLIENT_FD = 5, 3
FIN_TIMEOUT = "net.ipv4.tcp_fin_timeout"

BIRTH = frames("epoll_server", "accept_client", "serve accept", "main")
END_OF_FILE = frames("epoll_server", "handle_client", "serve handle", "main")
DIAL = frames("client", "dial", "main dial")
_ABORT = frames("client", "hang_up", "abandon", "main abort")

CLOSE_WAIT = Sockets(
    "the server is in CLOSE_WAIT, and holds it; Recv-Q 0: it has read the FIN too",
    SERVER,
    PORT,
    (Row("CLOSE_WAIT", 0, 0, holder=("server", SERVER_FD)),),
    peer=CLIENT_PORT,
)
HALF_CLOSED = Sockets(
    "the client waits in FIN_WAIT2 for the server's FIN",
    CLIENT,
    CLIENT_PORT,
    (Row("FIN_WAIT2", 0, 0, holder=("client", CLIENT_FD)),),
)
DESTROYED = Sockets("the server's CLOSE_WAIT is gone", SERVER, PORT, (), peer=CLIENT_PORT)
STILL_OPEN = Unlisted(
    "but the server still holds its descriptor, of a socket that ss cannot show any more",
    "server",
    SERVER_FD,
)

_TIMED = Sockets(
    "the client's kernel waits in FIN_WAIT2, with a timer and without a process",
    CLIENT,
    CLIENT_PORT,
    (Row("FIN_WAIT2", 0, 0, timer="timewait"),),
)
_SILENT_END = Sockets(
    "after tcp_fin_timeout the client's end is gone; it has told nobody", CLIENT, CLIENT_PORT, ()
)
_FOR_EVER = Sockets(
    "the server is still in CLOSE_WAIT, with a peer that exists no more",
    SERVER,
    PORT,
    (Row("CLOSE_WAIT", 0, 0, holder=("server", SERVER_FD)),),
    peer=CLIENT_PORT,
)
_TERMINATED = Ended("only the end of the process closes it", "server", "SIGTERM")


def a_request(stage: Stage) -> Generator[Step, None, tuple[Actor, Actor]]:
    """A server with one client that has sent something."""
    server = stage.start("server", SERVER, "epoll_server", stage.address(SERVER), PORT)
    server.hear("listening")
    yield f"An epoll server (pid {server.pid}) listens on port {PORT}."
    client = stage.connect("client", PORT, CLIENT_PORT)
    server.hear("accepted")
    client.say("send 3")
    client.hear("sent")
    server.hear("read")
    yield f"A client (pid {client.pid}) connects and sends 3 bytes; the server reads them."
    return server, client


def a_reset(stage: Stage) -> Generator[Step, None, Actor]:
    """The RST ending, up to the server's dead socket."""
    server, client = yield from a_request(stage)
    client.say("half-close")
    client.hear("half-closed")
    server.hear("eof")
    yield "The client sends its FIN. The server reads the end of file, and does not close."
    yield CLOSE_WAIT
    yield HALF_CLOSED
    yield Pause("The client loses patience (a Windows client: after 120 s) and resets.", 2.0)
    client.say("abort")
    client.hear("closed")
    yield DESTROYED
    yield STILL_OPEN
    return server


def _play_silent(stage: Stage) -> Story:
    server, client = yield from a_request(stage)
    client.say("close")
    server.hear("eof")
    yield "The client closes. The server reads the end of file, and does not close."
    yield _TIMED
    yield CLOSE_WAIT
    yield _SILENT_END
    yield _FOR_EVER
    yield "The laboratory ends the server with SIGTERM."
    server.signal(signal.SIGTERM)
    yield _TERMINATED


def _play_reset(stage: Stage) -> Story:
    yield from a_reset(stage)


def server_life(path: str, reason: str) -> Life:
    """The server's end: accepted, read to the end of file."""
    stacks = {"birth": BIRTH, "eof": END_OF_FILE}
    return Life(SERVER, PORT, CLIENT_PORT, path, reason, "server", stacks=stacks, fd=SERVER_FD)


def client_life(path: str, reason: str, **stacks: tuple[str, ...]) -> Life:
    """The client's end, as it was dialled; and further stacks."""
    stacks = {"birth": DIAL, **stacks}
    return Life(CLIENT, CLIENT_PORT, PORT, path, reason, "client", stacks=stacks, fd=CLIENT_FD)


RESET_LIVES = (
    server_life("SYN_RECV ESTABLISHED CLOSE_WAIT CLOSE", "rst_received"),
    client_life(
        "SYN_SENT ESTABLISHED FIN_WAIT1 FIN_WAIT2 CLOSE",
        "rst_sent_linger",
        user=_ABORT,
    ),
)
BLAME = Verdict("close-wait-eof-never-closed", PORT, "server", SERVER_FD, END_OF_FILE[0])
RST_SENT = Verdict("reset-by-linger", CLIENT_PORT, "client", CLIENT_FD, _ABORT[0])


SCENARIOS = (
    Scenario(
        name="server-close-wait",
        letter="A",
        says="the server never closes; the client's end vanishes in silence",
        teaches="CLOSE_WAIT has no timer: it is a close() that the program owes.",
        play=_play_silent,
        expect=(_TIMED, CLOSE_WAIT, _SILENT_END, _FOR_EVER, _TERMINATED),
        lives=(
            server_life("SYN_RECV ESTABLISHED CLOSE_WAIT LAST_ACK CLOSE", "rst_received"),
            client_life("SYN_SENT ESTABLISHED FIN_WAIT1 FIN_WAIT2 CLOSE", "orphan_fin_wait2"),
        ),
        verdicts=(BLAME,),
        settings={CLIENT: {FIN_TIMEOUT: 2}},
    ),
    Scenario(
        name="server-close-wait-rst",
        letter="A",
        says="the server never closes; the client's end goes with a RST",
        teaches="A RST takes the socket out of ss, but not the descriptor out of the process.",
        play=_play_reset,
        expect=(CLOSE_WAIT, HALF_CLOSED, DESTROYED, STILL_OPEN),
        lives=RESET_LIVES,
        verdicts=(BLAME, RST_SENT),
    ),
)
