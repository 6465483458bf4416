"""Whether this user may trace, and the line that helps if not."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from tcptrace.probes.engine.errors import MissingPieceError, PrivilegeError
from tcptrace.probes.enrich import procfs

_NEEDED = {
    39: "CAP_BPF",
    38: "CAP_PERFMON",
    12: "CAP_NET_ADMIN",
    21: "CAP_SYS_ADMIN",
    19: "CAP_SYS_PTRACE",
}
_SYS_ADMIN = 21
_SYS_PTRACE = 19


def missing_capabilities() -> list[str]:
    """Names of the capabilities that tracing needs and this process lacks."""
    text = Path("/proc/self/status").read_text()
    effective = int(
        next(line for line in text.splitlines() if line.startswith("CapEff")).split()[1], 16
    )
    lacks = [number for number in _NEEDED if not effective >> number & 1]
    if _SYS_ADMIN not in lacks:  # it includes what CAP_BPF, CAP_PERFMON were split from (5.8)
        lacks = [number for number in lacks if number == _SYS_PTRACE]
    return [_NEEDED[number] for number in lacks]


def require_privileges() -> None:
    """Raises:
    PrivilegeError: capabilities are missing.
    MissingPieceError: the pids seen here are not the kernel's.
    """
    missing = missing_capabilities()
    if missing:
        again = shlex.join(["sudo", sys.executable, "-m", "tcptrace", *sys.argv[1:]])
        raise PrivilegeError(
            f"tracing needs root ({', '.join(missing)} missing)",
            help=f"Run it so:\n  {again}",
        )
    if not procfs.sees_host_pids():
        raise MissingPieceError(
            "this is a container with its own pid namespace: its pids are not the kernel's",
            help="Start the container with the host's:  docker run --pid=host --privileged ...",
        )
