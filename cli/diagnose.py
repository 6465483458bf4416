"""``tcptrace diagnose`` and the commands that show a part of its rules alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tcptrace.cli import tracing
from tcptrace.cli.options import Seconds
from tcptrace.cli.recording import Recording, diagnose_recording
from tcptrace.probes.diagnose.engine import Diagnosis
from tcptrace.probes.diagnose.rules import codes_of
from tcptrace.probes.engine.errors import UsageError

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
@click.option(
    "--from",
    "recording",
    type=click.Path(path_type=Path),
    help="Not live: from a file that `tcptrace record` wrote.",
)
def diagnose(
    command_line: tuple[str, ...], older_than: float, recording: Path | None, **values: Any
) -> None:
    """Say what is wrong, and which line of code did it: all rules.

    \b
    sudo tcptrace diagnose -p 2791
    sudo tcptrace diagnose -- ./server            until it ends
    tcptrace diagnose --from recording.ndjson     on any machine, without root
    """
    if recording is None:
        _run("diagnose", command_line, values, older_than)
        return
    source = Recording(recording)
    _check_from(source, command_line, values)
    sink = tracing.open_sink(values, _SHOWN)
    try:
        diagnose_recording(source, Diagnosis(codes_of("diagnose"), older_than), sink)
    finally:
        sink.close()


def _check_from(source: Recording, command_line: tuple[str, ...], values: dict[str, Any]) -> None:
    """Before the output is opened, which would empty it."""
    if command_line or values["pid"]:
        raise UsageError("--from reads a recording: it takes no -p and no command")
    source.start()
    output = values["output"]
    if output and output.exists() and output.samefile(source.path):
        raise UsageError(f"{output} is the recording itself: it would be written over")


@click.command("record", context_settings=tracing.SETTINGS)
@tracing.run_options
def record(command_line: tuple[str, ...], **values: Any) -> None:
    """Write everything that the rules look at to a file, to be diagnosed later.

    \b
    sudo tcptrace record -p 2791 -o recording.ndjson --duration 60
    tcptrace diagnose --from recording.ndjson
    """
    if not values["output"]:
        raise UsageError("where to?", help="sudo tcptrace record -o recording.ndjson ...")
    tracing.trace(command_line, values | {"format_": "ndjson"}, deeds=True)


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
