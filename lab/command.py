"""``tcptrace lab``. It lies here, above cli, because it runs the whole tool beside a story."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import click
import orjson

from tcptrace.cli.privileges import require_privileges
from tcptrace.lab import runner
from tcptrace.lab.actors import StoryError
from tcptrace.lab.interrupts import Interrupts
from tcptrace.lab.runner import Outcome
from tcptrace.lab.scenario import Scenario
from tcptrace.lab.scenarios import SCENARIOS
from tcptrace.lab.sources import Workshop
from tcptrace.probes.engine.errors import UsageError

_NAME_WIDTH = max(map(len, SCENARIOS))


@click.group("lab")
def command() -> None:
    """Laboratories: what goes wrong with TCP, played in network namespaces.

    \b
    tcptrace lab list                          what there is
    sudo tcptrace lab run server-close-wait    play it, with tcptrace beside it
    sudo tcptrace lab run --all                play all, and show a table
    """


@command.command("list")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "ndjson"]),
    default="text",
    help="Text for a person, ndjson for a pipeline.",
)
def list_(format_: str) -> None:
    """Show every scenario, the name first."""
    for scenario in SCENARIOS.values():
        if format_ == "ndjson":
            sys.stdout.write(orjson.dumps(described(scenario)).decode() + "\n")
        else:
            click.echo(f"{scenario.name:<{_NAME_WIDTH}}  {scenario.letter:<2}  {scenario.says}")


@command.command("run")
@click.argument("name", required=False)
@click.option("--all", "all_", is_flag=True, help="Every scenario, one after the other.")
@click.option("-6", "six", is_flag=True, help="Over IPv6.  [default: IPv4]")
@click.option("--keep", is_flag=True, help="Leave everything in place until Ctrl-C.")
def run(name: str | None, all_: bool, six: bool, keep: bool) -> int:
    """Play a scenario with tcptrace beside it.

    Exit code 0 only when the story came out, and tcptrace told it.
    """
    chosen = _chosen(name, all_=all_, keep=keep)
    require_privileges()
    family = 6 if six else 4
    for scenario in chosen:
        runner.require_tools(scenario)
    with Interrupts(), Workshop() as workshop:
        if all_:
            return _run_all(chosen, family, workshop)
        return _run_one(chosen[0], family, workshop, keep=keep)


def described(scenario: Scenario) -> dict[str, object]:
    """One line of ``lab list --format ndjson``."""
    return {
        "name": scenario.name,
        "letter": scenario.letter,
        "says": scenario.says,
        "teaches": scenario.teaches,
        "facts": [fact.says for fact in scenario.expect],
        "verdicts": [verdict.as_dict() for verdict in scenario.verdicts],
    }


def _chosen(name: str | None, *, all_: bool, keep: bool) -> list[Scenario]:
    if all_ and (name or keep):
        raise UsageError("--all goes neither with a name nor with --keep")
    if all_:
        return list(SCENARIOS.values())
    if name not in SCENARIOS:
        what = f"there is no scenario {name!r}" if name else "which scenario?"
        raise UsageError(what, help=f"There are: {' '.join(SCENARIOS)}")
    return [SCENARIOS[name]]


def _run_one(scenario: Scenario, family: int, workshop: Workshop, *, keep: bool) -> int:
    click.echo(f"{scenario.name} ({scenario.letter}): {scenario.says}")
    click.echo(f"{scenario.teaches}\n")
    try:
        outcome = runner.run(scenario, family, workshop, click.echo, keep=keep)
    except StoryError as error:
        click.echo(f"tcptrace: {error.message}", err=True)
        return StoryError.exit_code
    return 0 if outcome.passed else StoryError.exit_code


def _run_all(chosen: Iterable[Scenario], family: int, workshop: Workshop) -> int:
    failed = 0
    for scenario in chosen:
        click.echo(f"{scenario.name:<{_NAME_WIDTH}}  {scenario.letter:<2}  ", nl=False)
        wrong = _quietly(scenario, family, workshop)
        failed += bool(wrong)
        for text in wrong:
            click.echo("    " + text.replace("\n", "\n    "))
    if failed:
        click.echo(f"\n{failed} did not come out. Each by itself:  sudo tcptrace lab run NAME")
    return StoryError.exit_code if failed else 0


def _quietly(scenario: Scenario, family: int, workshop: Workshop) -> list[str]:
    """A line of the table; what went wrong."""
    try:
        outcome: Outcome = runner.run(scenario, family, workshop, lambda _text: None)
    except StoryError as error:
        click.echo("FAILED")
        return [error.message]
    click.echo(f"{'ok    ' if outcome.passed else 'FAILED'} {outcome.seconds:5.1f} s", nl=False)
    click.echo(f"  {outcome.in_short}")
    return outcome.judgement.wrong
