"""H: nothing is wrong: a real server, its clients, and the counts by state."""

from __future__ import annotations

import shutil

from tcptrace.lab.actors import Actor
from tcptrace.lab.facts import Counts, Row, Sockets
from tcptrace.lab.scenario import CLIENT, SERVER, Life, Scenario, Story
from tcptrace.lab.scenarios.port_collision import client_life
from tcptrace.lab.stage import Stage

_PORT, _FIRST_PORT, _VISITS = 6379, 40001, 5
_STAYING_PORT = _FIRST_PORT + _VISITS

_SERVED = Sockets(
    "one of them stays: ESTABLISHED, nothing unread, nothing unsent",
    SERVER,
    _PORT,
    (Row("ESTABLISHED", 0, 0),),
    peer=_STAYING_PORT,
)
_SERVER_COUNTS = Counts(
    "the server has no other: it closed each one that the client closed",
    SERVER,
    _PORT,
    (("ESTABLISHED", 1),),
)
_CLIENT_COUNTS = Counts(
    "the client, which closed first, keeps each for 2 MSL in TIME_WAIT",
    CLIENT,
    _PORT,
    (("ESTABLISHED", 1), ("TIME_WAIT", _VISITS)),
)


def _play(stage: Stage) -> Story:
    server = _server(stage)
    yield f"The server is {server}."
    for number in range(_VISITS):
        client = stage.connect(f"client {number}", _PORT, _FIRST_PORT + number)
        _ping(client)
        client.say("close")
        client.hear("closed")
    yield f"{_VISITS} clients, one after the other, ask three times each, and close."
    _ping(stage.connect("staying client", _PORT, _STAYING_PORT))
    yield from SCENARIOS[0].expect


def _server(stage: Stage) -> str:
    """redis if this machine has it; else our own. Its name in the story."""
    redis = shutil.which("redis-server")
    address = stage.address(SERVER)
    if redis is None:
        actor = stage.start("server", SERVER, "polite_server", address, _PORT)
        actor.hear("listening")
        return f"our polite_server (pid {actor.pid}); redis-server is not installed"
    options = f"--bind {address} --port {_PORT} --protected-mode no --loglevel warning"
    nothing_kept = ["--save", "", "--appendonly", "no", "--dir", str(stage.workshop.folder)]
    actor = stage.start_command("server", SERVER, redis, *options.split(), *nothing_kept)
    stage.wait_listening(SERVER, _PORT)
    return f"redis-server (pid {actor.pid})"


def _ping(client: Actor) -> None:
    for _ in range(3):
        client.say("ping")
        client.hear("answered")


_GOOD_ORDER = "SYN_RECV ESTABLISHED CLOSE_WAIT LAST_ACK CLOSE", "ack_received"

SCENARIOS = (
    Scenario(
        name="real-server",
        letter="H",
        says="redis (or a server like it): handshake, data, a close in good order, TIME_WAIT",
        teaches="Who closes first keeps TIME_WAIT; that is what a healthy server looks like.",
        play=_play,
        expect=(_SERVED, _SERVER_COUNTS, _CLIENT_COUNTS),
        lives=(
            *(
                Life(SERVER, _PORT, _FIRST_PORT + number, *_GOOD_ORDER, "server")
                for number in range(_VISITS)
            ),
            *(
                client_life(
                    _FIRST_PORT + number,
                    _PORT,
                    "SYN_SENT ESTABLISHED FIN_WAIT1 FIN_WAIT2 CLOSE",
                    "fin_received",
                    f"client {number}",
                )
                for number in range(_VISITS)
            ),
            Life(SERVER, _PORT, _STAYING_PORT, "SYN_RECV ESTABLISHED", "accept", "server"),
            client_life(
                _STAYING_PORT, _PORT, "SYN_SENT ESTABLISHED", "syn_ack_received", "staying client"
            ),
        ),
        verdicts=(),
    ),
)
