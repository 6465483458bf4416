"""What tcptrace told of a story, in an order in which it can be compared."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tcptrace.lab.facts import Cast
from tcptrace.lab.sources import PROGRAMS
from tcptrace.lab.watch import Event

_FRAME = re.compile(r"(?P<function>.+) \([^()]+\) (?P<file>[^\[]+):(?P<line>\d+)(?P<notes>.*)")

Flow = tuple[str, int | None, int | None]
"""Host, local port, the peer's port."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The whole stream, and who is who."""

    cast: Cast
    events: list[Event]

    @property
    def lost(self) -> int:
        return int(self.events[-1]["lost"])

    def of(self, kind: str) -> list[Event]:
        """All events of a kind."""
        return [event for event in self.events if event["event"] == kind]

    def pid(self, role: str | None) -> int | None:
        return self.cast.actors[role].pid if role else None

    def lives(self) -> dict[Flow, list[list[Event]]]:
        """Each connection's transitions, by cookie, below its ports; listeners are left out."""
        names = {host.inode(): name for name, host in self.cast.hosts.items()}
        by_cookie: dict[str, list[Event]] = {}
        for event in self.of("state"):
            if event["dport"]:
                by_cookie.setdefault(event["cookie"], []).append(event)
        found: dict[Flow, list[list[Event]]] = {}
        for life in by_cookie.values():
            last = life[-1]
            flow = (names.get(last["netns"], "elsewhere"), last["sport"], last["dport"])
            found.setdefault(flow, []).append(life)
        return found

    def frames(self, stack_id: str | None) -> list[str]:
        """A stack as it was told."""
        stacks: dict[str, list[str]] = {one["stack_id"]: one["frames"] for one in self.of("stack")}
        return stacks.get(stack_id or "", [])

    def own_frames(self, stack_id: str | None) -> list[str]:
        return own_frames(self.frames(stack_id))


def own_frames(stack: Iterable[str]) -> list[str]:
    """The frames that lie in the laboratory's programs, as ``function file:line``."""
    found = []
    for text in stack:
        match = _FRAME.fullmatch(text)
        file = match["file"].rpartition("/")[2] if match else ""
        if match and (PROGRAMS / file).exists():
            found.append(f"{match['function']} {file}:{match['line']}{match['notes']}")
    return found
