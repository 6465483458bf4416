"""The stream's one name table: every event and field, with type and meaning.

The sinks, the text columns, docs/events.md and docs/events.schema.json all come
from here; a test compares them with what a run really writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VERSION = "1.1"
"""Minor: fields added. Major: a field removed, or its meaning changed."""


@dataclass(frozen=True, slots=True)
class Field:
    """``kind``: string, integer, number, boolean, or strings and integers (arrays)."""

    name: str
    kind: str
    says: str
    nullable: bool = True
    values: tuple[str, ...] = ()
    optional: bool = False


def _always(name: str, kind: str, says: str, *values: str) -> Field:
    return Field(name, kind, says, nullable=False, values=values)


_STATES = [
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
]

COMMON = (
    _always("ts", "string", "when it happened: RFC 3339, UTC, nanoseconds (the kernel's time)"),
    _always("seq", "integer", "number of the event in this stream, from 1, without gaps"),
    _always("event", "string", "which kind of event"),
)

OWNER = (
    Field("pid", "integer", "process that owns the socket; of an orphan: that last held it"),
    Field("tid", "integer", "its thread that made the transition, else that got the socket"),
    Field("comm", "string", "name of the process, cut at 15 bytes by the kernel"),
    Field("start_time", "string", "when the process started: with pid, proof against pid reuse"),
    Field("uid", "integer", "user id of the process"),
    Field("fd", "integer", "a descriptor under which the process holds the socket"),
    Field(
        "how",
        "string",
        "how the owner was learnt",
        values=("accept", "connect", "listen", "fork", "last_io", "fd_scan", "close"),
    ),
    Field("owner_unknown", "string", "why pid is null"),
    Field("orphan", "boolean", "no process holds it any more; the kernel finishes it"),
    Field("listener_pid", "integer", "not accepted yet: the owner of the listening socket"),
    Field("listener_comm", "string", "its name"),
)

FLOW = (
    Field("family", "string", "of the packets", values=("ipv4", "ipv6")),
    Field(
        "socket_family",
        "string",
        "of the socket: an inet6 socket may talk IPv4",
        values=("inet", "inet6"),
    ),
    Field("saddr", "string", "local address"),
    Field("sport", "integer", "local port; null: connect() has not chosen it yet"),
    Field("daddr", "string", "peer's address"),
    Field("dport", "integer", "peer's port; null: a listener has none"),
    Field("netns", "integer", "network namespace (inode number, as lsns prints it)"),
    Field("cookie", "string", "the socket's identity: hexadecimal, as `ss -e` prints it after sk:"),
    Field("inode", "integer", "inode of the socket, as /proc/PID/fd shows it"),
)

_STACK_SAYS = {
    "user": "where the owner's thread was at the transition; null: it was not running",
    "birth": "the accept(), connect() or listen() that made the socket",
    "last_read": "the last read so far that returned data or end of file",
    "last_write": "the last write so far",
    "eof": "the read that returned end of file",
    "close": "the close() or shutdown() that ended it",
    "kernel": "the kernel's own functions at the transition",
}
STACK_IDS = tuple(
    Field(f"{name}_stack_id", "string", f"id of a `stack` event: {says}")
    for name, says in _STACK_SAYS.items()
)
STACK_FRAMES = tuple(
    Field(f"{name}_stack", "strings", f"with --inline-stacks: frames, {says}", optional=True)
    for name, says in _STACK_SAYS.items()
)
STATE = (
    *OWNER,
    Field("cpu_pid", "integer", "process that happened to run on the CPU: NOT the owner; 0: none"),
    *FLOW,
    Field("old_state", "string", "state before, by the kernel's name", values=tuple(_STATES)),
    Field("new_state", "string", "state after", values=tuple(_STATES)),
    Field("reason", "string", "why; the table of reasons is below"),
    Field(
        "duration_us",
        "integer",
        "time in old_state in microseconds; null: it began before tcptrace",
    ),
    Field(
        "recv_q", "integer", "bytes not yet read (a FIN counts 1); LISTEN: connections to accept"
    ),
    Field("send_q", "integer", "bytes not yet acknowledged; LISTEN: limit of the backlog"),
    Field("accept_wait_us", "integer", "how long it waited in the accept queue, microseconds"),
    Field(
        "became",
        "string",
        "what CLOSE really was",
        values=("time_wait", "fin_wait2", "gone"),
    ),
    Field(
        "lives_on_s", "integer", "seconds that the kernel keeps a TIME_WAIT or FIN_WAIT2 remainder"
    ),
    *STACK_IDS,
    *STACK_FRAMES,
)

STACK = (
    _always("stack_id", "string", "names these frames in the events that follow"),
    _always(
        "frames",
        "strings",
        "`function (module) file:line`, the innermost first; in brackets what is not certain",
    ),
)

EXISTING = (
    *OWNER,
    Field("holders", "strings", "every pid:fd that holds the socket"),
    *FLOW,
    Field("new_state", "string", "state in which it was found", values=tuple(_STATES)),
    Field(
        "recv_q", "integer", "bytes not yet read (a FIN counts 1); LISTEN: connections to accept"
    ),
    Field("send_q", "integer", "bytes not yet acknowledged; LISTEN: limit of the backlog"),
)

START = (
    _always("schema", "string", "version of this table"),
    _always("version", "string", "version of tcptrace"),
    _always("host", "string", "host name"),
    _always("kernel", "string", "kernel release"),
    _always("machine", "string", "processor architecture"),
    _always("command", "string", "the command line"),
    _always("rungs", "strings", "which hook each fact stands on"),
    _always("monotonic_ns", "string", "CLOCK_MONOTONIC at ts, to join with other tools"),
)

LOSS = (
    _always("lost", "integer", "events lost since the last loss event"),
    _always(
        "where",
        "string",
        "what was full or busy",
        "ring_full",
        "table_full",
        "listeners_full",
        "nested",
        "stacks_suppressed",
        "deeds_full",
    ),
    _always("lost_total", "integer", "events lost since the start, at this place"),
)

END = (
    _always("why", "string", "what ended the stream"),
    _always("events", "integer", "events written, this one included"),
    _always("states", "integer", "transitions written"),
    _always("existing", "integer", "existing sockets written"),
    _always(
        "owner_unknown", "integer", "transitions of a held socket whose owner could not be told"
    ),
    _always("lost", "integer", "events lost in the kernel, in all"),
    _always("ran_s", "number", "seconds from ready to end"),
)

_USER_IDS = tuple(field for field in STACK_IDS if field.name.startswith(("user_", "birth_")))
_USER_FRAMES = tuple(field for field in STACK_FRAMES if field.name.startswith(("user_", "birth_")))
_DEED = (
    *OWNER,
    *FLOW,
    Field("state", "string", "the socket's state at that moment", values=tuple(_STATES)),
)
_COUNT = _always("count", "integer", "how often, by this thread on this socket, since last told")

EOF = (
    *_DEED,
    _COUNT,
    Field("recv_q", "integer", "bytes not yet read (a FIN counts 1)"),
    *_USER_IDS,
    *_USER_FRAMES,
)

WRITE_ERROR = (
    *_DEED,
    _always("error", "string", "what write() returned: EPIPE, ECONNRESET, ..."),
    _COUNT,
    Field(
        "sigpipe",
        "string",
        "what the SIGPIPE does that came with it; null: none came (MSG_NOSIGNAL)",
        values=("default", "ignored", "handled", "blocked"),
    ),
    Field("handler", "string", "address of the signal's handler, if it has one"),
    *_USER_IDS,
    *_USER_FRAMES,
)

RESET = (
    *_DEED,
    _always("direction", "string", "which way it went", "sent", "received"),
    _always("reason", "string", "why, in tcptrace's words"),
    Field("kernel_reason", "string", "the kernel's own word (since 6.10)"),
    _always("by_call", "boolean", "a call of the owner's caused it: user_stack is the culprit"),
    *_USER_IDS,
    *_USER_FRAMES,
)

EXIT = (
    _always("pid", "integer", "process that ended"),
    _always("tid", "integer", "its last thread"),
    _always("comm", "string", "its name"),
    _always("start_time", "string", "when it had started"),
    _always("uid", "integer", "its user id"),
    Field("signal", "string", "the signal that killed it; null: it exited by itself"),
    Field("code", "integer", "its exit code; null: a signal killed it"),
)

FINDING = (
    _always("code", "string", "the rule's stable code: `tcptrace explain CODE`"),
    _always("rule", "string", "its name"),
    _always("severity", "string", "how bad", "info", "warning", "error"),
    _always("says", "string", "what was found, with figures and the line of code"),
    _always("advice", "string", "what to do"),
    Field("pid", "integer", "process to blame; null: none"),
    Field("tid", "integer", "its thread"),
    Field("comm", "string", "its name"),
    Field("fd", "integer", "descriptor of the first socket"),
    Field("cookie", "string", "the first socket"),
    Field("saddr", "string", "its local address"),
    Field("sport", "integer", "its local port"),
    Field("daddr", "string", "its peer's address"),
    Field("dport", "integer", "its peer's port"),
    Field("netns", "integer", "its network namespace"),
    _always("cookies", "strings", "the sockets, 32 at most"),
    _always("count", "integer", "how many sockets"),
    _always("evidence", "integers", "seq of the events it rests on, 32 at most"),
    Field("stack_id", "string", "the guilty stack"),
    Field("birth_stack_id", "string", "the stack that made the socket"),
    Field("since", "string", "when it began"),
    _always("unknown", "strings", "what is not known, and why"),
    Field("incident", "string", "the same for all findings of one story"),
)

EVENTS: dict[str, tuple[Field, ...]] = {
    "start": COMMON + START,
    "existing": COMMON + EXISTING,
    "state": COMMON + STATE,
    "eof": COMMON + EOF,
    "write_error": COMMON + WRITE_ERROR,
    "reset": COMMON + RESET,
    "exit": COMMON + EXIT,
    "finding": COMMON + FINDING,
    "stack": COMMON + STACK,
    "loss": COMMON + LOSS,
    "end": COMMON + END,
}

SAYS = {
    "start": "Once, first: who writes this stream, and on what it stands.",
    "existing": "A socket that was there before tcptrace, or that a traced process was handed.",
    "state": "One state transition of one socket.",
    "eof": "A read returned end of file; while that goes on, once a second.",
    "write_error": "A write failed; while that goes on, once a second.",
    "reset": "A RST was sent or received.",
    "exit": "A traced process ended.",
    "finding": "What a rule found (`tcptrace diagnose`).",
    "stack": "A stack, before the first event that names it. Equal stacks have one id.",
    "loss": "Something was lost, and how much. Nothing is lost without one of these.",
    "end": "Once, last: the counts. A stream without it was cut off.",
}

_TYPES: dict[str, Any] = {
    "string": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "integers": {"type": "array", "items": {"type": "integer"}},
    "strings": {"type": "array", "items": {"type": "string"}},
}


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of one line of the stream."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"tcptrace event stream {VERSION}",
        "oneOf": [_event_schema(name, fields) for name, fields in EVENTS.items()],
    }


def _event_schema(name: str, fields: tuple[Field, ...]) -> dict[str, Any]:
    properties = {field.name: _field_schema(field) for field in fields}
    properties["event"] = {"const": name, "description": SAYS[name]}
    return {
        "title": name,
        "type": "object",
        "properties": properties,
        "required": [field.name for field in fields if not field.optional],
    }


def _field_schema(field: Field) -> dict[str, Any]:
    schema = dict(_TYPES[field.kind])
    if field.values:
        schema["enum"] = [*field.values, *([None] if field.nullable else [])]
    if field.nullable:
        schema["type"] = [schema["type"], "null"]
    return schema | {"description": field.says}
