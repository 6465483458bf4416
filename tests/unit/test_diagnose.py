"""The rules, on streams written by hand: each finding, its evidence, and nothing else."""

import itertools

import pytest

from tcptrace.probes.diagnose.engine import Diagnosis
from tcptrace.probes.diagnose.rules import COMMANDS, RULES, codes_of

HANDLER = ["__read (libc.so.6)", "leaky_handler (srv) /src/srv.c:7", "main (srv) /src/srv.c:20"]
ACCEPT = ["accept (libc.so.6)", "accept_loop (srv) /src/srv.c:15", "main (srv) /src/srv.c:20"]
REPLY = ["__write (libc.so.6)", "reply (srv) /src/srv.c:31"]


class Stream:
    """Events with seq and ts; time goes on as the test says."""

    def __init__(self, **options):
        self.diagnosis = Diagnosis(frozenset(RULES), **options)
        self.seq, self.now, self.findings = itertools.count(1), 1000.0, []
        for name, frames in (("h", HANDLER), ("a", ACCEPT), ("r", REPLY)):
            self("stack", stack_id=name, frames=frames)

    def __call__(self, event, **fields):
        made = {"event": event, "seq": next(self.seq), "ts": ts(self.now)} | fields
        self.findings += self.diagnosis.feed([made])
        return made["seq"]

    def later(self, seconds):
        self.now += seconds
        new = self.diagnosis.tick(self.now)
        self.findings += new
        return new

    @property
    def codes(self):
        return [finding["code"] for finding in self.findings]


def ts(seconds):
    return f"1970-01-01T00:{int(seconds) // 60:02d}:{seconds % 60:012.9f}Z"


@pytest.fixture
def stream():
    return Stream(older_than_s=5.0)


SOCKET = {
    "pid": 7,
    "tid": 8,
    "comm": "srv",
    "fd": 4,
    "saddr": "10.0.0.1",
    "sport": 80,
    "daddr": "10.0.0.2",
    "dport": 4000,
    "netns": 1,
    "cookie": "c1",
    "listener_pid": None,
    "listener_comm": None,
    "birth_stack_id": "a",
    "user_stack_id": None,
    "recv_q": 0,
}


def fin(stream, **more):
    fields = {"old_state": "ESTABLISHED", "new_state": "CLOSE_WAIT", "reason": "fin_received"}
    return stream("state", **(SOCKET | {"recv_q": 59} | fields | more))


def eof(stream, count=1, **more):
    return stream(
        "eof", **(SOCKET | {"state": "CLOSE_WAIT", "count": count, "user_stack_id": "h"} | more)
    )


def write_error(stream, count=1, sigpipe="ignored", **more):
    fields = {"error": "EPIPE", "count": count, "sigpipe": sigpipe, "handler": None}
    return stream(
        "write_error", **(SOCKET | {"state": "CLOSE", "user_stack_id": "r"} | fields | more)
    )


def reset(stream, direction="received", reason="rst_received", **more):
    fields = {"direction": direction, "reason": reason, "kernel_reason": None, "by_call": False}
    return stream("reset", **(SOCKET | {"state": "CLOSE_WAIT"} | fields | more))


def closed(stream, **more):
    fields = {"old_state": "CLOSE_WAIT", "new_state": "LAST_ACK", "reason": "local_close"}
    return stream("state", **(SOCKET | fields | more))


# ---- CLOSE_WAIT


def test_end_of_file_read_and_never_closed(stream):
    first, second = fin(stream), eof(stream)
    assert stream.later(4.9) == []
    (finding,) = stream.later(1.2)
    assert finding["code"] == "CW01"
    assert (finding["pid"], finding["fd"], finding["count"]) == (7, 4, 1)
    assert "`leaky_handler srv.c:7`" in finding["says"]
    assert "Made in `accept_loop srv.c:15`" in finding["says"]
    assert finding["evidence"] == [first, second]
    assert (finding["stack_id"], finding["birth_stack_id"]) == ("h", "a")
    assert finding["unknown"] == []


def test_the_fin_counts_one_byte(stream):
    fin(stream, recv_q=59)
    (finding,) = stream.later(6)
    assert finding["code"] == "CW02"
    assert "Recv-Q was 59 then: 58 bytes not read and 1 for the FIN." in finding["says"]


def test_a_socket_that_is_closed_in_time_is_no_finding(stream):
    fin(stream)
    eof(stream)
    stream.later(1)
    closed(stream)
    stream.later(10)
    assert stream.codes == []


def test_the_same_sockets_are_told_once(stream):
    fin(stream)
    eof(stream)
    stream.later(6)
    stream.later(6)
    assert stream.codes == ["CW01"]


def test_many_sockets_of_one_code_path_are_one_finding(stream):
    for number in range(412):
        fin(stream, cookie=f"c{number}", fd=number)
        eof(stream, cookie=f"c{number}", fd=number)
    (finding,) = stream.later(6)
    assert finding["count"] == 412
    assert len(finding["cookies"]) == len(finding["evidence"]) == 32
    assert finding["says"].startswith("412 sockets of srv (pid 7) in CLOSE_WAIT")


def test_two_code_paths_are_two_findings(stream):
    fin(stream)
    eof(stream)
    fin(stream, cookie="c2")
    eof(stream, cookie="c2", user_stack_id="r")
    assert len(stream.later(6)) == 2


def test_never_accepted(stream):
    fin(stream, pid=None, comm=None, fd=None, listener_pid=9, listener_comm="nc")
    (finding,) = stream.later(6)
    assert finding["code"] == "CW03"
    assert "in the accept queue of nc (pid 9)" in finding["says"]


def test_older_than_the_tracer_says_what_it_does_not_know(stream):
    stream("existing", **(SOCKET | {"new_state": "CLOSE_WAIT", "birth_stack_id": None}))
    (finding,) = stream.later(1.5)
    assert finding["code"] == "CW04"
    assert finding["unknown"]
    assert "longest" not in finding["says"]


def established(stream, **more):
    """Open already when the tracer came."""
    return stream("existing", **(SOCKET | {"new_state": "ESTABLISHED", "birth_stack_id": None}))


def test_an_old_connection_that_is_closed_in_time_is_no_finding(stream):
    established(stream)
    fin(stream, birth_stack_id=None)
    eof(stream, birth_stack_id=None)
    stream.later(2)
    closed(stream)
    stream.later(10)
    assert stream.codes == []


@pytest.mark.parametrize("read", [False, True])
def test_an_old_connection_whose_fin_was_seen_is_as_a_new_one(stream, read):
    established(stream)
    first = fin(stream, birth_stack_id=None)
    if read:
        eof(stream, birth_stack_id=None)
    (finding,) = stream.later(6)
    assert finding["code"] == ("CW01" if read else "CW02")
    assert first in finding["evidence"]
    assert "the longest for 6.0 s" in finding["says"]
    assert "FIN" not in " ".join(finding["unknown"])


def test_what_comes_late_does_not_bring_a_dead_socket_back(stream):
    """A RST and an end of file are told after the transition that they led to."""
    fin(stream)
    stream("state", **(SOCKET | {"old_state": "CLOSE_WAIT", "new_state": "CLOSE",
           "reason": "rst_received"}))  # fmt: skip
    reset(stream, state="CLOSE_WAIT")
    eof(stream)
    stream.later(10)
    assert stream.codes == []


def test_a_socket_that_is_known_by_its_reads_alone_is_in_no_state(stream):
    eof(stream)
    reset(stream)
    stream.later(10)
    assert stream.codes == []


# ---- SIGPIPE and loops


def test_killed_by_sigpipe(stream):
    rst, write = reset(stream), write_error(stream, sigpipe="default")
    end = stream("exit", pid=7, comm="srv", signal="SIGPIPE", code=None)
    (finding,) = stream.findings
    assert finding["code"] == "SP01"
    assert "killed by SIGPIPE" in finding["says"]
    assert "`reply srv.c:31`" in finding["says"]
    assert "RST received at 00:16:40.000" in finding["says"]
    assert finding["evidence"] == [rst, write, end]


def test_what_closed_the_socket_is_remembered_when_it_is_in_close(stream):
    """The order on this kernel: RST, transition, and only then the write that fails."""
    first, rst = fin(stream), reset(stream)
    stream("state", **(SOCKET | {"old_state": "CLOSE_WAIT", "new_state": "CLOSE",
           "reason": "rst_received"}))  # fmt: skip
    write = write_error(stream)
    (finding,) = stream.findings
    assert finding["code"] == "SP02"
    assert "; RST received at " in finding["says"]
    assert finding["evidence"] == [first, rst, write]
    assert finding["unknown"] == []


@pytest.mark.parametrize("signal", ["SIGKILL", None])
def test_another_end_is_not_blamed_on_sigpipe(stream, signal):
    write_error(stream, sigpipe="default")
    stream("exit", pid=7, comm="srv", signal=signal, code=None)
    assert stream.codes == []


def test_killed_by_somebody_elses_sigpipe(stream):
    """kill -PIPE: no write of the process had failed."""
    stream("exit", pid=7, comm="srv", signal="SIGPIPE", code=None)
    assert stream.codes == []


def test_an_ignored_sigpipe_is_told_once_for_each_place(stream):
    for _ in range(3):
        write_error(stream)
    write_error(stream, user_stack_id="h")
    assert stream.codes == ["SP02", "SP02"]


def test_a_write_without_signal_is_none(stream):
    write_error(stream, sigpipe=None)
    assert stream.codes == []


def test_a_write_loop(stream):
    write_error(stream)
    stream.later(1)
    write_error(stream, count=5000)
    finding = stream.findings[-1]
    assert finding["code"] == "WL01"
    assert "5000 failing writes/s (EPIPE) by thread 8" in finding["says"]
    assert "since 00:16:40.000" in finding["says"]
    assert "SIGPIPE is ignored" in finding["says"]
    assert finding["unknown"] == ["what closed the connection before was not seen"]


def test_a_read_loop_at_end_of_file(stream):
    eof(stream)
    eof(stream, count=9)
    assert stream.codes == []
    eof(stream, count=10)
    assert stream.codes == ["RL01"]
    assert "`leaky_handler srv.c:7`" in stream.findings[0]["says"]


# ---- RST


@pytest.mark.parametrize(
    ("reason", "code"),
    [("unread_data", "RS01"), ("linger_zero", "RS02"), ("data_after_close", "RS03")],
)
def test_resets_with_a_cause(stream, reason, code):
    reset(stream, "sent", reason, user_stack_id="h")
    assert stream.codes == [code]
    assert "`leaky_handler srv.c:7`" in stream.findings[0]["says"]


def test_data_after_close_blames_the_close(stream):
    closed(stream, user_stack_id="h")
    reset(stream, "sent", "data_after_close", state="FIN_WAIT2")
    assert "`leaky_handler srv.c:7`" in stream.findings[0]["says"]


@pytest.mark.parametrize(
    ("direction", "reason"),
    [("received", "rst_received"), ("sent", "no_socket"), ("sent", "other")],
)
def test_other_resets_are_no_findings(stream, direction, reason):
    reset(stream, direction, reason)
    assert stream.codes == []


def test_one_place_is_told_once_a_second(stream):
    for _ in range(5):
        reset(stream, "sent", "unread_data", user_stack_id="h")
    assert stream.codes == ["RS01"]


def test_a_rst_of_an_orphan_is_its_last_owners(stream):
    """The kernel half has forgotten whose it was."""
    shut = {"old_state": "FIN_WAIT2", "new_state": "CLOSE", "reason": "reset", "fd": None}
    stream("state", **(SOCKET | {"old_state": "ESTABLISHED", "new_state": "FIN_WAIT1",
           "reason": "local_close", "user_stack_id": "h"}))  # fmt: skip
    stream("state", **(SOCKET | shut))
    nobody = {"pid": None, "tid": None, "comm": None, "fd": None}
    reset(stream, "sent", "data_after_close", state="CLOSE", **nobody)
    (finding,) = stream.findings
    assert (finding["code"], finding["pid"], finding["fd"]) == ("RS03", 7, None)
    assert "`leaky_handler srv.c:7`" in finding["says"]
    assert "The socket was in FIN_WAIT2." in finding["says"]


# ---- the engine


def test_a_healthy_server_gives_nothing(stream):
    for number in range(100):
        fin(stream, cookie=f"c{number}")
        eof(stream, cookie=f"c{number}")
        closed(stream, cookie=f"c{number}")
        stream("state", **(SOCKET | {"cookie": f"c{number}", "old_state": "LAST_ACK",
               "new_state": "CLOSE", "reason": "ack_received"}))  # fmt: skip
    stream.later(100)
    assert stream.codes == []
    assert not stream.diagnosis.flows.by_cookie


def test_only_the_wanted_rules():
    stream = Stream()
    stream.diagnosis.codes = codes_of("sigpipe")
    fin(stream)
    eof(stream)
    stream.later(10)
    write_error(stream)
    assert stream.codes == ["SP02"]


def test_the_end_of_the_stream_brings_out_the_rest():
    stream = Stream(older_than_s=0.1)
    fin(stream)
    eof(stream)
    stream.diagnosis.flows.now_s += 1
    assert [finding["code"] for finding in stream.diagnosis.finish()] == ["CW01"]


def test_every_command_has_rules_and_diagnose_has_all():
    assert codes_of("diagnose") == set(RULES)
    assert all(codes_of(command) for command in COMMANDS)


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_rules_are_complete(rule):
    assert rule.severity in ("info", "warning", "error")
    assert all((rule.looks_for, rule.means, rule.advice, rule.command in COMMANDS))
