"""``tcptrace explain``."""

from __future__ import annotations

import difflib

import click

from tcptrace.probes.diagnose.rules import RULES, Rule
from tcptrace.probes.engine.errors import UsageError


@click.command("explain")
@click.argument("code", required=False)
def command(code: str | None) -> None:
    """Explain a finding's code, or list them all.

    \b
    tcptrace explain CW01
    """
    if code is None:
        for rule in RULES.values():
            click.echo(f"{rule.code}  {rule.severity:<8} {rule.name:<32} tcptrace {rule.command}")
        return
    click.echo(_text(_found(code)))


def _found(code: str) -> Rule:
    wanted = code.upper()
    for rule in RULES.values():
        if code.lower() == rule.name or wanted == rule.code:
            return rule
    near = difflib.get_close_matches(wanted, RULES, n=3, cutoff=0.3)
    hint = f"Perhaps: {', '.join(near)}." if near else ""
    raise UsageError(
        f"there is no finding {code!r}",
        help=f"{hint} All of them:  tcptrace explain".strip(),
    )


def _text(rule: Rule) -> str:
    return (
        f"{rule.code} {rule.name} ({rule.severity})\n\n"
        f"Looks for: {rule.looks_for}\n"
        f"It means:  {rule.means}\n"
        f"What to do: {rule.advice}\n"
        f"Shown by:  tcptrace {rule.command}, tcptrace diagnose"
    )
