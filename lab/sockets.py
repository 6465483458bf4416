"""What ``ss`` says of a host's sockets: the laboratory's own oracle, beside tcptrace."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

from tcptrace.lab.namespaces import Host
from tcptrace.probes.engine.errors import TcptraceError

_STATES = {"ESTAB": "ESTABLISHED", "FIN_WAIT_1": "FIN_WAIT1", "FIN_WAIT_2": "FIN_WAIT2"}
_TIMER = re.compile(r"\btimer:\((?P<name>\w+),[^,)]*,(?P<tries>\d+)\)")
_INODE = re.compile(r"\bino:(\d+)")


@dataclass(frozen=True, slots=True)
class Seen:
    """One row. ``timer``: on, timewait, ...; ``tries``: how often it has expired."""

    state: str
    recv_q: int
    send_q: int
    port: int
    peer_port: int | None
    timer: str | None
    tries: int
    inode: int | None

    def __str__(self) -> str:
        timer = f" timer {self.timer}" if self.timer else ""
        tries = f" ({self.tries} times)" if self.tries else ""
        return f"{self.state} Recv-Q {self.recv_q} Send-Q {self.send_q}{timer}{tries}"


def on(host: Host) -> list[Seen]:
    """Every TCP socket of the host.

    Raises:
        TcptraceError: ss failed; with its own words.
    """
    command = ["ss", "-N", host.name, "-Htanoe"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise TcptraceError(f"{' '.join(command)}: {done.stderr.strip()}")
    return [row(line) for line in done.stdout.splitlines()]


def listens(host: Host, port: int) -> bool:
    """Whether there is a listener."""
    return any((one.state, one.port) == ("LISTEN", port) for one in on(host))


def row(line: str) -> Seen:
    """One line of ``ss -Htanoe``."""
    words = line.split()
    state = words[0].replace("-", "_")
    timer, inode = _TIMER.search(line), _INODE.search(line)
    peer = words[4].rpartition(":")[2]
    return Seen(
        state=_STATES.get(state, state),
        recv_q=int(words[1]),
        send_q=int(words[2]),
        port=int(words[3].rpartition(":")[2]),
        peer_port=None if peer == "*" else int(peer),
        timer=timer["name"] if timer else None,
        tries=int(timer["tries"]) if timer else 0,
        inode=int(inode[1]) if inode else None,
    )
