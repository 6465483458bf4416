"""The loop of a tracing command, with a tracer that reads from a pipe instead of the kernel."""

import os
import signal
import subprocess
import threading

import pytest

from tcptrace.cli.run import Limits, Ready, Run
from tcptrace.probes import rungs
from tcptrace.probes.engine.errors import UsageError
from tcptrace.probes.filters import Filters
from tcptrace.probes.publish import Publisher
from tests.unit.test_publish import event


class PipedTracer:
    """Each byte in the pipe is one transition."""

    def __init__(self, existing=(), kept=()):
        self.ring_fd, self.feed = os.pipe()
        os.set_blocking(self.ring_fd, False)
        self.standing = rungs.Standing()
        self.keeps_back, self.lost, self.detached = False, 0, False
        self._existing, self._kept = list(existing), list(kept)

    def start(self):
        return self._existing

    def read(self):
        try:
            return [event() for _ in os.read(self.ring_fd, 1 << 16)]
        except BlockingIOError:
            return []

    def rest(self):
        assert self.detached
        return self.read() + self._kept

    is_behind = False

    def stash(self):
        pass

    def fill(self):
        return 0.0

    def detach(self):
        self.detached = True

    def losses(self):
        lost, self.lost = self.lost, 0
        return [event("loss", lost=lost, where="ring_full", lost_total=lost)] if lost else []

    def tell_waiting_children(self, *, at_once=False):
        self.asked_at_once = at_once

    def traces_anybody(self):
        return False

    def close(self):
        os.close(self.ring_fd)
        os.close(self.feed)


class Lines:
    """A sink that keeps what it gets."""

    def __init__(self, fails=False):
        self.events, self.fails = [], fails

    def write(self, events):
        if self.fails:
            raise BrokenPipeError
        self.events += events

    def kinds(self):
        return [event["event"] for event in self.events]


@pytest.fixture
def tracer():
    made = []

    def make(**how):
        made.append(PipedTracer(**how))
        return made[-1]

    yield make
    for one in made:
        one.close()


def run(tracer, sink, ready=None, **limits):
    return Run(tracer, Publisher(Filters()), sink, Limits(**limits), ready or Ready()).go()


def test_the_stream_begins_with_start_and_ends_with_end(tracer):
    sink = Lines()
    why = run(tracer(existing=[event("existing")]), sink, duration_s=0.01)
    assert sink.kinds() == ["start", "existing", "end"]
    assert sink.events[-1]["why"] == why == "0.01 s are over"


def test_the_count_ends_it_and_no_more_are_written(tracer):
    one, sink = tracer(), Lines()
    os.write(one.feed, b"12345")
    assert run(one, sink, count=2) == "2 transitions seen"
    assert sink.kinds() == ["start", "state", "state", "end"]


def test_what_was_kept_back_is_told_before_the_end(tracer):
    one, sink = tracer(kept=[event()]), Lines()
    run(one, sink, duration_s=0.01)
    assert one.asked_at_once
    assert sink.kinds() == ["start", "state", "end"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_the_old_handlers_come_back(tracer, number):
    old = signal.getsignal(number)
    one, sink = tracer(), Lines()
    timer = threading.Timer(0.05, lambda: os.kill(os.getpid(), number))
    timer.start()
    assert run(one, sink, duration_s=10) == number.name
    timer.join()
    assert signal.getsignal(number) is old
    assert sink.kinds()[-1] == "end"
    assert one.detached


def test_a_reader_that_went_away_ends_it_quietly(tracer):
    assert run(tracer(), Lines(fails=True), duration_s=10) == "the reader went away"


def test_losses_are_told_in_the_stream(tracer):
    one, sink = tracer(), Lines()
    one.lost = 7
    run(one, sink, duration_s=0.01)
    assert [told["lost"] for told in sink.events if told["event"] == "loss"] == [7]


def test_ready_is_told_after_the_inventory_was_written(tracer, tmp_path):
    read, write = os.pipe()
    sink = Lines()
    run(tracer(), sink, Ready(write, tmp_path / "ready"), duration_s=0.01)
    assert os.read(read, 100) == b"ready\n"
    assert os.read(read, 100) == b""  # closed: who waits for the end of file is not left waiting
    os.close(read)
    assert (tmp_path / "ready").read_text() == "ready\n"
    assert [path.name for path in tmp_path.iterdir()] == ["ready"]


def test_a_process_that_ends_before_tracing_begins_is_said_and_nothing_is_left_open(tracer):
    gone = subprocess.Popen(["true"])
    gone.wait()
    one, sink = tracer(), Lines()
    before = os.listdir("/proc/self/fd")
    doomed = Run(one, Publisher(Filters()), sink, Limits(), Ready(), [os.getpid(), gone.pid])
    with pytest.raises(UsageError, match=f"process {gone.pid} has ended before tracing began"):
        doomed.go()
    assert os.listdir("/proc/self/fd") == before
    assert sink.events == []


def test_no_descriptor_is_left_open(tracer):
    one = tracer()
    before = os.listdir("/proc/self/fd")
    run(one, Lines(), duration_s=0.01)
    assert os.listdir("/proc/self/fd") == before


class Suspicious:
    """A diagnosis that finds something in every transition, at every tick, and at the end."""

    def __init__(self):
        self.fed, self.ticks = [], 0

    def feed(self, events):
        self.fed += events
        return [event("finding", says="fed") for one in events if one["event"] == "state"]

    def tick(self, now_s):
        assert now_s > 1e9
        self.ticks += 1
        return [event("finding", says="tick")] if self.ticks == 1 else []

    def finish(self):
        return [event("finding", says="finish")]


def diagnosed(one, sink, diagnosis, **limits):
    made = Run(one, Publisher(Filters()), sink, Limits(**limits), Ready(), diagnosis=diagnosis)
    return made.go()


def test_findings_stand_behind_what_they_rest_on_and_are_numbered(tracer):
    one, sink, diagnosis = tracer(existing=[event("existing")]), Lines(), Suspicious()
    os.write(one.feed, b"1")
    diagnosed(one, sink, diagnosis, count=1)
    assert sink.kinds() == ["start", "existing", "state", "finding", "finding", "end"]
    assert [told["seq"] for told in sink.events] == [1, 2, 3, 4, 5, 6]
    assert [told["says"] for told in sink.events if told["event"] == "finding"] == ["fed", "finish"]
    assert sink.events[-1]["events"] == 6


def test_the_rules_get_published_events_but_no_findings(tracer):
    one, diagnosis = tracer(existing=[event("existing")]), Suspicious()
    os.write(one.feed, b"1")
    diagnosed(one, Lines(), diagnosis, count=1)
    assert [told["event"] for told in diagnosis.fed] == ["existing", "state"]
    assert [told["seq"] for told in diagnosis.fed] == [2, 3]


def test_what_only_time_brings_to_light_is_told_meanwhile(tracer):
    sink, diagnosis = Lines(), Suspicious()
    diagnosed(tracer(), sink, diagnosis, duration_s=0.5)
    assert diagnosis.ticks >= 1
    assert [told.get("says") for told in sink.events] == [None, "tick", "finish", None]


def test_findings_do_not_use_up_the_limit(tracer):
    one, sink = tracer(), Lines()
    os.write(one.feed, b"12")
    assert diagnosed(one, sink, Suspicious(), count=2) == "2 transitions seen"
    assert sink.kinds().count("state") == 2


def test_what_was_kept_back_is_diagnosed_too(tracer):
    diagnosis = Suspicious()
    diagnosed(tracer(kept=[event()]), Lines(), diagnosis, duration_s=0.01)
    assert [told["event"] for told in diagnosis.fed] == ["state"]
