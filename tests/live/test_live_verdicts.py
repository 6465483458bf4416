"""Every rule's finding: once, with process, descriptor, function and line, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest
from guilty import empty_folder
from harness import HERE, PATIENCE_S, TCPTRACE, Family, PuppetError, check_stream
from test_live_load import Load
from verdicts import OLDER_THAN_S, Blame, Diagnosing, Recording, Stage

from tests.unit.unprivileged import become_nobody

ROOT = HERE.parents[1]

OPTIONS = ("--older-than", OLDER_THAN_S, "--ring-mib", 64)


@pytest.fixture(scope="module")
def tracers():
    """Of everything, and of pytest's children: both watch every test."""
    with Diagnosing(*OPTIONS) as all_, Diagnosing(*OPTIONS, "-p", os.getpid(), "-f") as followed:
        yield all_, followed
        for one in (all_, followed):
            events = one.stop()
            assert one.process.returncode == 0
            check_stream(events, lost=events[-1]["lost"])


@pytest.fixture
def stage(ns, family, tracers):
    made = Stage(ns, family, tracers)
    yield made
    made.end()


# ---- CLOSE_WAIT


def leave(customer, near, server, far):
    """The customer goes away, and the server reads the end."""
    customer("close", near)
    server("waitin", far)
    assert server("read", far, 9) == [0]


def leak(stage, server, far, **more):
    expected = {"mark": "leaky_handler", "made": "accept_loop", "evidence": ("state", "eof")}
    return stage.verdict(Blame("CW01", server, far, **(expected | more)))


def test_end_of_file_read_and_never_closed(stage):
    server, far, customer, near = stage.encounter()
    leave(customer, near, server, far)
    leak(stage, server, far, says=("read() returned 0", "close() was never called"))


def test_nothing_read_since_the_fin(stage):
    """58 bytes that nobody reads, and the FIN: ss shows 59."""
    server, far, customer, near = stage.encounter()
    customer("write", near, 58)
    customer("close", near)
    says = (
        "Recv-Q was 59 then: 58 bytes not read and 1 for the FIN.",
        "End of file was not read since then.",
    )
    blame = Blame("CW02", server, far, made="accept_loop", says=says, evidence=("state",))
    stage.verdict(blame)
    assert stage.ns.socket(*_ports(stage, "CLOSE_WAIT"))["recv_q"] == 59


def _ports(stage, state):
    (row,) = stage.ns.sockets(state)
    return row["sport"], row["dport"]


def test_read_after_the_fin_but_not_to_the_end(stage):
    """All data was read, the end was not: nobody may say that nothing was read."""
    server, far, customer, near = stage.encounter()
    customer("write", near, 58)
    customer("close", near)
    until(lambda: stage.ns.sockets("CLOSE_WAIT"))
    assert server("read", far, 58) == [58]
    (finding,) = stage.verdict(Blame("CW02", server, far, made="accept_loop"))
    assert "Nothing was read" not in finding["says"]
    assert "58 unread" not in finding["says"]


def test_never_accepted(stage):
    server, _, port = stage.serve()
    customer = stage.start()
    near, _ = customer("connect", stage.family.loop, port)
    customer("close", near)
    says = (f"in the accept queue of culprit (pid {server.pid})",)
    stage.verdict(Blame("CW03", None, None, says=says))


def test_older_than_the_tracer(stage, trace):
    server, far, customer, near = stage.encounter()
    customer("close", near)
    with Diagnosing("-p", server.pid) as late:
        stage.tracers = [late]
        (finding,) = stage.verdict(Blame("CW04", server, far, evidence=("existing",)))
        assert finding["unknown"]


def test_an_old_connection_that_is_closed_in_time(stage):
    """Open before the tracer came, and closed before it may be told."""
    server, far, customer, near = stage.encounter()
    with Diagnosing("-p", server.pid, "--older-than", 60) as late:
        stage.tracers = [late]
        leave(customer, near, server, far)
        stage.verdict()


def test_an_old_connection_that_is_not(stage):
    server, far, customer, near = stage.encounter()
    with Diagnosing("-p", server.pid, "--older-than", OLDER_THAN_S) as late:
        stage.tracers = [late]
        leave(customer, near, server, far)
        (finding,) = leak(stage, server, far, made=None, says=("the longest for",))
        assert finding["unknown"]  # how it was made
        assert "FIN" not in finding["unknown"][0]


# ---- the same leak, by every way to hold a socket


def test_the_child_holds_it(stage):
    """Prefork: the parent has closed its descriptor, the child has not."""
    server, far, customer, near = stage.encounter()
    child = server.fork()
    server("close", far)
    leave(customer, near, child, far)
    leak(stage, child, far, made=None)


def test_the_child_accepts(stage):
    server, listener, port = stage.serve()
    child = server.fork()
    customer, near, far = stage.meet(child, listener, port)
    leave(customer, near, child, far)
    leak(stage, child, far)


def test_a_thread_reads(stage):
    server, far, customer, near = stage.encounter()
    customer("close", near)
    server("waitin", far)
    got, tid = server("thread", "read", far, 9)
    assert got == 0
    (finding,) = leak(stage, server, far)
    assert finding["tid"] == tid != server.pid


def test_a_duplicate_is_left(stage):
    server, far, customer, near = stage.encounter()
    (copy,) = server("dup", far)
    server("close", far)
    leave(customer, near, server, copy)
    leak(stage, server, copy)


def test_ipv4_in_an_ipv6_socket(stage):
    stage.family = Family("mapped", "::", "127.0.0.1", 4, 32)
    server, far, customer, near = stage.encounter()
    leave(customer, near, server, far)
    leak(stage, server, far, says=(" from 127.0.0.1:",))


def test_many_of_one_code_path_are_one_finding(stage):
    server, listener, port = stage.serve()
    meetings = [stage.meet(server, listener, port) for _ in range(3)]
    for customer, near, _ in meetings:
        customer("close", near)
    for _, _, far in meetings:
        server("waitin", far)
        assert server("read", far, 9) == [0]
    evidence = ("state",) * 3 + ("eof",) * 3
    fds = tuple(f"fd {far} from" for _, _, far in meetings)
    leak(stage, server, meetings[0][2], says=("3 sockets of", *fds), evidence=evidence)


# ---- no CLOSE_WAIT is left


def test_shutdown_instead_of_close(stage):
    server, far, customer, near = stage.encounter()
    leave(customer, near, server, far)
    server("shutdown", far)
    stage.verdict()


def test_exit_without_close(stage):
    server, far, customer, near = stage.encounter()
    leave(customer, near, server, far)
    server.exit()
    stage.verdict()


def test_closed_in_time(stage):
    server, far, customer, near = stage.encounter()
    leave(customer, near, server, far)
    server("close", far)
    stage.verdict()


# ---- SIGPIPE


def dead_end(stage):
    """The customer has closed; its kernel has answered the first data after that with a RST.

    The kernel, not the customer: of its socket only a remainder is left by then.
    """
    server, far, customer, near = stage.encounter()
    customer("close", near)
    until(lambda: stage.ns.sockets("FIN_WAIT2"))
    assert server("write", far, 5) == [5]
    server("waitend", far)
    return server, far


def until(true):
    deadline = time.monotonic() + PATIENCE_S
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)  # a delayed ACK comes in silence


def broken_pipe(process, *words):
    with pytest.raises(PuppetError, match="Broken pipe"):
        process(*words)


def test_killed_by_sigpipe(stage):
    server, far = dead_end(stage)
    server.send("write", far, 5)
    server.wait()
    assert server.process.returncode == -signal.SIGPIPE
    says = ("was killed by SIGPIPE", "EPIPE; RST received", "SIG_DFL")
    stage.verdict(Blame("SP01", server, far, "reply_to", says=says))


@pytest.mark.parametrize(
    ("how", "says"), [("ignore", "ignored."), ("handle", "handled (handler 0x"), ("block", "bloc")]
)
def test_sigpipe_that_does_not_kill(stage, how, says):
    server, far = dead_end(stage)
    server("sigpipe", how)
    broken_pipe(server, "write", far, 5)
    broken_pipe(server, "write", far, 5)
    says = ("failed with EPIPE; RST received", f"SIGPIPE is {says}")
    stage.verdict(Blame("SP02", server, far, "reply_to", says=says))


def test_a_write_without_signal(stage):
    server, far = dead_end(stage)
    broken_pipe(server, "send", far, 5)
    stage.verdict()


def test_somebody_elses_sigpipe(stage):
    server, _, customer, near = stage.encounter()
    server.kill(signal.SIGPIPE)
    server.wait()
    customer("close", near)
    stage.verdict()


# ---- loops


def test_write_loop(stage):
    server, far = dead_end(stage)
    server("sigpipe", "ignore")
    (failures,) = server("write_loop", far, 2500)
    assert failures > 1000
    says = ("failing writes/s (EPIPE)", f"by thread {server.pid} of", "SIGPIPE is ignored")
    stage.verdict(
        Blame("WL01", server, far, "send_loop", says=says, least=2, most=2),
        Blame("SP02", server, far, "send_loop"),
    )


def test_read_loop_at_end_of_file(stage):
    server, far, customer, near = stage.encounter()
    customer("close", near)
    server("waitin", far)
    (ends, tid) = server("thread", "read_loop", far, 2500)
    assert ends > 1000
    says = ("reads/s at end of file", f"by thread {tid} of")
    stage.verdict(
        Blame("RL01", server, far, "poll_loop", says=says, least=2, most=2),
        Blame("CW01", server, far, "poll_loop"),
    )


# ---- RST


def test_close_with_unread_data(stage):
    server, far, customer, near = stage.encounter()
    customer("write", near, 58)
    server("waitin", far)
    server("close", far)
    says = ("sent a RST", "before all that had come was read", "in ESTABLISHED.")
    stage.verdict(Blame("RS01", server, far, "hang_up", says=says))


def test_close_with_linger_zero(stage):
    server, far, _, _ = stage.encounter()
    server("linger", far)
    server("close", far)
    says = ("SO_LINGER 0", "in ESTABLISHED.")
    stage.verdict(Blame("RS02", server, far, "hang_up", says=says))


def test_data_after_close(stage):
    """Its tcp_fin_timeout is long: else a remainder may have taken the socket's place."""
    stage.ns.sysctl("net.ipv4.tcp_fin_timeout", 120)
    server, far, customer, near = stage.encounter()
    server("close", far)
    customer("waitin", near)
    assert customer("write", near, 5) == [5]
    customer("waitend", near)
    stage.verdict(Blame("RS03", server, None, "hang_up", says=("data came after it was closed",)))


# ---- nothing wrong


@pytest.mark.parametrize("greet", [(), ("greet",)], ids=["hasty", "greeted"])
def test_a_healthy_server_under_load(stage, programs, greet):
    """2000 connections that both ends close properly."""
    load = Load(programs, stage.ns, stage.family, *greet, connections=2000)
    try:
        load.run()
        stage.verdict()
    finally:
        load.end()


# ---- recorded


STORY = ("code", "rule", "pid", "fd", "cookie", "cookies", "count")
"""What is the same in a live run and in another one's recording."""


def misdeeds(stage):
    """Several findings, one after the other."""
    server, far, customer, near = stage.encounter()
    leave(customer, near, server, far)
    other, far, customer, near = stage.encounter()
    customer("write", near, 58)
    other("waitin", far)
    other("close", far)
    broken, far = dead_end(stage)
    broken("sigpipe", "ignore")
    broken_pipe(broken, "write", far, 5)
    return Blame("CW01", server, 4), Blame("RS01", other, 4), Blame("SP02", broken, 4)


def diagnosed(path):
    """What ``diagnose --from`` says, run by a user without rights."""
    command = [*TCPTRACE, "diagnose", "--from", path, "--format", "ndjson"]
    done = subprocess.run(
        [str(word) for word in [*command, "--older-than", OLDER_THAN_S]],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=become_nobody,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_live_stream_is_diagnosed_again(ns, family, tmp_path):
    """The same evidence, so the same findings; those of the stream are not doubled."""
    with Diagnosing("--netns", ns.name, "--older-than", OLDER_THAN_S) as live:
        stage = Stage(ns, family, [live])
        told = stage.verdict(*misdeeds(stage))
        events = live.stop()
        check_stream(events)
        stage.end()
    path = tmp_path / "live.ndjson"
    path.write_bytes(b"".join(live.lines))
    again = diagnosed(readable(path))
    same = (*STORY, "evidence", "stack_id", "birth_stack_id", "says")
    assert by_code(again, same[:-1]) == by_code(told, same[:-1])
    assert [one["event"] for one in again] == ["finding"] * len(told)


def test_a_recording_is_diagnosed(ns, family, tmp_path):
    path = tmp_path / "recording.ndjson"
    with (
        Diagnosing("--netns", ns.name, "--older-than", OLDER_THAN_S) as live,
        Recording("--netns", ns.name, "-o", path) as record,
    ):
        stage = Stage(ns, family, [live])
        told = stage.verdict(*misdeeds(stage))
        record.stop()
        assert record.process.returncode == 0
        stage.end()
    events = [json.loads(line) for line in path.read_text().splitlines()]
    check_stream(events)
    assert {one["event"] for one in events} >= {"start", "stack", "eof", "write_error", "reset"}
    assert not [one for one in events if one["event"] == "finding"]
    found = diagnosed(readable(path))
    assert by_code(found, STORY) == by_code(told, STORY)
    assert evidence(found, events) == evidence(told, live.events)


def readable(path):
    """For everybody: the folders of pytest are their owner's alone."""
    copy = empty_folder() / path.name
    copy.write_bytes(path.read_bytes())
    for one in (copy.parent.parent, copy.parent, copy):
        one.chmod(0o755)
    return copy


def by_code(findings, names):
    return {one["code"]: {name: one[name] for name in names} for one in findings}


def evidence(findings, events):
    """The events behind the numbers: what, of which socket."""
    return {
        one["code"]: [
            (events[seq - 1]["event"], events[seq - 1]["cookie"]) for seq in one["evidence"]
        ]
        for one in findings
    }
