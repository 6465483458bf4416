"""B: as A with a RST; then the server writes, and dies of it without a word."""

from __future__ import annotations

from tcptrace.lab.facts import Alive, Ended
from tcptrace.lab.scenario import Scenario, Story, Verdict
from tcptrace.lab.scenarios.server_close_wait import (
    BLAME,
    CLOSE_WAIT,
    DESTROYED,
    HALF_CLOSED,
    PORT,
    RESET_LIVES,
    RST_SENT,
    SERVER_FD,
    STILL_OPEN,
    a_reset,
)
from tcptrace.lab.sources import frames
from tcptrace.lab.stage import Stage

_UNPREPARED = Alive(
    "the server lives, and has not arranged anything for SIGPIPE", "server", "S", "default"
)
_KILLED = Ended("the server is killed by SIGPIPE: no message, no core", "server", "SIGPIPE")


def _play(stage: Stage) -> Story:
    server = yield from a_reset(stage)
    yield _UNPREPARED
    yield "The server writes its answer, the first write after the RST."
    server.say("reply")
    yield _KILLED


SCENARIOS = (
    Scenario(
        name="server-sigpipe-death",
        letter="B",
        says="the server writes to a socket that was reset, and dies of SIGPIPE",
        teaches="write() to a dead socket gives EPIPE and SIGPIPE; by default that kills.",
        play=_play,
        expect=(CLOSE_WAIT, HALF_CLOSED, DESTROYED, STILL_OPEN, _UNPREPARED, _KILLED),
        lives=RESET_LIVES,
        verdicts=(
            BLAME,
            RST_SENT,
            Verdict(
                "killed-by-sigpipe", PORT, "server", SERVER_FD, frames("epoll_server", "reply")[0]
            ),
        ),
    ),
)
