"""RSTs that a program of this host brought about."""

from __future__ import annotations

from dataclasses import dataclass, field

from tcptrace.probes.diagnose.finding import Finding, incident_of
from tcptrace.probes.diagnose.flows import Event, Flow, Flows
from tcptrace.probes.diagnose.words import clock, peer, place

_CODES = {"unread_data": "RS01", "linger_zero": "RS02", "data_after_close": "RS03"}
_WHY = {
    "RS01": "closed before all that had come was read",
    "RS02": "closed with SO_LINGER 0",
    "RS03": "data came after it was closed",
}
_AGAIN_S = 1.0


@dataclass(slots=True)
class Resets:
    """One finding a second for each place in the code."""

    _told: dict[tuple[object, ...], float] = field(default_factory=dict)

    def reset(self, event: Event, flow: Flow, flows: Flows) -> list[Finding]:
        """For a RST that was sent, and whose cause is a rule's."""
        code = _CODES.get(event["reason"]) if event["direction"] == "sent" else None
        owner = event if event["pid"] else flow.last  # the kernel half has forgotten an orphan
        if code is None or owner["pid"] is None:
            return []
        stack_id = event["user_stack_id"] or (flow.closed or {}).get("user_stack_id")
        key = (code, owner["pid"], stack_id)
        if flows.now_s - self._told.get(key, 0.0) < _AGAIN_S:
            return []
        self._told[key] = flows.now_s
        return [_finding(code, event, owner, flow, flows.frames(stack_id), stack_id)]


def _finding(
    code: str, event: Event, owner: Event, flow: Flow, frames: list[str], stack_id: str | None
) -> Finding:
    where = place(frames)
    inside = f" in {where}" if where else ""
    before = flow.came_from if event["state"] == "CLOSE" else event["state"]
    state = f" The socket was in {before}." if before else ""
    says = (
        f"{owner['comm']} (pid {owner['pid']}) sent a RST to {peer(event)} at {clock(event)}: "
        f"{_WHY[code]}{inside}.{state}"
    )
    return Finding(
        code,
        says,
        owner,
        cookies=[flow.cookie],
        evidence=[*flow.evidence, event["seq"]],
        stack_id=stack_id,
        birth_stack_id=owner.get("birth_stack_id"),
        incident=incident_of(flow),
    )
