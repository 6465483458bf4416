"""A stage for the rules: culprits, two tracers that watch them, and what these must say."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

from guilty import build
from harness import Puppet, Tcptrace
from stacks import frame

from tcptrace.probes.diagnose.flows import seconds

PATIENCE_S = 10.0
OLDER_THAN_S = 0.3
"""How long a socket may stay in CLOSE_WAIT here."""
SETTLE_S = 2.2
"""Two looks of the rules (one a second): what is told twice, or by mistake, is told by then."""


class Diagnosing(Tcptrace):
    """``tcptrace diagnose``."""

    COMMAND = "diagnose"

    def findings(self, netns, since_s):
        with self._news:
            return findings_in(self.events, netns, since_s)

    def event(self, seq):
        return self.events[seq - 1]

    def wait_findings(self, netns, since_s, enough):
        """Until these are enough; not an error if they never are, the test says what is missing."""
        deadline = time.monotonic() + PATIENCE_S
        while not enough(self.findings(netns, since_s)) and time.monotonic() < deadline:
            with self._news:
                self._news.wait(0.5)


class Recording(Tcptrace):
    """``tcptrace record``: nothing on standard output."""

    COMMAND = "record"


def findings_in(events, netns, since_s=0.0):
    return [
        one
        for one in events
        if one["event"] == "finding" and one["netns"] == netns and seconds(one["ts"]) > since_s
    ]


def codes(findings):
    return [one["code"] for one in findings]


def line(mark):
    """How a finding names a marked line of the culprit."""
    return f"`{frame(mark, 'culprit.c')}`"


@dataclass(frozen=True)
class Blame:
    """A finding that must come. ``by``: the process; ``fd`` and ``mark``: which socket, where."""

    code: str
    by: Puppet | None = None
    fd: int | None = None
    mark: str | None = None
    made: str | None = None
    says: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    least: int = 1
    most: int = 1

    def check(self, findings, tracer):
        """The findings of this code, and of this process."""
        assert self.least <= len(findings) <= self.most, findings
        for one in findings:
            self._check(one, tracer)
        causes = [seconds(tracer.event(one["evidence"][-1])["ts"]) for one in findings]
        assert all(after - before > 0.99 for before, after in itertools.pairwise(causes)), causes

    def _check(self, one, tracer):
        assert one["ts"] > tracer.event(one["evidence"][-1])["ts"]
        assert (one["pid"], one["fd"]) == (self.by and self.by.pid, self.fd), one
        for text in self.says:
            assert text in one["says"], one["says"]
        stack = told(tracer, one["stack_id"])
        if self.mark:
            assert line(self.mark) in one["says"], one["says"]
            assert frame(self.mark, "culprit.c") in map(short, stack), stack
        if self.made:
            assert f"Made in {line(self.made)}." in one["says"]
            birth = told(tracer, one["birth_stack_id"])
            assert frame(self.made, "culprit.c") in map(short, birth), birth
        events = sorted((tracer.event(seq) for seq in one["evidence"]), key=lambda one: one["ts"])
        assert all(event["seq"] < one["seq"] for event in events)
        assert {event.get("cookie") for event in events} <= {*one["cookies"], None}
        if self.evidence:
            assert tuple(event["event"] for event in events) == self.evidence, events


def told(tracer, stack_id):
    """The frames of a stack that was told."""
    (stack,) = [one for one in tracer.events if one.get("stack_id") == stack_id
                and one["event"] == "stack"] or [{"frames": []}]  # fmt: skip
    return stack["frames"]


def short(text):
    """``function file:line``, without folders, of a frame."""
    words = text.split()
    return f"{words[0]} {words[-1].rpartition('/')[2]}"


class Stage:
    """One namespace with culprits in it."""

    def __init__(self, ns, family, tracers):
        self.ns, self.family, self.tracers = ns, family, tracers
        self._started = []
        self._since = time.time()  # the number of a namespace that is gone is used again

    def start(self):
        self._started.append(Puppet(build(source="verdicts/culprit.c"), self.ns))
        return self._started[-1]

    def serve(self, address=None):
        """A server that listens: the process, its descriptor, the port."""
        server = self.start()
        return server, *server("listen", address or self.family.any, 0)

    def meet(self, server, listener, port):
        """A customer's connection, accepted: the customer, its descriptor, the server's."""
        customer = self.start()
        near, _ = customer("connect", self.family.loop, port)
        return customer, near, server("accept", listener)[0]

    def encounter(self):
        """Both at once: the server and its descriptor, the customer and its own."""
        server, listener, port = self.serve()
        customer, near, far = self.meet(server, listener, port)
        return server, far, customer, near

    def verdict(self, *blames):
        """Every tracer tells these findings about this namespace, and no others."""
        wanted = {(blame.code, blame.by and blame.by.pid): blame for blame in blames}

        def enough(found):
            return all(
                len([one for one in found if _key(one) == key]) >= blame.least
                for key, blame in wanted.items()
            )

        for tracer in self.tracers:
            tracer.wait_findings(self.ns.inum, self._since, enough)
        time.sleep(SETTLE_S)  # what must not come makes no sound
        for tracer in self.tracers:
            found = tracer.findings(self.ns.inum, self._since)
            assert {_key(one) for one in found} == set(wanted), found
            for key, blame in wanted.items():
                blame.check([one for one in found if _key(one) == key], tracer)
        return self.tracers[0].findings(self.ns.inum, self._since)

    def end(self):
        for one in self._started:
            one.end()


def _key(finding):
    return finding["code"], finding["pid"]
