"""What a scenario is: a story, what the kernel must say of it, and what tcptrace must."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tcptrace.lab.facts import Fact

if TYPE_CHECKING:
    from tcptrace.lab.stage import Stage


@dataclass(frozen=True, slots=True)
class Pause:
    """Time passes, because the story needs it; never to wait for something."""

    says: str
    seconds: float


Step = str | Fact | Pause
"""A sentence is shown; a fact is waited for, and shown with what was seen."""
Story = Iterator[Step]

SERVER, CLIENT = "server", "client"
"""The two hosts, and the usual roles."""


@dataclass(frozen=True, slots=True)
class Life:
    """One connection's end, as tcptrace must tell it: all its transitions and no others.

    ``owner`` None: nobody has accepted it; then ``listener`` is whose queue it waits in.
    ``port`` None: any, for ``count`` sockets. ``stacks``: kind -> frames of the last
    transition. ``fd`` None: not compared. ``hasty``: the owner exits at once, so a stack
    may be unknown, if it says so. Lives of the same ports are told one after the other.
    """

    host: str
    port: int | None
    peer: int
    path: str
    reason: str
    owner: str | None
    listener: str | None = None
    count: int = 1
    stacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fd: int | None = None
    hasty: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """A finding that must come. ``role``: whose pid it names (None: nobody is to blame).

    ``port``: the local one of its first socket. Not ``required``: it depends on how long
    the story took, for the rules that ask how long something has lasted.
    """

    rule: str
    port: int | None
    role: str | None
    fd: int | None = None
    frame: str | None = None
    count: int = 1
    required: bool = True

    def as_dict(self) -> dict[str, object]:
        """For ``lab list``: the function and the line apart."""
        function, _, place = (self.frame or "").partition(" ")
        file, _, line = place.partition(":")
        return {
            "rule": self.rule,
            "process": self.role,
            "fd": self.fd,
            "sockets": self.count,
            "function": function or None,
            "file": file or None,
            "line": int(line) if line else None,
        }


@dataclass(frozen=True, slots=True)
class Scenario:
    """``settings``: host -> sysctl -> value. ``expect``: every fact that the story must meet."""

    name: str
    letter: str
    says: str
    teaches: str
    play: Callable[[Stage], Story]
    expect: tuple[Fact, ...]
    lives: tuple[Life, ...]
    verdicts: tuple[Verdict, ...]
    settings: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    uses_nft: bool = False
