"""The ``tcptrace`` command. The one place where an error becomes text and an exit code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

import click

import tcptrace
from tcptrace.cli.registry import COMMANDS
from tcptrace.probes.engine.errors import TcptraceError


class LazyGroup(click.Group):
    """Imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), function)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(tcptrace.__version__, prog_name="tcptrace")
def cli() -> None:
    """Every TCP state transition, with the process that owns the socket.

    \b
    Exit codes: 0 done, 1 unexpected error, 2 wrong usage, 3 missing privilege,
    4 a package or mount is missing, 5 the kernel does not offer or allow it,
    6 events were lost (only with --fail-on-loss).
    """


def main() -> None:
    """Entry point."""
    sys.exit(exit_code(lambda: cli.main(standalone_mode=False)))


def exit_code(run: Callable[[], int | None]) -> int:
    """Run it; its errors become one clear message and the documented exit code."""
    try:
        return run() or 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        click.echo(f"tcptrace: {error.format_message()}", err=True)
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:  # | head, during --help
        return 0
    except TcptraceError as error:
        return _report(error)


def _report(error: TcptraceError) -> int:
    click.echo(f"tcptrace: {error.message}", err=True)
    if error.help:
        click.echo(error.help, err=True)
    return error.exit_code
