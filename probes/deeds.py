"""What happens to sockets besides transitions, as events: eof, write_error, reset, exit."""

from __future__ import annotations

import errno
import os
import signal
from typing import Any

from tcptrace.probes.engine.constants import Deed, Fact, Pipe, TcpState
from tcptrace.probes.engine.ring import Row
from tcptrace.probes.enrich import resetreason
from tcptrace.probes.enrich.owner import CLOSED
from tcptrace.probes.enrich.procfs import comm_text
from tcptrace.probes.states import Event, socket_fields

_STATE = {int(state): state.name for state in TcpState}
_PIPE = {int(pipe): pipe.name.lower() for pipe in Pipe}

_REMAINDER = {"orphan": True, "owner_unknown": CLOSED, "uncertain": False}
"""Of a TIME_WAIT remainder nobody is the owner any more."""


class DeedInterpreter:
    """Turns rows of the ring ``deeds`` into events, as Interpreter does for transitions."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def interpret(self, row: Row) -> Event:
        """The event of one record."""
        record: dict[str, Any] = dict(zip(self._names, row, strict=True))
        kind = Deed(record["kind"])
        if kind == Deed.EXIT:
            return _exit(record)
        event = _socket(record)
        if kind == Deed.EOF:
            return event | {"event": "eof", "count": record["count"], "recv_q": record["recv_q"]}
        if kind == Deed.WRITE_ERROR:
            return event | _write_error(record)
        return event | _reset(record, sent=kind == Deed.RESET_SENT)


def _socket(record: dict[str, Any]) -> Event:
    stacks = (record["user_stack"], record["birth_stack"], 0, 0, 0, record["close_stack"], 0)
    return socket_fields(record) | {
        "state": _STATE.get(record["state"]),
        "listener_pid": None,
        "stack_ids": stacks,
    }


def _write_error(record: dict[str, Any]) -> Event:
    number = -record["result"]
    return {
        "event": "write_error",
        "error": errno.errorcode.get(number, str(number)),
        "count": record["count"],
        "sigpipe": _PIPE.get(record["disposition"]),
        "handler": f"{record['handler']:#x}" if record["handler"] > 1 else None,
    }


def _reset(record: dict[str, Any], *, sent: bool) -> Event:
    kernels = resetreason.kernels_word(record["result"]) if sent else None
    return {
        "event": "reset",
        "direction": "sent" if sent else "received",
        "reason": resetreason.reason(
            kernels, record["facts"], _STATE.get(record["state"]), sent=sent
        ),
        "kernel_reason": kernels,
        "by_call": sent and bool(record["facts"] & Fact.LOCKED_BY_CURRENT and record["user_stack"]),
    } | (_REMAINDER if record["state"] == TcpState.TIME_WAIT else {})


def _exit(record: dict[str, Any]) -> Event:
    number = record["result"] & 0x7F
    return {
        "event": "exit",
        "ts_ns": record["ts_ns"],
        "pid": record["pid"],
        "tid": record["tid"],
        "comm": comm_text(record["comm"]),
        "uid": record["uid"],
        "start_ns": record["start_ns"],
        "signal": _signal_name(number) if number else None,
        "code": None if number else os.waitstatus_to_exitcode(record["result"] & 0xFF00),
        "uncertain": False,
    }


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
