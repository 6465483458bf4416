"""The forked child and the channel to it: data, descriptors, errors, death."""

import os
import signal
import subprocess
import sys

import pytest

from tcptrace.probes.engine import errors
from tcptrace.probes.engine.errors import TcptraceError
from tcptrace.probes.engine.forked import Forked

SUBCLASSES = sorted(TcptraceError.__subclasses__(), key=lambda kind: kind.__name__)


@pytest.fixture
def child():
    made = []

    def start(body):
        made.append(Forked("the test's child", body))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_data_goes_there_and_back(child):
    def body(channel):
        channel.send({"got": channel.receive()})

    one = child(body)
    one.send([1, "two", None])
    assert one.receive() == {"got": [1, "two", None]}


def test_whether_it_has_said_something_can_be_asked_without_waiting(child):
    def body(channel):
        assert not channel.has_news()
        channel.send("first")
        channel.receive()
        channel.send("second")
        channel.receive()

    one = child(body)
    assert one.receive() == "first"
    assert not one.has_news()
    one.send("go on")
    assert one.receive() == "second"


def test_its_end_is_news_too(child):
    one = child(lambda channel: None)
    with pytest.raises(TcptraceError):
        one.receive()
    assert one.has_news()


def test_it_is_another_process(child):
    one = child(lambda channel: channel.send(os.getpid()))
    pid = one.receive()
    assert pid != os.getpid()


def test_an_item_larger_than_the_sockets_buffer_arrives_whole(child):
    one = child(lambda channel: channel.send(b"x" * 5_000_000))
    assert len(one.receive()) == 5_000_000


@pytest.mark.parametrize("kind", [TcptraceError, *SUBCLASSES], ids=lambda kind: kind.__name__)
def test_the_childs_error_is_raised_in_the_parent(child, kind):
    def body(_channel):
        raise kind("what happened", help="what to do")

    with pytest.raises(kind) as caught:
        child(body).receive()
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.help) == ("what happened", "what to do")
    assert caught.value.exit_code == kind.exit_code


def test_every_error_class_is_found_by_its_name():
    assert all(getattr(errors, kind.__name__) is kind for kind in SUBCLASSES)


def test_an_unexpected_error_keeps_its_traceback(child):
    def body(_channel):
        raise ZeroDivisionError("surprise")

    with pytest.raises(TcptraceError, match="unexpected: ZeroDivisionError") as caught:
        child(body).receive()
    assert "Traceback" in caught.value.help


def test_a_child_that_dies_is_an_error_that_names_it(child):
    def body(_channel):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(TcptraceError, match="the test's child: the helper process died"):
        child(body).receive()


def test_a_child_that_ends_without_a_word_is_an_error(child):
    with pytest.raises(TcptraceError, match="died"):
        child(lambda channel: None).receive()


def test_ctrl_c_is_the_parents_to_handle(child):
    def body(channel):
        os.kill(os.getpid(), signal.SIGINT)
        channel.send("still here")

    assert child(body).receive() == "still here"


def test_closing_ends_and_reaps_the_child():
    one = Forked("endless", lambda channel: channel.send(os.getpid()) or channel.receive())
    pid = one.receive()
    one.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_closing_twice_kills_only_once(monkeypatch):
    """After the first close the pid is free: hours later it may be anybody's."""
    killed = []
    really = os.kill
    monkeypatch.setattr(os, "kill", lambda *args: (killed.append(args), really(*args)))
    one = Forked("endless", lambda channel: channel.receive())
    one.close()
    assert len(killed) <= 1
    before = list(killed)
    one.close()
    assert killed == before


ORPHANED = """
import os
from tcptrace.probes.engine.forked import Forked
try:
    child = Forked("orphan", lambda channel: channel.receive())
    child._channel.close()
    os.waitpid(-1, 0)
finally:
    os.write(1, b"the parent's code\\n")
"""


def test_a_child_whose_parent_is_gone_ends_quietly():
    """It must not climb out of Forked() and run its parent's code a second time."""
    done = subprocess.run([sys.executable, "-c", ORPHANED], capture_output=True, text=True)
    assert done.stdout == "the parent's code\n"
    assert done.stderr == ""
