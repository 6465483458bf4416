"""``tcptrace states``."""

from __future__ import annotations

from typing import Any

import click

from tcptrace.cli import tracing


@click.command("states", context_settings=tracing.SETTINGS)
@tracing.run_options
def command(command_line: tuple[str, ...], **values: Any) -> None:
    """Show every TCP state transition, with the process that owns the socket.

    \b
    sudo tcptrace states -p 2791                  one process
    sudo tcptrace states --state CLOSE_WAIT       who lets sockets rot
    sudo tcptrace states --format ndjson -- curl -s http://localhost/
    """
    tracing.trace(command_line, values)
