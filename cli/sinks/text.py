"""Aligned lines for a person. Colour and cutting to width only on a terminal."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Sequence
from typing import Any

from tcptrace.cli.sinks.base import LineWriter
from tcptrace.cli.sinks.finding_lines import finding_lines, reset_line
from tcptrace.cli.sinks.stack_lines import Depth, stack_lines
from tcptrace.probes.diagnose.words import local, peer

_HEADER = (
    f"{'TIME (UTC)':<15} {'PID':>7} {'COMM':<15} {'FD':>4} {'STATE':<25} "
    f"{'LOCAL':<21} {'PEER':<21} {'FOR':>9}  WHY"
)
_RED, _YELLOW, _GREEN, _DIM, _PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[32m", "\x1b[2m", "\x1b[0m"
_SILENT = {"start", "stack", "eof", "write_error", "exit"}
_COLOURS = {"CLOSE_WAIT": _YELLOW, "ESTABLISHED": _GREEN, "CLOSE": _DIM, "TIME_WAIT": _DIM}


class TextSink:
    """On a terminal lines are cut at its width, but not with ``--full-stack``."""

    def __init__(
        self,
        writer: LineWriter,
        *,
        terminal: bool,
        depth: Depth | None = None,
        shows: frozenset[str] | None = None,
    ) -> None:
        self._writer = writer
        self._terminal = terminal
        self._depth = depth or Depth()
        self._shows = shows
        self._headed = False

    def write(self, events: Sequence[dict[str, Any]]) -> None:
        whole = not self._terminal or self._depth.frames is None
        width = None if whole else shutil.get_terminal_size().columns
        lines = [text for event in events for text in self._lines(event)]
        self._writer.write([self._finish(line, colour, width) for line, colour in lines])

    def close(self) -> None:
        self._writer.close()

    def _lines(self, event: dict[str, Any]) -> list[tuple[str, str]]:
        kind = event["event"]
        if kind in _SILENT or (self._shows and kind not in self._shows):
            return []
        if kind == "finding":
            return finding_lines(event)
        if kind == "reset":
            return [(reset_line(event), "")]
        if kind == "loss":
            return [(loss_line(event), _RED)]
        if kind == "end":
            return [(end_line(event), _DIM)]
        header = [] if self._headed else [(_HEADER, "")]
        self._headed = True
        lines = [*header, (socket_line(event), self._colour(event))]
        if kind == "state":
            lines += [(line, _DIM) for line in stack_lines(event, self._depth)]
        return lines

    def _colour(self, event: dict[str, Any]) -> str:
        if str(event.get("reason", "")).startswith(("rst", "reset", "timeout", "refused")):
            return _RED
        return _COLOURS.get(event["new_state"], "")

    def _finish(self, line: str, colour: str, width: int | None) -> bytes:
        line = safe(line)
        if width:
            line = cut(line, width)
        if self._terminal and colour:
            line = f"{colour}{line}{_PLAIN}"
        return (line + "\n").encode()


def socket_line(event: dict[str, Any]) -> str:
    """One ``state`` or ``existing`` event."""
    fd = "-" if event["fd"] is None else str(event["fd"])
    return (
        f"{event['ts'][11:26]:<15} {_pid(event):>7} {_comm(event):<15} {fd:>4} "
        f"{_states(event):<25} "
        f"{local(event):<21} {peer(event):<21} "
        f"{_duration(event.get('duration_us')):>9}  {_why(event)}"
    )


def loss_line(event: dict[str, Any]) -> str:
    """What was lost, and where."""
    if event["where"] == "stacks_suppressed":
        return f"{event['lost']} stacks not taken: too many new ones came in one second"
    return f"LOST {event['lost']} events ({event['where']})"


def end_line(event: dict[str, Any]) -> str:
    """The counts."""
    lost = f", {event['lost']} LOST" if event["lost"] else ", none lost"
    unknown = f", {event['owner_unknown']} with unknown owner" if event["owner_unknown"] else ""
    return (
        f"-- {event['why']}: {_many(event['states'], 'transition')}, "
        f"{_many(event['existing'], 'existing socket')}"
        f"{unknown}{lost}, {event['ran_s']:.1f} s"
    )


def _many(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def cut(line: str, width: int) -> str:
    """To so many columns: letters of East Asia take two."""
    used = 0
    for index, char in enumerate(line):
        used += 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if used > width:
            return _cut_to(line[:index], width - 1) + "…"
    return line


def _cut_to(line: str, width: int) -> str:
    while line and sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line) > width:
        line = line[:-1]
    return line


def safe(text: str) -> str:
    """Control characters of hostile names shown, not obeyed."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def _pid(event: dict[str, Any]) -> str:
    return "-" if event["pid"] is None else str(event["pid"])


def _comm(event: dict[str, Any]) -> str:
    if event["comm"] is not None:
        return str(event["comm"])
    if event["listener_pid"]:
        return f"({event['listener_comm'] or event['listener_pid']})"
    return "-"


def _states(event: dict[str, Any]) -> str:
    if event["event"] == "existing":
        return f"{event['new_state']} (existing)"
    return f"{event['old_state']} -> {event['new_state']}"


def _duration(us: int | None) -> str:
    if us is None:
        return "-"
    if us < 1000:
        return f"{us}us"
    return f"{us / 1000:.1f}ms" if us < 1_000_000 else f"{us / 1e6:.1f}s"


def _why(event: dict[str, Any]) -> str:
    parts = [event["reason"].replace("_", " ")] if event.get("reason") else []
    if event.get("became") in ("time_wait", "fin_wait2"):
        parts.append(f"lives on in {event['became'].upper()} for {event['lives_on_s']} s")
    if event["recv_q"] or event["send_q"]:
        parts.append(f"Recv-Q {event['recv_q']} Send-Q {event['send_q']}")
    if event["orphan"]:
        parts.append("orphan")
    if event["listener_pid"] and event["pid"] is None:
        parts.append(f"in the accept queue of pid {event['listener_pid']}")
    elif event["owner_unknown"]:
        parts.append(f"owner unknown: {event['owner_unknown']}")
    if len(event.get("holders") or ()) > 1:
        parts.append("held by " + " ".join(event["holders"]))
    return ", ".join(parts)
