"""Writes the generated parts of the documentation: ``make docs``.

A part stands between ``<!-- generated: NAME -->`` and ``<!-- /generated -->`` in
a file of docs/; what is around it is written by hand. With ``--check`` nothing
is written, and the exit code says whether everything is up to date.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.testing import CliRunner

from tcptrace.cli.main import cli
from tcptrace.cli.registry import COMMANDS
from tcptrace.probes import rungs
from tcptrace.probes.diagnose.rules import COMMANDS as RULED
from tcptrace.probes.diagnose.rules import RULES
from tcptrace.probes.engine import schema
from tcptrace.probes.engine.schema import Field
from tcptrace.probes.enrich import resetreason
from tcptrace.probes.enrich.reason import REASONS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SCHEMA = DOCS / "events.schema.json"

_PART = re.compile(
    r"(?P<begin><!-- generated: (?P<name>[^>]+?) -->\n).*?(?P<end><!-- /generated -->)", re.DOTALL
)

_TYPES = {"strings": "array of strings"}


def help_text(name: str) -> str:
    """What ``tcptrace NAME --help`` prints on 80 columns, of which click leaves two free."""
    shown = CliRunner().invoke(
        cli, [name, "--help"], prog_name="tcptrace", terminal_width=78, catch_exceptions=False
    )
    return shown.output


def up_to_date() -> dict[Path, str]:
    """Every file with generated parts, and the text that it should have."""
    texts = {path: _renewed(path.read_text()) for path in sorted(DOCS.rglob("*.md"))}
    found = {path: text for path, text in texts.items() if _PART.search(text)}
    return found | {SCHEMA: json.dumps(schema.json_schema(), indent=2) + "\n"}


def stale() -> list[Path]:
    """The files that ``make docs`` would change."""
    wanted = up_to_date().items()
    return [path for path, text in wanted if not path.exists() or path.read_text() != text]


def main() -> None:
    """Write, or only check."""
    old, wanted = stale(), up_to_date()
    check = "--check" in sys.argv[1:]
    for path in old:
        if not check:
            path.write_text(wanted[path])
        sys.stdout.write(f"{'stale' if check else 'written'}: {path.relative_to(ROOT)}\n")
    sys.exit(1 if check and old else 0)


def _renewed(text: str) -> str:
    return _PART.sub(lambda part: part["begin"] + _PARTS[part["name"]]() + part["end"], text)


def _table(head: list[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _help(name: str) -> Callable[[], str]:
    return lambda: f"```text\n$ tcptrace {name} --help\n{help_text(name)}```\n"


def _fields(fields: Iterable[Field]) -> str:
    return _table(
        ["field", "type", "meaning", "values"],
        (
            (
                f"`{field.name}`",
                _TYPES.get(field.kind, field.kind) + (" or null" if field.nullable else ""),
                field.says,
                ", ".join(f"`{value}`" for value in field.values),
            )
            for field in fields
        ),
    )


def _events() -> str:
    parts = [f"Schema version: **{schema.VERSION}**.\n", "\n### In every event\n\n"]
    parts.append(_fields(schema.COMMON))
    for name, fields in schema.EVENTS.items():
        parts.append(f"\n### `{name}`\n\n{schema.SAYS[name]}\n\n")
        parts.append(_fields(fields[len(schema.COMMON) :]))
    return "".join(parts)


def _reasons() -> str:
    return _table(["`reason`", "meaning"], ((f"`{name}`", says) for name, says in REASONS.items()))


def _reset_reasons() -> str:
    reasons = resetreason.REASONS.items()
    return _table(["`reason`", "meaning"], ((f"`{name}`", says) for name, says in reasons))


def _rules(command: str | None = None) -> Callable[[], str]:
    """Of one command, or all with their commands."""
    head = ["code", "name", "severity", *([] if command else ["alone"]), "looks for", "advice"]
    return lambda: _table(
        head,
        (
            (
                f"`{rule.code}`",
                f"`{rule.name}`",
                rule.severity,
                *([] if command else [f"[`{rule.command}`](commands/{rule.command}.md)"]),
                rule.looks_for,
                rule.advice,
            )
            for rule in RULES.values()
            if command in (None, rule.command)
        ),
    )


def _shared_options() -> str:
    """Those that a command shares with states, which explains them."""
    command = cli.get_command(click.Context(cli), "states")
    names = [
        f"`{name}`"
        for one in (command.params if command else [])
        if isinstance(one, click.Option)
        for name in [*one.opts, *one.secondary_opts]
    ]
    return (
        f"{', '.join(names)} and `-- CMD` are those of `states`: "
        "[filters](states.md#filters), [a command](states.md#running-a-command), "
        "[output](states.md#output), [stacks](states.md#stacks). But `--state` is refused: "
        "it would hide what the rules look at.\n"
    )


def _rungs() -> str:
    return _table(
        ["fact", "rungs, best first", "without any of them"],
        (
            (
                fact.name,
                "<br>".join(rung.name for rung in fact.rungs),
                fact.without or "the command does not start (exit code 5)",
            )
            for fact in rungs.needed(by_pid=True, follow=True, stacks=True, deeds=True)
        ),
    )


_PARTS: dict[str, Callable[[], str]] = {
    "events": _events,
    "reasons": _reasons,
    "reset reasons": _reset_reasons,
    "rules": _rules(),
    "rungs": _rungs,
    "shared options": _shared_options,
    **{f"rules {name}": _rules(name) for name in RULED},
    **{f"help {name}": _help(name) for name in COMMANDS},
}


if __name__ == "__main__":
    main()
