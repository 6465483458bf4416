"""The rules as data: what each looks for, what it advises, and what it cannot know."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """``code`` never changes its meaning. ``command``: the one that shows it alone."""

    code: str
    name: str
    command: str
    severity: str
    looks_for: str
    means: str
    advice: str


_ALL = (
    Rule(
        "CW01",
        "close-wait-eof-never-closed",
        "close-wait",
        "warning",
        "A socket in CLOSE_WAIT whose process has read the end of file and did not close it.",
        "The peer closed its side; the program noticed (read() returned 0) and forgot the socket.",
        "Close the socket where read() returns 0, also on the error paths.",
    ),
    Rule(
        "CW02",
        "close-wait-never-read",
        "close-wait",
        "warning",
        "A socket in CLOSE_WAIT whose process has not read the end of file.",
        "The program does not know yet that the peer has closed: nobody reads to the end.",
        "Read until end of file, or set a timeout; look at what the thread does instead.",
    ),
    Rule(
        "CW03",
        "close-wait-never-accepted",
        "close-wait",
        "warning",
        "A connection in CLOSE_WAIT that waits in the accept queue; no process has accepted it.",
        "The listener's process does not call accept() often enough, or not at all.",
        "Look at what the listener's process does; it is blocked, stopped or overloaded.",
    ),
    Rule(
        "CW04",
        "close-wait-older-than-tracer",
        "close-wait",
        "warning",
        "A socket that was in CLOSE_WAIT already when tracing began.",
        "The peer has closed; how the socket was made and read was not seen.",
        "Let tcptrace run while such sockets come to be, and it names the line.",
    ),
    Rule(
        "SP01",
        "killed-by-sigpipe",
        "sigpipe",
        "error",
        "A process that SIGPIPE ended, with the write that brought it.",
        "The peer was gone; write() raised SIGPIPE, and its default is to end the process.",
        "Ignore SIGPIPE (signal(SIGPIPE, SIG_IGN)), or write with MSG_NOSIGNAL; handle EPIPE.",
    ),
    Rule(
        "SP02",
        "sigpipe-not-fatal",
        "sigpipe",
        "info",
        "A write that failed with EPIPE, where SIGPIPE is ignored, handled or blocked.",
        "The peer was gone; the program has to see it by the error that write() returns.",
        "Check what the code does with EPIPE: it should close the socket.",
    ),
    Rule(
        "WL01",
        "write-loop",
        "write-loops",
        "error",
        "A thread that keeps writing to a socket on which writing can only fail.",
        "The error of write() is not acted upon.",
        "Close the socket at EPIPE and ECONNRESET; do not write again.",
    ),
    Rule(
        "RL01",
        "read-loop-at-eof",
        "write-loops",
        "error",
        "A thread that keeps reading a socket that is at end of file.",
        "read() returns 0 again and again, at once each time: a busy loop.",
        "Close the socket, or take it out of poll/epoll, where read() returns 0.",
    ),
    Rule(
        "RS01",
        "reset-by-unread-data",
        "resets",
        "warning",
        "A RST that was sent because the socket was closed before all data was read.",
        "The peer sees `connection reset` and may lose what was sent to it before.",
        "Read until end of file before close(), or shutdown() first.",
    ),
    Rule(
        "RS02",
        "reset-by-linger",
        "resets",
        "info",
        "A RST that was sent because the socket was closed with SO_LINGER 0.",
        "The connection is thrown away, with what was still to be sent.",
        "Leave SO_LINGER alone, unless that is what you want.",
    ),
    Rule(
        "RS03",
        "reset-data-after-close",
        "resets",
        "warning",
        "A RST that was sent because data came for a socket that its process had closed.",
        "The peer went on writing after this side had closed.",
        "Agree in the protocol on who closes first; shutdown() and read to the end.",
    ),
)

RULES: dict[str, Rule] = {rule.code: rule for rule in _ALL}
"""By code."""

COMMANDS = tuple(dict.fromkeys(rule.command for rule in _ALL))
"""Commands that show some of the rules alone."""


def codes_of(command: str) -> frozenset[str]:
    """The rules of one command; of ``diagnose`` all."""
    if command == "diagnose":
        return frozenset(RULES)
    return frozenset(code for code, rule in RULES.items() if rule.command == command)
