"""What every tracing command does: options, one run, and what is said at its end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from tcptrace.cli import options
from tcptrace.cli.options import Seconds
from tcptrace.cli.privileges import require_privileges
from tcptrace.cli.run import Limits, Ready, Run
from tcptrace.cli.sinks.base import LineWriter, Sink
from tcptrace.cli.sinks.ndjson import NdjsonSink
from tcptrace.cli.sinks.stack_lines import Depth
from tcptrace.cli.sinks.text import TextSink
from tcptrace.cli.spawned import Spawned
from tcptrace.probes.diagnose.engine import Diagnosis
from tcptrace.probes.engine.errors import EventsLostError, MissingPieceError, UsageError
from tcptrace.probes.enrich.stacks import libdw
from tcptrace.probes.filters import Filters
from tcptrace.probes.plan import Options
from tcptrace.probes.publish import Publisher
from tcptrace.probes.tracer import Tracer

Function = TypeVar("Function", bound=Callable[..., Any])

SETTINGS = {"ignore_unknown_options": False}


def run_options(function: Function) -> Function:
    """Add the filters and the options of a run; all arrive as keyword arguments."""
    for decorate in reversed(_OPTIONS):
        function = decorate(function)
    return options.filters(function)


def trace(
    command_line: tuple[str, ...],
    values: dict[str, Any],
    *,
    deeds: bool = False,
    diagnosis: Diagnosis | None = None,
    shows: frozenset[str] | None = None,
) -> None:
    """One run from the command line's values to its end.

    ``deeds``: also trace what the rules look at; ``diagnosis``: and add its findings.
    ``shows``: the kinds of events that text shows (None: all).
    """
    filters = options.chosen(values, command=bool(command_line))
    if filters.states and (deeds or diagnosis):
        raise UsageError("--state would hide what the rules look at: leave it out")
    _check_output(values)
    require_privileges()
    spawned = Spawned(command_line, to_stderr=not values["output"]) if command_line else None
    try:
        how = _how(values, deeds=deeds or diagnosis is not None)
        lost = _trace(filters, spawned, values, how, diagnosis, shows)
    finally:
        if spawned:
            spawned.stop()
    _report_loss(lost, fail=values["fail_on_loss"])


def _trace(
    filters: Filters,
    spawned: Spawned | None,
    values: dict[str, Any],
    how: Options,
    diagnosis: Diagnosis | None,
    shows: frozenset[str] | None,
) -> int:
    with Tracer(filters, how) as tracer:
        sink = open_sink(values, shows)
        run = Run(
            tracer=tracer,
            publisher=Publisher(filters),
            sink=sink,
            limits=Limits(values["duration"], values["count"]),
            ready=Ready(values["ready_fd"], values["ready_file"]),
            pids=filters.pids,
            spawned=spawned,
            diagnosis=diagnosis,
        )
        try:
            run.go()
        finally:
            sink.close()
        for note in tracer.notes:
            click.echo(f"tcptrace: {note}", err=True)
        return tracer.lost


def _how(values: dict[str, Any], *, deeds: bool) -> Options:
    stack = _stack_choice(values["stack"])
    text = values["format_"] == "text"
    return Options(
        existing=values["existing"],
        ring_mib=_power_of_two(values["ring_mib"]),
        user_stacks=stack in ("user", "both"),
        kernel_stacks=stack in ("kernel", "both"),
        look_for_python=values["stack"] in ("user", "both"),
        inline_stacks=values["inline_stacks"] or (text and not deeds),
        deeds=deeds,
    )


def _stack_choice(asked: str | None) -> str:
    """The default is user where that can be had; who asks for it gets it or an error."""
    if asked in ("kernel", "none"):
        return asked
    try:
        libdw.library()
    except MissingPieceError as error:
        if asked:
            raise
        click.echo(f"tcptrace: no stacks: {error.message}\n{error.help}", err=True)
        return "none"
    return asked or "user"


def _check_output(values: dict[str, Any]) -> None:
    """Wrong paths and descriptors are found before anything is attached."""
    for path in filter(None, (values["output"], values["ready_file"])):
        if not path.absolute().parent.is_dir():
            raise UsageError(f"there is no folder {path.absolute().parent}")
    if values["ready_fd"] is not None:
        try:
            os.fstat(values["ready_fd"])
        except OSError as error:
            raise UsageError(f"--ready-fd {values['ready_fd']}: {error.strerror}") from error


def open_sink(values: dict[str, Any], shows: frozenset[str] | None) -> Sink:
    """Where the events go, by ``--format`` and ``-o``."""
    output = values["output"]
    if output is None:
        fd, owned = sys.stdout.fileno(), False
    else:
        try:
            fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise UsageError(f"cannot write {output}: {error.strerror}") from error
        owned = True
    writer = LineWriter(fd, owned=owned)
    if values["format_"] == "ndjson":
        return NdjsonSink(writer)
    depth = Depth(None if values["full_stack"] else values["stack_depth"])
    return TextSink(writer, terminal=os.isatty(fd), depth=depth, shows=shows)


def _report_loss(lost: int, *, fail: bool) -> None:
    if not lost:
        return
    message = f"{lost} events were lost"
    help_ = "A larger --ring-mib, or a narrower filter, loses less; the loss events say where."
    if fail:
        raise EventsLostError(message, help=help_)
    click.echo(f"tcptrace: {message}\n{help_}", err=True)


def _power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()


_OPTIONS = (
    click.option(
        "--format",
        "format_",
        type=click.Choice(["text", "ndjson"]),
        default="text",
        help="Text for a person, ndjson for a pipeline.",
    ),
    click.option("-o", "--output", type=click.Path(path_type=Path), help="Write to this file."),
    click.option("--duration", type=Seconds(), help="Stop after seconds."),
    click.option("--count", type=click.IntRange(min=1), help="Stop after so many transitions."),
    click.option(
        "--existing/--no-existing", default=True, help="First show the sockets there are."
    ),
    click.option("--fail-on-loss", is_flag=True, help="Exit with 6 if any event was lost."),
    click.option("--ready-fd", type=click.IntRange(min=0), help="Write a line here once attached."),
    click.option(
        "--ready-file", type=click.Path(path_type=Path), help="Make this file once attached."
    ),
    click.option(
        "--stack",
        type=click.Choice(["user", "kernel", "both", "none"]),
        help="Which stacks to take.  [default: user]",
    ),
    click.option(
        "--stack-depth",
        type=click.IntRange(min=1),
        default=3,
        show_default=True,
        help="Frames that text shows of a stack, from the first of the program itself.",
    ),
    click.option("--full-stack", is_flag=True, help="Text shows all frames."),
    click.option("--inline-stacks", is_flag=True, help="ndjson: frames in each event, not once."),
    click.option(
        "--ring-mib",
        type=click.IntRange(1, 1024),
        default=8,
        show_default=True,
        help="Size of the event buffer.",
    ),
    click.argument("command_line", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD ARGS...]"),
)
