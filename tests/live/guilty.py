"""The programs of the stack tests: how they are compiled, started, and led through a connection."""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

from harness import PATIENCE_S, Puppet
from stacks import PROGRAMS, check, frames, marks

USUAL = ("-O2", "-g")
"""How most programs are compiled: no frame pointers."""


@functools.cache
def _folder():
    folder = Path(tempfile.mkdtemp(prefix="tcptrace-stacks-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def empty_folder():
    return Path(tempfile.mkdtemp(dir=_folder()))


@functools.cache
def build(*flags, source="guilty.c", name=None):
    """The compiled program; the same one for the same flags."""
    target = empty_folder() / (name or Path(source).stem)
    compiler = ["g++", "-std=c++17"] if source.endswith(".cpp") else ["gcc"]
    words = [*compiler, *(flags or USUAL), "-Wall", "-Wextra", "-Werror", "-pthread"]
    done = subprocess.run(
        [*words, "-o", target, source, "-ldl"],  # a relative path, as make does it
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=PROGRAMS,
    )
    assert done.returncode == 0, done.stderr
    return target


@functools.cache
def twin(*flags, name="innocent"):
    """The same code with other names: who shows these has looked at the wrong program."""
    sources = ("guilty.c", "obey.h")
    names = {mark.partition("/")[0] for source, mark in marks() if source in sources} - {"main"}
    renamed = [f"-D{one}=innocent_{one}" for one in sorted(names)]
    return build(*(flags or USUAL), *renamed, name=name)


def copy_of(program, name="guilty"):
    """In a folder of its own."""
    return Path(shutil.copy2(program, empty_folder() / name))


class Starter:
    """Starts programs in the test's namespace, and ends them after it."""

    def __init__(self, namespace):
        self.namespace, self._started = namespace, []

    def __call__(self, program=None, *before):
        """``before``: words that the command line begins with."""
        place = _Place(self.namespace, before)
        self._started.append(Puppet(program or build(), place))
        self._started[-1].namespace = self.namespace
        return self._started[-1]

    def shop(self, family, program=None, *before):
        """A guilty server, and a customer that is a twin."""
        return Shop(self(program, *before), self(twin()), family)

    def close(self):
        for one in self._started:
            one.end()


class _Place:
    def __init__(self, namespace, before):
        self._namespace, self._before = namespace, before

    def enter(self, program):
        return self._namespace.enter(*self._before, program)


class Shop:
    """A server that listens, and a customer."""

    def __init__(self, server, customer, family):
        self.server, self.customer, self.family = server, customer, family
        self.listener, self.port = server("listen", family.any, 0)

    def arrival(self, *ways, server=None):
        return Connection(self, ways, server or self.server)

    def queued(self):
        """A connection that nobody has accepted: the customer's descriptor, the cookie."""
        near, near_port = self.customer("connect", self.family.loop, self.port)
        return near, self.cookie_of(near_port)

    def silence_customer(self, *, ended=False):
        """What it sends does not arrive, until that is ended."""
        run = self.server.namespace.run
        run("nft", "flush", "ruleset")
        if not ended:
            run("nft", "add table inet t { chain c { type filter hook input priority 0; }; }")
            run("nft", f"add rule inet t c tcp dport {self.port} drop")

    def cookie_of(self, near_port):
        return self.server.namespace.socket(self.port, near_port)["cookie"]


class Connection:
    """Accepted, and from then on each deed is done in the given ways."""

    def __init__(self, shop, ways, server):
        self.ways, self.server, self.customer = ways, server, shop.customer
        self.near, _ = self.customer("connect", shop.family.loop, shop.port)
        self.far, _ = server(*ways, "accept", shop.listener)
        self.cookie = server.cookie(self.far)

    def greet(self):
        """Each end reads what the other writes."""
        self.customer("write", self.near, 5)
        assert self.server(*self.ways, "read", self.far, 5) == [5]
        assert self.server(*self.ways, "write", self.far, 5) == [5]
        assert self.customer("read", self.near, 5) == [5]

    def left(self, tracer):
        """The customer goes away: the CLOSE_WAIT event."""
        self.customer("close", self.near)
        return tracer.story(self.cookie, until="CLOSE_WAIT")[-1]

    def ended(self, tracer):
        """The server reads the end and closes: the LAST_ACK event."""
        assert self.server(*self.ways, "read", self.far, 5) == [0]
        self.server(*self.ways, "close", self.far)
        return the(tracer.story(self.cookie), "LAST_ACK")

    def whole(self, tracer):
        """All of it: the CLOSE_WAIT and the LAST_ACK event."""
        self.greet()
        return self.left(tracer), self.ended(tracer)


def the(events, new_state):
    (one,) = [event for event in events if event["new_state"] == new_state]
    return one


def told(tracer, cookie, new_state):
    """The event of this transition, whatever comes after it."""

    def arrived(_):
        return [one for one in tracer.of(cookie) if one["new_state"] == new_state]

    (one,) = tracer.wait_for(arrived, f"{new_state} of {cookie}")
    return one


def check_life(close_wait, last_ack, *ways, checked=check, **how):
    """Every stack of a connection whose deeds were all done in these ways."""
    for event in (close_wait, last_ack):
        checked(event["birth_stack"], frames(*ways, deed="accept", **how), "accept", **how)
        checked(event["last_write_stack"], frames(*ways, deed="write", **how), "send", **how)
    checked(close_wait["last_read_stack"], frames(*ways, deed="read", **how), "read", **how)
    assert close_wait["user_stack"] is None  # it was the customer's doing
    assert close_wait["eof_stack"] is close_wait["close_stack"] is None
    checked(last_ack["eof_stack"], frames(*ways, deed="read", **how), "read", **how)
    checked(last_ack["close_stack"], frames(*ways, deed="close", **how), "close", **how)
    assert last_ack["user_stack"] == last_ack["close_stack"]
