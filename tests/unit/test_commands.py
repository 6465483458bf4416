"""Every registered command can be asked for help, and has its page."""

import ast
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import tcptrace
from tcptrace.cli.main import cli, exit_code
from tcptrace.cli.registry import COMMANDS
from tcptrace.probes.engine.forked import Forked
from tests.unit.unprivileged import become_nobody

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_the_command_and_each_of_its_options(name):
    shown = CliRunner().invoke(cli, [name, "--help"])
    assert shown.exit_code == 0
    command = cli.get_command(click.Context(cli), name)
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name}: {parameter.opts} has no help"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_has_a_page_that_names_its_options(name):
    page = ROOT / "docs" / "commands" / f"{name}.md"
    assert page.is_file()
    text = page.read_text()
    for parameter in cli.get_command(click.Context(cli), name).params:
        for option in parameter.opts if isinstance(parameter, click.Option) else ():
            assert option in text, f"{page.name} does not speak of {option}"


def test_no_page_without_a_command():
    pages = {path.stem for path in (ROOT / "docs" / "commands").glob("*.md")} - {"README"}
    assert pages <= set(COMMANDS)


def test_the_group_lists_all_commands():
    text = CliRunner().invoke(cli, ["--help"]).output
    for name in COMMANDS:
        assert f"\n  {name} " in text


def test_version():
    assert tcptrace.__version__ in CliRunner().invoke(cli, ["--version"]).output


def run(*arguments):
    return exit_code(lambda: cli.main(list(arguments), standalone_mode=False))


@pytest.mark.parametrize("arguments", [["nosuch"], ["states", "--nosuch"], ["states", "-p"]])
def test_what_does_not_exist_is_one_line_and_code_2(arguments, capsys):
    assert run(*arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("tcptrace: ")


def test_help_imports_neither_bcc_nor_the_netlink_library():
    code = (
        "import sys; from click.testing import CliRunner; from tcptrace.cli.main import cli\n"
        "assert CliRunner().invoke(cli, ['states', '--help']).exit_code == 0\n"
        "print([name for name in ('bcc', 'pyroute2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.stdout.strip() == "[]", done.stderr


def as_nobody(*arguments):
    """Exit code and standard error of the command, run by a user without privileges."""

    def body(channel):
        become_nobody()
        shown = CliRunner().invoke(cli, list(arguments), catch_exceptions=True)
        failure = shown.exception
        code = exit_code(lambda: cli.main(list(arguments), standalone_mode=False))
        channel.send((code, repr(failure), shown.output))

    child = Forked("nobody's command", body)
    try:
        return child.receive()
    finally:
        child.close()


def test_an_ordinary_user_gets_the_line_to_paste():
    code, failure, _ = as_nobody("states", "--port", "80")
    assert code == 3
    assert "PrivilegeError" in failure


def test_doctor_works_for_an_ordinary_user(capfd):
    code, _, output = as_nobody("doctor")
    assert code == 3
    assert "NO   privileges" in output


def test_the_command_line_never_leaves_by_itself():
    """sys.exit is main()'s alone: everything else raises, so that it can be cleaned up."""
    for path in [*(ROOT / "cli").rglob("*.py"), *(ROOT / "probes").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "exit":
                if ast.unparse(node).startswith("self."):  # a method of our own
                    continue
                assert path.name == "main.py", f"{path}:{node.lineno}"
