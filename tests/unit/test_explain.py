"""``tcptrace explain``: every rule, by code or by name."""

import pytest
from click.testing import CliRunner

from tcptrace.cli.main import cli, exit_code
from tcptrace.probes.diagnose.rules import RULES


def shown(*arguments):
    done = CliRunner().invoke(cli, ["explain", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_all_are_listed():
    lines = shown().splitlines()
    assert [line.split()[0] for line in lines] == list(RULES)
    for line, rule in zip(lines, RULES.values(), strict=True):
        assert line.split()[1:] == [rule.severity, rule.name, "tcptrace", rule.command]


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_one_is_explained_by_its_code_and_by_its_name(rule):
    text = shown(rule.code)
    for part in (rule.code, rule.name, rule.severity, rule.looks_for, rule.means, rule.advice):
        assert part in text
    assert f"tcptrace {rule.command}, tcptrace diagnose" in text
    assert shown(rule.code.lower()) == shown(rule.name) == shown(rule.name.upper()) == text


@pytest.mark.parametrize(
    ("asked", "hint"), [("CW1", "Perhaps: CW01"), ("cw05", "Perhaps: "), ("\x1b[31m", "All of")]
)
def test_an_unknown_code(asked, hint, capsys):
    assert exit_code(lambda: cli.main(["explain", asked], standalone_mode=False)) == 2
    err = capsys.readouterr().err
    assert err.startswith("tcptrace: there is no finding ")
    assert hint in err
    assert "All of them:  tcptrace explain" in err
    assert "\x1b" not in err
