"""The judge of the laboratory: it must see every way in which a story can be told wrong."""

from dataclasses import replace

import pytest

from tcptrace.lab.evidence import Evidence, own_frames
from tcptrace.lab.scenario import Life, Scenario, Verdict
from tcptrace.lab.sources import PROGRAMS, frames
from tcptrace.lab.verdict import judge

EOF_LINES = frames("epoll_server", "handle_client", "serve handle", "main")
LIBC = "__read (libc.so.6)"
PATH = "SYN_RECV ESTABLISHED CLOSE_WAIT"


class FakeHost:
    def __init__(self, number):
        self.number = number

    def inode(self):
        return self.number


class FakeActor:
    def __init__(self, pid):
        self.pid = pid


class FakeCast:
    def __init__(self):
        self.hosts = {"server": FakeHost(1), "client": FakeHost(2)}
        self.actors = {"server": FakeActor(100), "client": FakeActor(200)}


def told(frame):
    function, place = frame.split()
    return f"{function} (epoll_server) {PROGRAMS}/{place}"


def stack(stack_id, *lines):
    return {"event": "stack", "stack_id": stack_id, "frames": list(lines)}


def state(new, cookie="a", reason="fin_received", **changes):
    usual = {
        "event": "state", "new_state": new, "cookie": cookie, "reason": reason, "netns": 1,
        "sport": 8000, "dport": 40001, "pid": 100, "fd": 5, "listener_pid": None,
        "eof_stack_id": "E",
    }  # fmt: skip
    return usual | changes


def finding(**changes):
    usual = {
        "event": "finding", "rule": "close-wait-eof-never-closed", "code": "CW01", "says": "so",
        "pid": 100, "fd": 5, "count": 1, "sport": 8000, "stack_id": "E", "birth_stack_id": None,
    }  # fmt: skip
    return usual | changes


LIFE = Life("server", 8000, 40001, PATH, "fin_received", "server", stacks={"eof": EOF_LINES}, fd=5)
VERDICT = Verdict("close-wait-eof-never-closed", 8000, "server", 5, EOF_LINES[0])
SCENARIO = Scenario(
    name="one", letter="A", says="", teaches="", play=lambda stage: iter(()), expect=(),
    lives=(LIFE,), verdicts=(VERDICT,),
)  # fmt: skip
STACK = stack("E", LIBC, *map(told, EOF_LINES), "__libc_start_call_main (libc.so.6)")
STATES = [state(new) for new in PATH.split()]
GOOD = [STACK, *STATES, finding()]


def judged(events, scenario=SCENARIO, lost=0):
    return judge(scenario, Evidence(FakeCast(), [*events, {"event": "end", "lost": lost}]))


def test_the_story_as_it_was_played():
    found = judged(GOOD)
    assert (found.wrong, found.unchecked) == ([], [])
    assert len(found.lives) == len(found.findings) == 1
    assert EOF_LINES[0] in found.lives[0]
    assert "pid 100" in found.lives[0]


@pytest.mark.parametrize(
    ("events", "complaint"),
    [
        ([], "no such socket"),
        ([STACK, *STATES[:-1], finding()], "went SYN_RECV ESTABLISHED"),
        ([STACK, *STATES, state("CLOSE"), finding()], "expected SYN_RECV"),
        ([STACK, *STATES[:2], state("CLOSE_WAIT", reason="reset"), finding()], "because of reset"),
        ([STACK, state("SYN_RECV", pid=7), *STATES[1:], finding()], "pid is {7}"),
        ([STACK, state("SYN_RECV", pid=None), *STATES[1:], finding()], "pid is {None}"),
        ([STACK, *STATES[:2], state("CLOSE_WAIT", fd=6), finding()], "fd is {6}"),
        ([stack("E", LIBC), *STATES, finding()], "eof stack is"),
        ([stack("E", *STACK["frames"][:3]), *STATES, finding()], "eof stack is"),
        ([*STATES, finding()], "eof stack is []"),
        ([*GOOD, state("SYN_SENT", cookie="b", netns=2)], "client :8000 with :40001: nobody"),
        ([*GOOD, state("SYN_RECV", cookie="b", netns=9)], "elsewhere"),
        ([*GOOD, *(state(new, "b") for new in PATH.split())], "nobody expected"),
        ([STACK, *STATES], "no finding close-wait-eof-never-closed"),
        ([*GOOD, finding(rule="write-loop", code="WL01")], "nobody expected WL01"),
        ([*GOOD, finding(sport=8001)], "nobody expected CW01"),
        ([STACK, *STATES, finding(pid=7)], "pid is 7, expected 100"),
        ([STACK, *STATES, finding(fd=None)], "fd is None, expected 5"),
        ([STACK, *STATES, finding(count=2)], "count is 2"),
        ([STACK, *STATES, finding(stack_id=None)], "blames []"),
        ([STACK, stack("O", told(EOF_LINES[1])), *STATES, finding(stack_id="O")], "blames ['serve"),
    ],
)
def test_told_otherwise(events, complaint):
    found = judged(events)
    assert [text for text in found.wrong if complaint in text], found


def test_lost_events_are_a_complaint():
    assert judged(GOOD, lost=3).wrong == ["the tracer lost 3 events"]


def test_the_newest_finding_of_a_rule_counts():
    assert judged([*GOOD[:-1], finding(count=7), finding()]).wrong == []
    assert judged([*GOOD[:-1], finding(), finding(count=7)]).wrong != []


def test_a_rule_that_does_not_exist_is_said_to_be_unchecked():
    verdict = replace(VERDICT, rule="no-such-rule")
    found = judged(GOOD[:-1], replace(SCENARIO, verdicts=(verdict,)))
    assert found.wrong == []
    assert found.findings == []
    assert [text for text in found.unchecked if "no-such-rule" in text]


def test_a_finding_that_is_not_required_is_judged_when_it_comes():
    scenario = replace(SCENARIO, verdicts=(replace(VERDICT, required=False),))
    assert judged(GOOD[:-1], scenario).wrong == []
    assert judged([*GOOD[:-1], finding(pid=7)], scenario).wrong != []


def test_an_unknown_stack_of_a_hasty_process_is_said_to_be_unchecked():
    unknown = [stack("E", "[unknown: it had ended]"), *STATES]
    hasty = replace(SCENARIO, lives=(replace(LIFE, hasty=True),), verdicts=())
    found = judged(unknown, hasty)
    assert found.wrong == []
    assert len(found.unchecked) == 1
    assert EOF_LINES[0] not in found.lives[0]
    assert judged(unknown, replace(SCENARIO, verdicts=())).wrong != []


def test_a_wrong_stack_of_a_hasty_process_is_wrong():
    hasty = replace(SCENARIO, lives=(replace(LIFE, hasty=True),), verdicts=())
    assert judged([stack("E", told(EOF_LINES[1])), *STATES], hasty).wrong != []
    assert judged(STATES, hasty).wrong != []


def test_lives_of_the_same_ports_are_told_in_order():
    scenario = replace(
        SCENARIO, lives=(LIFE, replace(LIFE, path="SYN_RECV", reason="x")), verdicts=()
    )
    first, second = STATES, [state("SYN_RECV", "b", "x")]
    assert judged([STACK, *first, *second], scenario).wrong == []
    assert judged([STACK, *second, *first], scenario).wrong != []


def test_a_life_may_be_that_of_many():
    many = replace(SCENARIO, lives=(replace(LIFE, port=None, count=3),), verdicts=())
    lives = [state(new, str(port), sport=port) for port in (1, 2, 3) for new in PATH.split()]
    assert judged([STACK, *lives], many).wrong == []
    assert judged([STACK, *lives[3:]], many).wrong != []


def test_nobodys_connection_has_a_listener():
    life = replace(LIFE, owner=None, listener="server", stacks={}, fd=None)
    scenario = replace(SCENARIO, lives=(life,), verdicts=())
    waiting = [state(new, pid=None, fd=None, listener_pid=100) for new in PATH.split()]
    assert judged(waiting, scenario).wrong == []
    assert judged([one | {"listener_pid": None} for one in waiting], scenario).wrong != []
    assert judged([one | {"pid": 100} for one in waiting], scenario).wrong != []


def test_listeners_are_left_out():
    assert judged([*GOOD, state("LISTEN", "l", dport=None)]).wrong == []


def test_own_frames_are_those_of_the_laboratorys_programs():
    lines = [
        LIBC,
        told(EOF_LINES[0]),
        f"told (epoll_server) {PROGRAMS}/lab.h:59 [inlined]",
        "other (other) /usr/src/other.c:3",
        "[truncated: too deep]",
    ]
    assert own_frames(lines) == [EOF_LINES[0], "told lab.h:59 [inlined]"]
