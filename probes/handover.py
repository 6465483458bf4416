"""From the inventory to live events: what was there before, then what happened meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tcptrace.probes import states
from tcptrace.probes.engine.constants import Fact
from tcptrace.probes.enrich.inventory import Found, Inventory
from tcptrace.probes.existing import existing_event
from tcptrace.probes.filters import Filters
from tcptrace.probes.states import Event


@dataclass(frozen=True, slots=True)
class Handover:
    """``pids``: the traced processes; ``unwanted``: inodes that the kernel half filters out."""

    taken: Inventory
    filters: Filters
    pids: set[int]
    unwanted: set[int]

    def existing(self, events: list[Event]) -> list[Event]:
        """``existing`` events: each socket as it was before its first transition of the window."""
        first: dict[Any, Event] = {}
        for event in events:
            first.setdefault(_identity(event), event)
        shown = [
            existing_event(found, first.get(_cookie(found)) or first.get(found.row.flow))
            for found in self.taken.found
            if self._shows(found)
        ]
        return [event for event in shown if event]

    def live(self, events: list[Event]) -> list[Event]:
        """The transitions of the window that concern a traced process."""
        known: set[Any] = {_cookie(found) for found in self.taken.found}
        known |= {found.row.flow for found in self.taken.found}
        return [self._numbered(event) for event in events if self._in_hand(event, known)]

    def _shows(self, found: Found) -> bool:
        row = found.row
        return (
            self._passed_kernel_filters(found)
            and self.filters.wants_state(row.state)
            and self.filters.wants_row(row.sport, row.dport, row.saddr, row.daddr, row.netns)
        )

    def _passed_kernel_filters(self, found: Found) -> bool:
        """The cgroup is only known to the kernel half, which answers when a socket is adopted."""
        if not self.filters.cgroups:
            return True
        return bool(found.row.inode) and found.row.inode not in self.unwanted

    def _in_hand(self, event: Event, known: set[Any]) -> bool:
        if not self.filters.by_pid or not event["facts"] & Fact.IN_WINDOW:
            return True
        owners = {event["pid"], event["listener_pid"]}
        return bool(owners & self.pids) or _identity(event) in known

    def _numbered(self, event: Event) -> Event:
        """With the cookie that the inventory made the kernel give the socket meanwhile."""
        if event["cookie"] is None:
            rows = (found.row for found in self.taken.found if found.row.flow == _flow(event))
            event["cookie"] = next((states.cookie_text(row.cookie) for row in rows), None)
        return event


def _cookie(found: Found) -> str | None:
    return states.cookie_text(found.row.cookie)


def _identity(event: Event) -> Any:
    """The kernel's cookie; the addresses of a socket that had none before the inventory."""
    cookie = event["cookie"]
    return cookie if cookie and not cookie.startswith("t") else _flow(event)


def _flow(event: Event) -> tuple[Any, ...]:
    return tuple(event[name] for name in ("netns", "saddr", "sport", "daddr", "dport"))
