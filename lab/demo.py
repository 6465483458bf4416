"""``make demo``: a leaky server, a client that goes away, and tcptrace watching the server.

Uses the real command, ``tcptrace states -p PID``, in network namespaces that are
made for it and removed again.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from importlib import resources
from pathlib import Path

import click

from tcptrace.cli.main import exit_code
from tcptrace.cli.privileges import require_privileges
from tcptrace.lab.namespaces import Host, pair
from tcptrace.probes.engine.errors import TcptraceError

_PORT = 8000
_CONNECTIONS = 3
_CLIENT = """
import socket, sys
for number in range(int(sys.argv[3])):
    with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as connection:
        connection.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
"""


def main() -> None:
    """Exit code 0 only when the story came out."""
    sys.exit(exit_code(run))


def run() -> int:
    """The whole demonstration; about two seconds."""
    require_privileges()
    with pair() as (server, client):
        leaky = _start_server(server)
        try:
            click.echo(
                f"A server (pid {leaky.pid}) that never closes its connections listens in one"
            )
            click.echo(
                f"namespace; {_CONNECTIONS} clients come from another, send a request, go away."
            )
            click.echo(f"\n$ sudo tcptrace states -p {leaky.pid}")
            text = _trace(leaky.pid, client, server)
        finally:
            leaky.communicate()
    click.echo(text)
    return _verdict(text, leaky.pid)


def _start_server(server: Host) -> subprocess.Popen[str]:
    script = Path(str(resources.files("tcptrace.lab") / "leaky_server.py"))
    command = server.command(sys.executable, str(script), server.ipv4, str(_PORT))
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    if process.stdout.readline().strip() != "listening":
        raise TcptraceError("the demonstration's server did not start")
    return process


def _trace(pid: int, client: Host, server: Host) -> str:
    """Run the tracer until it has seen every connection through; its output."""
    ready, signal_end = socket.socketpair()
    tracer = subprocess.Popen(
        [sys.executable, "-m", "tcptrace", "states", "-p", str(pid),
         "--count", str(3 * _CONNECTIONS), "--duration", "30",
         "--ready-fd", str(signal_end.fileno())],
        stdout=subprocess.PIPE, text=True, pass_fds=[signal_end.fileno()],
    )  # fmt: skip
    signal_end.close()
    with ready:
        if ready.recv(16):
            arguments = (server.ipv4, str(_PORT), str(_CONNECTIONS))
            subprocess.run(client.command(sys.executable, "-c", _CLIENT, *arguments), check=True)
    text, _ = tracer.communicate()
    return text


def _verdict(text: str, pid: int) -> int:
    waiting = [line for line in text.splitlines() if "ESTABLISHED -> CLOSE_WAIT" in line]
    mine = [line for line in waiting if str(pid) in line.split()]
    if len(mine) != _CONNECTIONS:
        click.echo(f"Expected {_CONNECTIONS} transitions to CLOSE_WAIT, saw {len(mine)}.", err=True)
        return 1
    name = mine[0].split()[2]
    click.echo(
        f"{len(mine)} sockets went to CLOSE_WAIT: the client closed, {name} (pid {pid}) did not."
    )
    click.echo("\nOn a process of your own:")
    click.echo("  sudo .venv/bin/tcptrace states -p PID")
    return 0


if __name__ == "__main__":
    main()
