"""``tcptrace diagnose`` and the commands that show a part of its rules alone."""

from __future__ import annotations

from typing import Any

import click

from tcptrace.cli import tracing
from tcptrace.cli.options import Seconds
from tcptrace.probes.diagnose.engine import Diagnosis
from tcptrace.probes.diagnose.rules import codes_of

_SHOWN = frozenset({"start", "finding", "loss", "end"})
_OLDER_THAN = click.option(
    "--older-than",
    type=Seconds(),
    default="5",
    show_default=True,
    help="Seconds that a socket may stay in CLOSE_WAIT.",
)


@click.command("diagnose", context_settings=tracing.SETTINGS)
@tracing.run_options
@_OLDER_THAN
def diagnose(command_line: tuple[str, ...], older_than: float, **values: Any) -> None:
    """Say what is wrong, and which line of code did it: all rules.

    \b
    sudo tcptrace diagnose -p 2791
    sudo tcptrace diagnose -- ./server            until it ends
    """
    _run("diagnose", command_line, values, older_than)


@click.command("close-wait", context_settings=tracing.SETTINGS)
@tracing.run_options
@_OLDER_THAN
def close_wait(command_line: tuple[str, ...], older_than: float, **values: Any) -> None:
    """Sockets that the peer has closed and this side has not, by the code path that forgot them.

    \b
    sudo tcptrace close-wait -p 2791 --older-than 30
    """
    _run("close-wait", command_line, values, older_than)


@click.command("sigpipe", context_settings=tracing.SETTINGS)
@tracing.run_options
def sigpipe(command_line: tuple[str, ...], **values: Any) -> None:
    """Writes that raised SIGPIPE: where, on which socket, and what became of the process.

    \b
    sudo tcptrace sigpipe                         the whole host
    sudo tcptrace sigpipe -- ./server             one program
    """
    _run("sigpipe", command_line, values)


@click.command("write-loops", context_settings=tracing.SETTINGS)
@tracing.run_options
def write_loops(command_line: tuple[str, ...], **values: Any) -> None:
    """Threads that keep writing to a dead socket, or reading one at end of file.

    \b
    sudo tcptrace write-loops -p 2791
    """
    _run("write-loops", command_line, values)


@click.command("resets", context_settings=tracing.SETTINGS)
@tracing.run_options
def resets(command_line: tuple[str, ...], **values: Any) -> None:
    """Every RST sent and received: why, on whose socket, and the call that caused it.

    \b
    sudo tcptrace resets -p 2791
    """
    _run("resets", command_line, values, also=frozenset({"reset"}))


def _run(
    command: str,
    command_line: tuple[str, ...],
    values: dict[str, Any],
    older_than: float = 5.0,
    also: frozenset[str] = frozenset(),
) -> None:
    diagnosis = Diagnosis(codes_of(command), older_than)
    tracing.trace(command_line, values, diagnosis=diagnosis, shows=_SHOWN | also)
