"""I: connections to a peer that swallows every SYN."""

from __future__ import annotations

from tcptrace.lab.facts import Counted, Counts
from tcptrace.lab.scenario import CLIENT, SERVER, Life, Scenario, Story, Verdict
from tcptrace.lab.sources import frames
from tcptrace.lab.stage import Stage

_PORT, _COUNT = 8000, 106
_DIAL = frames("dialer", "dial", "main")

_PILED_UP = Counts("all of them are in SYN_SENT", CLIENT, _PORT, (("SYN_SENT", _COUNT),))
_AGAIN = Counts("each has sent its SYN again", CLIENT, _PORT, (("SYN_SENT", _COUNT),), tries=1)
_COUNTED = Counted("the kernel's own count of them", CLIENT, "TCPSynRetrans", _COUNT, _COUNT)
_GONE = Counts("after tcp_syn_retries all are gone", CLIENT, _PORT, ())


def _play(stage: Stage) -> Story:
    stage.hosts[SERVER].drop("tcp", "dport", str(_PORT))
    yield f"The peer's firewall drops whatever comes to port {_PORT}."
    dialer = stage.start("dialer", CLIENT, "dialer", stage.address(SERVER), _PORT, _COUNT)
    dialer.hear("dialing")
    yield f"A client (pid {dialer.pid}) calls connect() {_COUNT} times, without waiting."
    yield _PILED_UP
    yield _AGAIN
    yield _COUNTED
    (timed_out,) = dialer.hear("timed-out")
    yield f"{timed_out} of them end with ETIMEDOUT."
    yield _GONE


SCENARIOS = (
    Scenario(
        name="syn-sent-pileup",
        letter="I",
        says=f"{_COUNT} connections to a peer that drops every SYN",
        teaches="SYN_SENT that does not go away: nobody answers, not even with a refusal.",
        play=_play,
        expect=(_PILED_UP, _AGAIN, _COUNTED, _GONE),
        lives=(
            Life(
                CLIENT,
                None,
                _PORT,
                "SYN_SENT CLOSE",
                "timeout",
                "dialer",
                count=_COUNT,
                stacks={"birth": _DIAL},
            ),
        ),
        verdicts=(Verdict("syn-unanswered", None, "dialer", None, _DIAL[0], count=_COUNT),),
        settings={CLIENT: {"net.ipv4.tcp_syn_retries": 1}},
        uses_nft=True,
    ),
)
