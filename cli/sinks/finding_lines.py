"""Findings, and RSTs, for a person."""

from __future__ import annotations

from typing import Any

from tcptrace.probes.diagnose.words import local, peer

_COLOURS = {"error": "\x1b[31m", "warning": "\x1b[33m", "info": ""}
_DIM = "\x1b[2m"
_INDENT = "    "


def finding_lines(event: dict[str, Any]) -> list[tuple[str, str]]:
    """(text, colour) of each line."""
    head = f"{event['ts'][11:23]}  {event['severity'].upper()} {event['code']} {event['rule']}"
    lines = [(head, _COLOURS[event["severity"]])]
    lines += [(_INDENT + sentence, "") for sentence in _sentences(event["says"])]
    lines += [(f"{_INDENT}Not known: {what}.", _DIM) for what in event["unknown"]]
    lines.append((f"{_INDENT}{event['advice']}  (tcptrace explain {event['code']})", _DIM))
    return lines


def _sentences(says: str) -> list[str]:
    """The first stands alone: who, and how many."""
    first, dot, rest = says.partition(". ")
    return [first + dot.strip(), rest] if rest else [says]


def reset_line(event: dict[str, Any]) -> str:
    """One RST."""
    who = f"{event['pid']} {event['comm']}" if event["pid"] else "-"
    arrow = "->" if event["direction"] == "sent" else "<-"
    kernels = f" ({event['kernel_reason']})" if event["kernel_reason"] else ""
    return (
        f"{event['ts'][11:26]}  RST {event['direction']:<8} {who:<24} "
        f"{local(event)} {arrow} {peer(event)}  "
        f"{event['state'] or 'no socket'}  {event['reason'].replace('_', ' ')}{kernels}"
    )
