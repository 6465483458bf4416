"""The filters that every tracing command shares, as click options."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from tcptrace.probes.engine.constants import TcpState
from tcptrace.probes.enrich import procfs
from tcptrace.probes.filters import PORT_LOCAL, PORT_REMOTE, Filters, Network
from tcptrace.probes.rungs import cgroup2_root

_DIGITS = 16
_SHOWN = 80
_MAX_PORTS = 1024  # size of the kernel's map, bpf/filter.h

Function = TypeVar("Function", bound=Callable[..., Any])


def filters(function: Function) -> Function:
    """Add every filter option; the command receives them by these names."""
    for decorate in reversed(_FILTERS):
        function = decorate(function)
    return function


def chosen(values: dict[str, Any], *, command: bool) -> Filters:
    """The Filters of what click collected. ``command``: a process is started for this run."""
    by_pid = bool(values["pid"] or command)
    if values["follow"] and not by_pid:
        raise click.BadParameter("-f follows the children of -p PID or of a command")
    return Filters(
        pids=frozenset(values["pid"]),
        follow=values["follow"] or command,
        comms=frozenset(values["comm"]),
        ports=_ports(values),
        networks=values["addr"],
        family=values["family"],
        states=frozenset(values["state"]),
        netns=frozenset(values["netns"]),
        cgroups=frozenset(values["cgroup"]),
        by_pid=by_pid,
    )


class _List(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A comma-separated list, also given several times; each part goes through ``_one``."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        parts = [part.strip() for part in value.split(",") if part.strip()]
        if not parts:
            self.fail("nothing given", param, ctx)
        return tuple(item for part in parts for item in self._one(part))

    def _one(self, part: str) -> tuple[Any, ...]:
        raise NotImplementedError


def _number(text: str) -> int | None:
    """Plain decimal digits of a size that makes sense."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < _DIGITS else None


class _Pids(_List):
    name = "pid[,pid]"

    def _one(self, part: str) -> tuple[int, ...]:
        pid = _number(part)
        if pid is None:
            raise click.BadParameter(f"{part[:_SHOWN]!r} is not a process id")
        if procfs.process(pid) is None:
            raise click.BadParameter(f"there is no process {pid}")
        leader = _thread_group(pid)
        if leader != pid:
            raise click.BadParameter(f"{pid} is a thread of process {leader}: use -p {leader}")
        return (pid,)


class _Ports(_List):
    name = "port[,port|a-b]"

    def _one(self, part: str) -> tuple[int, ...]:
        low, dash, high = part.partition("-")
        first, last = _number(low), _number(high if dash else low)
        if first is None or last is None:
            raise click.BadParameter(f"{part[:_SHOWN]!r} is not a port or a range of ports")
        if not 1 <= first <= last <= 65535:
            raise click.BadParameter(f"{part} is not within 1 to 65535")
        if last - first >= _MAX_PORTS:
            raise click.BadParameter(f"{part} names more than {_MAX_PORTS} ports")
        return tuple(range(first, last + 1))


class _Networks(_List):
    name = "cidr[,cidr]"

    def _one(self, part: str) -> tuple[Network, ...]:
        try:
            if "%" in part:
                raise ValueError("an interface cannot be part of it")
            return (ipaddress.ip_network(part),)
        except ValueError as error:
            raise click.BadParameter(
                f"{part[:_SHOWN]!r} is not an address or network: {error}"
            ) from error


class _States(_List):
    name = "state[,state]"

    def _one(self, part: str) -> tuple[TcpState, ...]:
        name = part.upper().replace("-", "_").removeprefix("TCP_")
        if name not in TcpState.__members__ or name == "NEW_SYN_RECV":
            known = " ".join(state.name for state in TcpState if state.name != "NEW_SYN_RECV")
            raise click.BadParameter(f"{part[:_SHOWN]!r} is not a state; the states are: {known}")
        return (TcpState[name],)


class _Comms(_List):
    name = "name[,name]"

    def _one(self, part: str) -> tuple[str, ...]:
        return (part,)


def _inode_on_device_of(other: Path, path: Path) -> int | None:
    """The file's inode number, if it is of the same file system as the other."""
    try:
        status = path.stat()
        return status.st_ino if status.st_dev == other.stat().st_dev else None
    except OSError:
        return None


class _Namespaces(_List):
    name = "name|path|inode"

    def _one(self, part: str) -> tuple[int, ...]:
        inode = _number(part)
        if inode is not None and inode < 1 << 32:
            return (inode,)
        for path in (Path(part), Path("/run/netns") / part):
            if found := _inode_on_device_of(Path("/proc/self/ns/net"), path):
                return (found,)
        raise click.BadParameter(f"no network namespace {part!r} (see: ip netns; lsns -t net)")


class _Cgroups(_List):
    name = "path"

    def _one(self, part: str) -> tuple[int, ...]:
        root = cgroup2_root()
        if root is None:
            raise click.BadParameter("there is no cgroup2 mount (it takes version 2)")
        for path in (Path(part), Path(root) / part.lstrip("/")):
            if found := _inode_on_device_of(Path(root), path):
                return (found,)
        raise click.BadParameter(f"no cgroup {part!r} below {root}")


class Seconds(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A span of time; ``nan`` and ``inf``, which float() would take, are not."""

    name = "seconds"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not (math.isfinite(seconds) and seconds > 0):
            self.fail(f"{value!r} is not a number of seconds above 0", param, ctx)
        return seconds


def _thread_group(pid: int) -> int:
    try:
        text = (procfs.PROC / str(pid) / "status").read_text(errors="replace")
    except OSError:
        return pid
    return next(
        (int(line.split()[1]) for line in text.splitlines() if line.startswith("Tgid:")), pid
    )


def _flat(_ctx: Any, _param: Any, value: tuple[tuple[Any, ...], ...]) -> tuple[Any, ...]:
    return tuple(item for part in value for item in part)


def _many(*names: str, kind: _List, help: str) -> Callable[[Function], Function]:
    return click.option(*names, type=kind, multiple=True, callback=_flat, help=help)


def _ports(values: dict[str, Any]) -> dict[int, int]:
    found: dict[int, int] = {}
    for name, sides in (
        ("port", PORT_LOCAL | PORT_REMOTE),
        ("lport", PORT_LOCAL),
        ("rport", PORT_REMOTE),
    ):
        for port in values[name]:
            found[port] = found.get(port, 0) | sides
    if len(found) > _MAX_PORTS:
        raise click.BadParameter(f"more than {_MAX_PORTS} ports")
    return found


_FILTERS = (
    _many("-p", "--pid", kind=_Pids(), help="Sockets owned by these processes."),
    click.option(
        "-f", "--follow", is_flag=True, help="Also by their children, present and future."
    ),
    _many("--comm", kind=_Comms(), help="Sockets owned by processes of this name."),
    _many("--port", kind=_Ports(), help="Local or remote port."),
    _many("--lport", kind=_Ports(), help="Local port."),
    _many("--rport", kind=_Ports(), help="Remote port."),
    _many("--addr", kind=_Networks(), help="Local or remote address, e.g. 10.0.0.0/8."),
    click.option("-4", "family", flag_value=4, type=int, help="Only IPv4 traffic."),
    click.option("-6", "family", flag_value=6, type=int, help="Only IPv6 traffic."),
    _many("--state", kind=_States(), help="Transitions from or to this state."),
    _many("--netns", kind=_Namespaces(), help="Network namespace."),
    _many("--cgroup", kind=_Cgroups(), help="cgroup (v2) in which the socket was made."),
)
