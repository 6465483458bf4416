"""``tcptrace doctor``."""

from __future__ import annotations

import sys
from typing import Any

import click
import orjson

from tcptrace.cli.privileges import missing_capabilities
from tcptrace.probes import preflight, selftest
from tcptrace.probes.engine.errors import PrivilegeError, TcptraceError
from tcptrace.probes.preflight import Check

_MARKS = {"ok": "ok  ", "degraded": "less", "missing": "NO  "}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--no-self-test", is_flag=True, help="Only look, do not trace.")
def command(as_json: bool, no_self_test: bool) -> int:
    """Say what this kernel offers, what is missing, and the line that mends it.

    Ends with a live self-test in a network namespace of its own. Exit code 0:
    `tcptrace states` can run here.
    """
    missing = missing_capabilities()
    found = [*_privileges(missing), *preflight.checks()]
    if not missing and not no_self_test and not _failed(found):
        found.append(_self_test())
    if as_json:
        report = {"ok": not _failed(found), "checks": [_plain(check) for check in found]}
        sys.stdout.write(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        _print(found)
    return next((check.exit_code for check in found if check.status == "missing"), 0)


def _privileges(missing: list[str]) -> list[Check]:
    if not missing:
        return [Check("privileges", "ok", "root, or the capabilities that tracing needs")]
    cure, code = "sudo tcptrace doctor", PrivilegeError.exit_code
    return [Check("privileges", "missing", ", ".join(missing), cure, code)]


def _self_test() -> Check:
    try:
        outcome = selftest.run()
    except TcptraceError as error:
        return Check("self-test", "missing", error.message, error.help, error.exit_code)
    if outcome.passed:
        detail = (
            f"every transition of a connection, with its owner (ready after {outcome.ready_s} s)"
        )
        return Check("self-test", "ok", detail)
    parts = {
        "missing": outcome.missing,
        "unexpected": outcome.unexpected,
        "wrong owner": outcome.wrong_owner,
    }
    detail = "; ".join(f"{name}: {', '.join(lines)}" for name, lines in parts.items() if lines)
    return Check("self-test", "missing", detail, "Please report it with this output.")


def _failed(found: list[Check]) -> bool:
    return any(check.status == "missing" for check in found)


def _plain(check: Check) -> dict[str, Any]:
    return {
        "name": check.name,
        "status": check.status,
        "detail": check.detail,
        "cure": check.cure or None,
    }


def _print(found: list[Check]) -> None:
    for check in found:
        click.echo(f"{_MARKS[check.status]} {check.name:<36} {check.detail}")
        if check.status != "ok" and check.cure:
            click.echo("     " + check.cure.replace("\n", "\n     "))
    click.echo("")
    click.echo(
        "tcptrace states can run here." if not _failed(found) else "tcptrace cannot run here."
    )
