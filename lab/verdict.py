"""Is what tcptrace told the story that was played? ``judge`` is the one place that says so.

It says what it has checked, and checks all that it says: the transitions of every
socket, whose they were, and by which lines; and the findings, all of them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field

from tcptrace.lab.evidence import Evidence, Flow
from tcptrace.lab.scenario import Life, Scenario, Verdict
from tcptrace.lab.watch import Event
from tcptrace.probes.diagnose.rules import RULES

_WIDTH = 92
_KNOWN_RULES = frozenset(rule.name for rule in RULES.values())


@dataclass(slots=True)
class Judgement:
    """What was compared and came out, what did not, and what could not be compared."""

    lives: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)


def judge(scenario: Scenario, evidence: Evidence) -> Judgement:
    """Compare the whole stream with what the scenario expects."""
    found = Judgement()
    if evidence.lost:
        found.wrong.append(f"the tracer lost {evidence.lost} events")
    _judge_lives(scenario, evidence, found)
    _judge_findings(scenario, evidence, found)
    return found


# ---- transitions ----


def _judge_lives(scenario: Scenario, evidence: Evidence, found: Judgement) -> None:
    seen = evidence.lives()
    for life in scenario.lives:
        for _ in range(life.count):
            _judge_life(life, _take(seen, life), evidence, found)
    for flow, lives in seen.items():
        found.wrong += [f"{_name(flow)}: nobody expected {_path(one)}" for one in lives]


def _take(seen: dict[Flow, list[list[Event]]], life: Life) -> list[Event]:
    """The first one that has not been taken, and has these ports."""
    for flow, lives in seen.items():
        if (flow[0], flow[2]) == (life.host, life.peer) and life.port in (None, flow[1]):
            mine = lives.pop(0)
            if not lives:
                del seen[flow]
            return mine
    return []


def _judge_life(life: Life, events: list[Event], evidence: Evidence, found: Judgement) -> None:
    name = _name((life.host, life.port, life.peer))
    if not events:
        found.wrong.append(f"{name}: no such socket was told")
        return
    differ = [*_wrong_path(life, events), *_wrong_owner(life, events, evidence)]
    words = _life_in_words(life, name, evidence)
    for kind, expected in life.stacks.items():
        stack_id = events[-1][f"{kind}_stack_id"]
        seen = evidence.frames(stack_id)
        if evidence.own_frames(stack_id) == list(expected):
            words.append(f"    {kind}: {' <- '.join(expected)}")
        elif life.hasty and seen and seen[-1].startswith("[unknown"):
            found.unchecked.append(f"{name}: {kind} stack: tcptrace says {seen[-1]}")
        else:
            differ.append(f"{kind} stack is {seen}, expected {list(expected)}")
    found.wrong += [f"{name}: {one}" for one in differ]
    if not differ:
        found.lives.append("\n".join(words))


def _wrong_path(life: Life, events: list[Event]) -> Iterator[str]:
    if _path(events) != life.path:
        yield f"went {_path(events)}, expected {life.path}"
    if events[-1]["reason"] != life.reason:
        yield f"{events[-1]['new_state']} because of {events[-1]['reason']}, expected {life.reason}"


def _wrong_owner(life: Life, events: list[Event], evidence: Evidence) -> Iterator[str]:
    expected = {"pid": evidence.pid(life.owner)}
    if life.listener:  # told while the owner is unknown; the owner is what counts then
        expected["listener_pid"] = evidence.pid(life.listener)
    for name, pid in expected.items():
        wrong = {event[name] for event in events} - {pid}
        if wrong:
            yield f"{name} is {wrong}, expected {pid}"
    fds = {event["fd"] for event in events} - {None, life.fd}
    if life.fd is not None and fds:
        yield f"fd is {fds}, expected {life.fd}"


# ---- findings ----


def _judge_findings(scenario: Scenario, evidence: Evidence, found: Judgement) -> None:
    left = evidence.of("finding")
    for verdict in scenario.verdicts:
        if verdict.rule not in _KNOWN_RULES:
            found.unchecked.append(f"the finding {verdict.rule}: this tcptrace has no such rule")
            continue
        fitting = [one for one in left if _is_about(one, verdict)]
        left = [one for one in left if not _is_about(one, verdict)]
        if fitting:
            _judge_finding(verdict, fitting[-1], evidence, found)
        elif verdict.required:
            found.wrong.append(f"no finding {verdict.rule}")
    found.wrong += [f"nobody expected {one['code']} {one['rule']}: {one['says']}" for one in left]


def _is_about(finding: Event, verdict: Verdict) -> bool:
    return finding["rule"] == verdict.rule and verdict.port in (None, finding["sport"])


def _judge_finding(verdict: Verdict, newest: Event, evidence: Evidence, found: Judgement) -> None:
    """The newest of its rule: an older one may have had fewer sockets."""
    wrong = [*_wrong_finding(verdict, newest, evidence)]
    found.wrong += [f"{verdict.rule}: {one}" for one in wrong]
    if not wrong:
        says = textwrap.indent(textwrap.fill(newest["says"], _WIDTH), "    ")
        found.findings.append(f"{newest['code']} {verdict.rule}\n{says}")


def _wrong_finding(verdict: Verdict, finding: Event, evidence: Evidence) -> Iterator[str]:
    expected = {"pid": evidence.pid(verdict.role), "fd": verdict.fd, "count": verdict.count}
    for name, value in expected.items():
        if finding[name] != value:
            yield f"{name} is {finding[name]}, expected {value}"
    stack = evidence.own_frames(finding["stack_id"] or finding["birth_stack_id"])
    if verdict.frame and verdict.frame not in stack[:1]:
        yield f"blames {stack[:1]}, expected {verdict.frame}"


# ---- words ----


def _path(events: list[Event]) -> str:
    return " ".join(event["new_state"] for event in events)


def _name(flow: Flow) -> str:
    host, port, peer = flow
    return f"{host} :{port or '*'} with :{peer}"


def _life_in_words(life: Life, name: str, evidence: Evidence) -> list[str]:
    """The first lines of what was expected, for the case that it comes out."""
    whose = f"nobody's yet, it waits for {life.listener} (pid {evidence.pid(life.listener)})"
    if life.owner:
        whose = f"{life.owner} (pid {evidence.pid(life.owner)})"
    return [f"{name}, {whose}", f"    {life.path.replace(' ', ' -> ')} ({life.reason})"]
