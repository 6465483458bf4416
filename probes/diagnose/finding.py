"""What a rule found, and how it becomes an event of the stream."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tcptrace.probes.diagnose.flows import Event, Flow
from tcptrace.probes.diagnose.rules import RULES

_MAX_LISTED = 32


@dataclass(slots=True)
class Finding:
    """One rule, one culprit, one or several sockets."""

    code: str
    says: str
    about: Event
    """The event that has the owner and the addresses of the first socket."""
    cookies: list[str] = field(default_factory=list)
    evidence: list[int] = field(default_factory=list)
    stack_id: str | None = None
    birth_stack_id: str | None = None
    since: str | None = None
    unknown: list[str] = field(default_factory=list)
    incident: str | None = None

    def event(self) -> Event:
        """Unnumbered; lists are cut to the first 32."""
        rule = RULES[self.code]
        owner: dict[str, Any] = {
            name: self.about.get(name) for name in ("pid", "tid", "comm", "fd", "cookie", *_FLOW)
        }
        return owner | {
            "event": "finding",
            "code": self.code,
            "rule": rule.name,
            "severity": rule.severity,
            "says": self.says,
            "advice": rule.advice,
            "cookies": self.cookies[:_MAX_LISTED],
            "count": max(len(self.cookies), 1),
            "evidence": sorted(set(self.evidence))[:_MAX_LISTED],
            "stack_id": self.stack_id,
            "birth_stack_id": self.birth_stack_id,
            "since": self.since,
            "unknown": self.unknown,
            "incident": self.incident,
        }


_FLOW = ("saddr", "sport", "daddr", "dport", "netns")


def incident_of(flow: Flow) -> str:
    """One story, one id: that of the socket."""
    return f"{flow.last.get('netns')}-{flow.cookie}"
