"""The stage that joins events with stacks, with a helper that answers when the test says so."""

import pytest

from tcptrace.probes import stacks
from tcptrace.probes.engine.constants import Stack as StackId
from tcptrace.probes.engine.errors import TcptraceError
from tcptrace.probes.engine.layout import Layout
from tcptrace.probes.enrich.stacks.helper import Hold
from tcptrace.probes.enrich.stacks.kernelside import KernelSide
from tcptrace.probes.enrich.stacks.stack import stack_of
from tcptrace.probes.stacks import Stacks

READ = stack_of(["leaky_handler (srv) srv.c:7"])
CLOSE = stack_of(["hang_up (srv) srv.c:9"])
UNFINISHED = StackId.UNFINISHED | 5


class FakeHelper:
    def __init__(self):
        self.asked, self.answers, self.dead = [], [], False

    def send(self, item):
        self.asked.append(item)

    def has_news(self):
        return bool(self.answers) or self.dead

    def receive(self):
        if self.dead:
            raise TcptraceError("the helper process died")
        return self.answers.pop(0)

    def close(self):
        pass


@pytest.fixture
def helpers(monkeypatch):
    made = []

    def forked(_name, _body):
        made.append(FakeHelper())
        return made[-1]

    monkeypatch.setattr(stacks, "Forked", forked)
    return made


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(stacks, "time", clock)
    return clock


@pytest.fixture
def stage(helpers, clock):
    return Stacks(KernelSide(), [], inline=False)


def event(number=0, **ids):
    numbers = tuple(ids.get(name, 0) for name in stacks.STACKS)
    return {"event": "state", "ts_ns": number, "stack_ids": numbers}


def test_an_event_without_stacks_goes_straight_on(stage):
    (told,) = stage.pass_on([event()])
    assert told["user_stack_id"] is None
    assert "user_stack" not in told


def test_an_event_waits_for_its_stack_which_is_told_first(stage, helpers):
    assert stage.pass_on([event(user=77)]) == []
    assert helpers[0].asked == [[77]]
    helpers[0].answers.append([(77, READ)])
    first, told = stage.pass_on([])
    assert (first["event"], first["stack_id"], first["frames"]) == (
        "stack",
        READ.id,
        list(READ.frames),
    )
    assert told["user_stack_id"] == READ.id


def test_later_events_stay_behind_it(stage, helpers):
    stage.pass_on([event(1, user=77), event(2)])
    assert len(stage) == 2
    helpers[0].answers.append([(77, READ)])
    assert [one["ts_ns"] for one in stage.pass_on([]) if one["event"] == "state"] == [1, 2]


def test_each_stack_is_told_once(stage, helpers):
    stage.pass_on([event(user=77), event(birth=78, user=77)])
    helpers[0].answers.append([(77, READ), (78, READ)])
    told = stage.pass_on([event(user=78)])
    assert [one["event"] for one in told] == ["stack", "state", "state", "state"]
    assert told[2]["birth_stack_id"] == told[3]["user_stack_id"] == READ.id


def test_copies_are_not_asked_for_they_come(stage, helpers):
    stage.pass_on([event(user=UNFINISHED)])
    assert helpers[0].asked == []
    helpers[0].answers.append([(UNFINISHED, CLOSE)])
    assert stage.pass_on([])[-1]["user_stack_id"] == CLOSE.id


def test_one_question_at_a_time(stage, helpers):
    stage.pass_on([event(user=77)])
    stage.pass_on([event(user=78), event(user=77)])
    assert helpers[0].asked == [[77]]
    helpers[0].answers.append([(77, READ)])
    stage.pass_on([])
    assert helpers[0].asked == [[77], [78]]


def test_kernel_stacks_are_asked_for_by_negative_numbers(stage, helpers):
    stage.pass_on([event(kernel=-1)])
    assert helpers[0].asked == [[-1]]


def test_frames_in_the_event(helpers, clock):
    stage = Stacks(KernelSide(), [], inline=True)
    stage.pass_on([event(user=77)])
    helpers[0].answers.append([(77, READ)])
    (told,) = stage.pass_on([])
    assert told["user_stack"] == list(READ.frames)
    assert told["birth_stack"] is None


def test_patience_ends(stage, clock):
    stage.pass_on([event(user=77)])
    clock.now += stacks.PATIENCE_S + 0.1
    first, _told = stage.pass_on([])
    assert first["frames"] == ["[unknown: its functions could not be looked up in time]"]


def test_too_many_waiting_is_the_end_of_patience(stage, monkeypatch):
    monkeypatch.setattr(stacks, "_MAX_WAITING", 3)
    told = stage.pass_on([event(number, user=77) for number in range(5)])
    assert [one["ts_ns"] for one in told if one["event"] == "state"] == [0, 1, 2]


def test_suppressed_says_so_without_asking(stage, helpers):
    first, _told = stage.pass_on([event(user=int(StackId.SUPPRESSED))])
    assert first["frames"] == ["[unknown: too many new stacks came in that second]"]
    assert helpers[0].asked == []


def test_a_helper_that_died_is_replaced_and_asked_again(helpers, clock):
    notes = []
    stage = Stacks(KernelSide(), notes, inline=False)
    stage.pass_on([event(user=77)])
    helpers[0].dead = True
    stage.pass_on([])
    assert notes == ["the helper process for stacks: the helper process died"]
    stage.pass_on([])
    assert helpers[1].asked == [[77]]


def test_not_for_ever(helpers, clock):
    stage = Stacks(KernelSide(), [], inline=False)
    for _ in range(5):
        helpers[-1].dead = True
        stage.pass_on([])
    assert len(helpers) == 3
    clock.now += stacks.PATIENCE_S
    stage.pass_on([event(user=77)])
    clock.now += stacks.PATIENCE_S + 0.1
    assert stage.pass_on([])[0]["frames"] == [
        "[unknown: the helper process that looks up functions died]"
    ]


def test_what_is_known_is_bounded(stage, helpers, monkeypatch):
    monkeypatch.setattr(stacks, "_MAX_KNOWN", 2)
    helpers[0].answers.append([(number, READ) for number in range(100, 110)])
    stage.pass_on([])
    assert len(stage._known) == 2


def test_the_rest_waits_for_answers(stage, helpers):
    stage.pass_on([event(user=77)])
    helpers[0].answers.append([(77, READ)])
    assert [one["event"] for one in stage.rest()] == ["stack", "state"]


def test_the_rest_ends_also_without_answers(stage):
    stage.pass_on([event(user=77)])
    assert [one["event"] for one in stage.rest()] == ["stack", "state"]


USER = KernelSide(snapshot=Layout(("id",), "Q", 8))


def test_without_user_stacks_nothing_is_read_ahead(stage, helpers):
    stage.hold([5, 6], warm=True)
    assert helpers[0].asked == []


def test_mappings_are_asked_for_ahead(helpers, clock):
    stage = Stacks(USER, [], inline=False)
    stage.hold([], warm=True)
    stage.hold([5, 6], warm=False)
    assert helpers[0].asked == [Hold(frozenset({5, 6}), warm=False)]


def test_of_few_processes_it_is_waited_for(helpers, clock):
    """Their first stack may come at once, and they may be gone a moment later."""
    stage = Stacks(USER, [], inline=False)
    helpers[0].answers += [[(77, READ)], [], [(78, READ)]]
    stage.hold([5], warm=True)
    assert helpers[0].asked == [Hold(frozenset({5}), warm=True)]
    assert helpers[0].answers == [[(78, READ)]]  # what comes later is for later
    assert stage.pass_on([event(user=77)])[-1]["user_stack_id"] == READ.id


def test_a_helper_that_dies_over_it_does_not_end_the_start(helpers, clock):
    notes = []
    stage = Stacks(USER, notes, inline=False)
    helpers[0].dead = True
    stage.hold([5], warm=True)
    assert len(helpers) == 2
    assert len(notes) == 1


def test_an_existing_socket_names_no_stacks_and_waits_for_none(stage, helpers):
    (told,) = stage.pass_on([event(user=77) | {"event": "existing"}])
    assert told["event"] == "existing"
    assert helpers[0].asked == []


def test_whether_more_would_come_at_once(stage, helpers):
    stage.pass_on([event(user=77)])
    assert not stage.is_behind
    helpers[0].answers.append([(77, READ)])
    stage._talk()
    assert stage.is_behind
    stage.pass_on([])
    assert not stage.is_behind


def test_without_a_kernel_side_there_is_no_helper(helpers, clock):
    stage = Stacks(None, [], inline=False)
    assert helpers == []
    assert len(stage.pass_on([event()])) == 1
