"""Exit codes: one table in errors.py, one in --help, one in docs/errors.md; and one translation."""

import ast
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tcptrace.cli.main import cli, exit_code
from tcptrace.probes.engine import errors
from tcptrace.probes.engine.errors import TcptraceError, UsageError

ROOT = Path(__file__).parents[2]
CODES = {kind.__name__: kind.exit_code for kind in [TcptraceError, *TcptraceError.__subclasses__()]}


def test_no_two_errors_share_a_code():
    assert sorted(CODES.values()) == list(range(1, len(CODES) + 1))


def test_the_docstring_says_what_the_classes_have():
    told = dict(re.findall(r"(\w+Error)\s+(?:exit code )?(\d)", errors.__doc__))
    assert {name: int(code) for name, code in told.items()} == CODES


def test_help_lists_every_code():
    text = " ".join(CliRunner().invoke(cli, ["--help"]).output.split())
    listed = re.findall(r"\b(\d) \w", text.partition("Exit codes:")[2].partition("Options")[0])
    assert [int(code) for code in listed] == [0, *sorted(CODES.values())]


def test_the_documentation_lists_every_code():
    text = (ROOT / "docs/errors.md").read_text()
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert listed == {0, 130, *CODES.values()}


def test_every_error_is_raised_somewhere():
    raised = set()
    for folder in ("probes", "cli", "lab"):
        for path in (ROOT / folder).rglob("*.py"):
            calls = (node for node in ast.walk(ast.parse(path.read_text())))
            raised |= {node.id for node in calls if isinstance(node, ast.Name)}
    assert set(CODES) <= raised


def raising(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize("kind", [TcptraceError, *TcptraceError.__subclasses__()])
def test_an_error_becomes_its_line_its_help_and_its_code(kind, capsys):
    assert exit_code(raising(kind("what happened", help="what to do"))) == kind.exit_code
    out, err = capsys.readouterr()
    assert (out, err) == ("", "tcptrace: what happened\nwhat to do\n")


def test_without_help_there_is_one_line(capsys):
    assert exit_code(raising(UsageError("what happened"))) == 2
    assert capsys.readouterr().err == "tcptrace: what happened\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (click.BadParameter("x"), 2),
        (click.exceptions.Exit(0), 0),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 0),
    ],
)
def test_other_ends(error, code):
    assert exit_code(raising(error)) == code


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_what_a_command_returns_is_the_code(returned, code):
    assert exit_code(lambda: returned) == code
