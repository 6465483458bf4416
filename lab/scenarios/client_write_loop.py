"""C: the client never reads and never looks at errors; it dies of SIGPIPE, or spins for ever."""

from __future__ import annotations

import functools
import signal
from collections.abc import Generator

from tcptrace.lab.actors import Actor
from tcptrace.lab.facts import Alive, Counted, Ended, Fact, Row, Sockets, Unlisted
from tcptrace.lab.scenario import CLIENT, SERVER, Life, Scenario, Step, Story, Verdict
from tcptrace.lab.sources import frames
from tcptrace.lab.stage import Stage

_PORT, _CLIENT_PORT, _CLIENT_FD = 8006, 40001, 3
_WRITE = frames("write_loop_client", "send_loop", "main")

_UNREAD = Sockets(
    "the client is in CLOSE_WAIT with Recv-Q 59: 58 unread bytes, and the FIN counts one",
    CLIENT,
    _CLIENT_PORT,
    (Row("CLOSE_WAIT", 59, 0, holder=("client", _CLIENT_FD)),),
)
_ORPHAN = Sockets(
    "the server's kernel waits in FIN_WAIT2; no process has it any more",
    SERVER,
    _PORT,
    (Row("FIN_WAIT2", 0, 0, timer="timewait"),),
    peer=_CLIENT_PORT,
)
_RST = Counted(
    "the server's kernel answers with a RST: there is nobody to read it", SERVER, "OutRsts", 1, 1
)
_BOTH_GONE = (
    Sockets("the server's end is gone with it", SERVER, _PORT, (), peer=_CLIENT_PORT),
    Sockets("and so is the client's", CLIENT, _CLIENT_PORT, ()),
    Unlisted("the client still holds its descriptor", "client", _CLIENT_FD),
)
_KILLED = Ended("the client is killed by SIGPIPE", "client", "SIGPIPE")
_REACHED = (_UNREAD, _ORPHAN, _RST, *_BOTH_GONE)


def _spinning(does: str) -> Fact:
    says = f"the client spins: SIGPIPE is {does}, nothing waits any more"
    return Alive(says, "client", "R", sigpipe=does, cpu_s=1.5)


def _undead(does: str) -> Fact:
    says = "it has caught SIGINT, and spins on: Ctrl-C does nothing"
    return Alive(says, "client", "R", sigpipe=does, cpu_s=1.7)


def _until_dead_socket(stage: Stage, does: str) -> Generator[Step, None, Actor]:
    server = stage.start("server", SERVER, "hasty_server", stage.address(SERVER), _PORT)
    server.hear("listening")
    yield f"A server (pid {server.pid}) on port {_PORT} answers one message and closes at once."
    client = stage.start(
        "client", CLIENT, "write_loop_client", stage.address(SERVER), _PORT, _CLIENT_PORT, does
    )
    client.hear("connected")
    client.hear("wrote")
    server.hear("answered")
    yield f"A client (pid {client.pid}) writes 58 bytes; it will never read."
    yield _UNREAD
    yield _ORPHAN
    yield "Second write: allowed, as only the other direction is closed."
    client.say("on")
    client.hear("wrote")
    yield from (_RST, *_BOTH_GONE)
    return client


def _play_death(stage: Stage) -> Story:
    client = yield from _until_dead_socket(stage, "default")
    yield "Third write: EPIPE, and SIGPIPE."
    client.say("on")
    yield _KILLED


def _play_loop(does: str, stage: Stage) -> Story:
    client = yield from _until_dead_socket(stage, does)
    yield f"Third write: EPIPE, and a SIGPIPE that is {does}; the loop looks at neither."
    client.say("on")
    client.hear("failing")
    yield _spinning(does)
    client.signal(signal.SIGINT)
    client.hear("interrupted")
    yield _undead(does)


_LIVES = (
    Life(
        CLIENT,
        _CLIENT_PORT,
        _PORT,
        "SYN_SENT ESTABLISHED CLOSE_WAIT CLOSE",
        "rst_received",
        "client",
        stacks={
            "birth": frames("write_loop_client", "dial", "main dial"),
            "last_write": _WRITE,
        },
        fd=_CLIENT_FD,
    ),
    Life(
        SERVER,
        _PORT,
        _CLIENT_PORT,
        "SYN_RECV ESTABLISHED FIN_WAIT1 FIN_WAIT2 CLOSE",
        "orphan_fin_wait2",
        "server",
        stacks={
            "birth": frames("hasty_server", "serve accept", "main"),
            "close": frames("hasty_server", "answer close", "serve", "main"),
        },
        fd=4,
    ),
)


def _loop(name: str, does: str, says: str) -> Scenario:
    return Scenario(
        name=name,
        letter="C2",
        says=says,
        teaches="Without SIGPIPE only the result of write() tells; who ignores both spins.",
        play=functools.partial(_play_loop, does),
        expect=(*_REACHED, _spinning(does), _undead(does)),
        lives=_LIVES,
        verdicts=(
            Verdict("sigpipe-not-fatal", _CLIENT_PORT, "client", _CLIENT_FD, _WRITE[0]),
            Verdict("write-loop", _CLIENT_PORT, "client", _CLIENT_FD, _WRITE[0]),
        ),
    )


SCENARIOS = (
    Scenario(
        name="client-write-death",
        letter="C1",
        says="the client writes on after the server's FIN, and dies of SIGPIPE",
        teaches="The first write after a FIN succeeds; the RST that it earns makes the next fail.",
        play=_play_death,
        expect=(*_REACHED, _KILLED),
        lives=_LIVES,
        verdicts=(Verdict("killed-by-sigpipe", _CLIENT_PORT, "client", _CLIENT_FD, _WRITE[0]),),
    ),
    _loop("client-write-loop", "ignored", "SIGPIPE is ignored: the client spins on EPIPE for ever"),
    _loop("client-write-loop-handler", "handled", "the same with a handler that does nothing"),
)
