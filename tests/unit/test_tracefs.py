"""Format files of tracepoints, as kernels from 5.10 to 7.2 write them.

Those of inet_sock_set_state, tcp_send_reset-6.12 and sys_exit_accept4 are copies from a
running 6.18; the others were written from a list of the fields of those kernels.
"""

from pathlib import Path

import pytest

from tcptrace.probes.engine import tracefs

RECORDED = Path(__file__).parent / "recorded" / "formats"
COMMON = {"common_type": 0, "common_flags": 2, "common_preempt_count": 3, "common_pid": 4}

EXPECTED = {
    "inet_sock_set_state": "skaddr:8 oldstate:16 newstate:20 sport:24 dport:26 family:28 "
    "protocol:30 saddr:32 daddr:36 saddr_v6:40 daddr_v6:56",
    "tcp_send_reset-5.10": "skbaddr:8 skaddr:16 state:24 sport:28 dport:30 "
    "saddr:32 daddr:36 saddr_v6:40 daddr_v6:56",
    "tcp_send_reset-6.1": "skbaddr:8 skaddr:16 state:24 sport:28 dport:30 family:32 "
    "saddr:34 daddr:38 saddr_v6:42 daddr_v6:58",
    "tcp_send_reset-6.12": "skbaddr:8 skaddr:16 state:24 reason:28 saddr:32 daddr:60",
    "tcp_destroy_sock-6.1": "skaddr:8 sport:16 dport:18 family:20 "
    "saddr:22 daddr:26 saddr_v6:30 daddr_v6:46 sock_cookie:64",
    "kfree_skb-7.2": "skbaddr:8 location:16 rx_sk:24 protocol:32 reason:36",
    "signal_generate": "sig:8 errno:12 code:16 comm:20 pid:36 group:40 result:44",
    "sys_exit_accept4": "__syscall_nr:8 ret:16",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_offset_of_every_field_is_found(name):
    pairs = (word.split(":") for word in EXPECTED[name].split())
    expected = COMMON | {field: int(offset) for field, offset in pairs}
    assert tracefs.parse_format((RECORDED / f"{name}.format").read_text()) == expected


def test_every_recorded_file_is_used():
    assert {path.stem for path in RECORDED.glob("*.format")} == set(EXPECTED)


def test_a_tracepoint_that_is_not_there_has_no_fields(tmp_path, monkeypatch):
    monkeypatch.setattr(tracefs, "TRACEFS", tmp_path)
    assert tracefs.fields("tcp:no_such_tracepoint_at_all") == {}
    assert not tracefs.exists("tcp:no_such_tracepoint_at_all")


def test_a_tracepoint_that_is_there_is_found_below_events(tmp_path, monkeypatch):
    monkeypatch.setattr(tracefs, "TRACEFS", tmp_path)
    folder = tmp_path / "events/syscalls/sys_exit_recorded"
    folder.mkdir(parents=True)
    (folder / "format").write_text((RECORDED / "sys_exit_accept4.format").read_text())
    assert tracefs.exists("syscalls:sys_exit_recorded")
    assert tracefs.fields("syscalls:sys_exit_recorded")["ret"] == 16


def test_an_ordinary_user_may_ask(tmp_path, monkeypatch):
    """/sys/kernel/tracing is 0700 root: the answer is no, not a traceback."""
    closed = tmp_path / "tracing"
    (closed / "events/tcp/tcp_probe").mkdir(parents=True)
    (closed / "events/tcp/tcp_probe/format").touch()
    closed.chmod(0)
    monkeypatch.setattr(tracefs, "TRACEFS", closed)
    try:
        assert tracefs.exists("tcp:tcp_probe") in (True, False)  # root sees through it
    finally:
        closed.chmod(0o700)
