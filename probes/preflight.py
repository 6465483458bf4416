"""What this machine offers, asked before anything is loaded: every unmet need at once."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tcptrace.probes import rungs
from tcptrace.probes.engine import btf, offsets, tracefs
from tcptrace.probes.engine.errors import KernelRefusedError, MissingPieceError, TcptraceError
from tcptrace.probes.engine.loader import import_bcc
from tcptrace.probes.enrich import procfs
from tcptrace.probes.enrich.stacks import libdw
from tcptrace.probes.enrich.stacks.kallsyms import KernelSymbols


@dataclass(frozen=True, slots=True)
class Check:
    """``status``: ok, degraded (works with less) or missing (does not work, ``exit_code``)."""

    name: str
    status: str
    detail: str
    cure: str = ""
    exit_code: int = KernelRefusedError.exit_code


def checks() -> list[Check]:
    """All of them, also after one has failed."""
    found = [_guarded(name, look) for name, look in _LOOKS.items()]
    return found + [
        _rung(fact) for fact in rungs.needed(by_pid=True, follow=True, stacks=True, deeds=True)
    ]


def _guarded(name: str, look: Callable[[], Check]) -> Check:
    try:
        return look()
    except TcptraceError as error:
        return Check(name, "missing", error.message, error.help, error.exit_code)


def _rung(fact: rungs.Fact) -> Check:
    name = f"fact: {fact.name}"
    rung = next((rung for rung in fact.rungs if rung.offered()), None)
    if rung:
        return Check(name, "ok", rung.name)
    return Check(name, "degraded" if fact.without else "missing", fact.without or "no hook for it")


def _kernel() -> Check:
    system = os.uname()
    return Check("kernel", "ok", f"{system.sysname} {system.release} {platform.machine()}")


def _bcc() -> Check:
    bcc = import_bcc()
    return Check("bcc", "ok", f"{bcc.__version__} ({Path(str(bcc.__file__)).parent})")


def _packages() -> Check:
    missing = [
        name for name in ("click", "orjson", "pyroute2") if not importlib.util.find_spec(name)
    ]
    if missing:
        cure = f"pip install {' '.join(missing)}"
        return Check("packages", "missing", ", ".join(missing), cure, MissingPieceError.exit_code)
    return Check("packages", "ok", "click, orjson, pyroute2")


def _stacks() -> Check:
    try:
        libdw.library()
    except MissingPieceError as error:
        return Check("stacks", "degraded", f"no user stacks: {error.message}", error.help)
    symbols = KernelSymbols()
    if symbols.hidden:
        return Check("stacks", "degraded", f"user only: {symbols.why}")
    return Check("stacks", "ok", "user (libdw) and kernel (/proc/kallsyms)")


def _types() -> Check:
    with btf.kernel() as types:
        offsets.constants(types)
    return Check("types", "ok", f"{btf.VMLINUX} has every field that the probes read")


def _tracefs() -> Check:
    tracefs.ensure_mounted()
    return Check("tracefs", "ok", str(tracefs.TRACEFS))


def _pid_namespace() -> Check:
    if procfs.sees_host_pids():
        return Check("pid namespace", "ok", "the host's")
    return Check(
        "pid namespace",
        "missing",
        "a container's own: its pids are not the kernel's",
        "docker run --pid=host --privileged ...",
        MissingPieceError.exit_code,
    )


def _lockdown() -> Check:
    try:
        text = Path("/sys/kernel/security/lockdown").read_text().strip()
    except OSError:
        return Check("lockdown", "ok", "not known: securityfs is not mounted")
    mode = text.partition("[")[2].partition("]")[0]
    if mode != "confidentiality":
        return Check("lockdown", "ok", mode)
    return Check(
        "lockdown",
        "missing",
        "confidentiality: BPF programs may not read kernel memory",
        "Boot with lockdown=integrity, or without it.",
    )


_LOOKS: dict[str, Callable[[], Check]] = {
    "kernel": _kernel,
    "packages": _packages,
    "bcc": _bcc,
    "types": _types,
    "stacks": _stacks,
    "tracefs": _tracefs,
    "pid namespace": _pid_namespace,
    "lockdown": _lockdown,
}
