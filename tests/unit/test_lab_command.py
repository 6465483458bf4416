"""``tcptrace lab``: what it lists, what it refuses, and what its page says."""

import json
import os
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tcptrace.cli.main import cli, exit_code
from tcptrace.lab import actors, command, namespaces, runner
from tcptrace.lab.namespaces import Host, pair
from tcptrace.lab.runner import Outcome
from tcptrace.lab.scenarios import SCENARIOS
from tcptrace.lab.verdict import Judgement
from tcptrace.probes.engine.errors import KernelRefusedError, MissingPieceError, TcptraceError
from tests.unit.test_commands import as_nobody

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "commands" / "lab.md").read_text()


def run(*arguments):
    return exit_code(lambda: cli.main(["lab", *arguments], standalone_mode=False))


def test_list_has_the_name_first():
    shown = CliRunner().invoke(cli, ["lab", "list"])
    assert shown.exit_code == 0
    assert [line.split()[0] for line in shown.output.splitlines()] == list(SCENARIOS)


def test_list_as_ndjson():
    shown = CliRunner().invoke(cli, ["lab", "list", "--format", "ndjson"])
    lines = [json.loads(line) for line in shown.output.splitlines()]
    assert [line["name"] for line in lines] == list(SCENARIOS)
    assert all(line["says"] and line["teaches"] and line["facts"] for line in lines)
    (first, *_) = lines[0]["verdicts"]
    assert (first["process"], first["function"]) == ("server", "handle_client")
    text = (ROOT / "lab" / "programs" / first["file"]).read_text().splitlines()
    assert "read(" in text[first["line"] - 1]


def test_every_letter_has_a_scenario():
    assert {scenario.letter[0] for scenario in SCENARIOS.values()} == set("ABCDEFGHI")


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=lambda one: one.name)
def test_scenarios_are_complete(scenario):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", scenario.name)
    assert scenario.expect
    assert scenario.lives
    assert len(set(scenario.expect)) == len(scenario.expect)
    assert f"`{scenario.name}`" in PAGE
    for fact in scenario.expect:
        assert fact.says


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run"], "which scenario"),
        (["run", "nosuch"], "no scenario 'nosuch'"),
        (["run", "port-collision", "--all"], "--all goes"),
        (["run", "--all", "--keep"], "--all goes"),
        (["nosuch"], "No such command"),
    ],
)
def test_wrong_usage(arguments, says, capsys):
    assert run(*arguments) == 2
    assert says in capsys.readouterr().err


def test_an_ordinary_user_can_list_but_not_run():
    assert as_nobody("lab", "list")[0] == 0
    code, failure, _ = as_nobody("lab", "run", "port-collision")
    assert code == 3
    assert "PrivilegeError" in failure


@pytest.fixture
def privileged(monkeypatch):
    monkeypatch.setattr(command, "require_privileges", lambda: None)


@pytest.mark.parametrize(
    ("missing", "package"), [("gcc", "gcc"), ("nft", "nftables"), ("ss", "iproute2")]
)
def test_a_missing_command_is_told_with_the_line_to_paste(
    missing, package, tmp_path, monkeypatch, privileged, capsys
):
    for name in {"gcc", "nft", "ss", "ip"} - {missing}:
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run("run", "syn-sent-pileup") == 4
    assert f"sudo apt-get install {package}" in capsys.readouterr().err


def test_only_scenarios_with_a_firewall_need_nft(monkeypatch, tmp_path):
    for name in ("ip", "ss"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    runner.require_tools(SCENARIOS["port-collision"])
    with pytest.raises(MissingPieceError):
        runner.require_tools(SCENARIOS["freeze-fin-wait1"])


def test_a_kernel_without_nftables(monkeypatch):
    def refuse(*_words):
        raise TcptraceError("nft: Operation not supported")

    monkeypatch.setattr(namespaces, "require", lambda *_: None)
    monkeypatch.setattr(Host, "run", refuse)
    with pytest.raises(KernelRefusedError) as caught:
        Host("nowhere", "", "").drop("tcp", "sport", "1")
    assert caught.value.exit_code == 5


def outcome(scenario, *wrong):
    return Outcome(scenario, len(scenario.expect), Judgement(wrong=list(wrong)), 1.25)


class FakeWorkshop:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def played(monkeypatch, privileged):
    """Without playing: what came out of each, by name (an exception: it is raised)."""
    results = {}

    def fake(scenario, family, workshop, tell, *, keep=False):
        result = results.get(scenario.name, outcome(scenario))
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(runner, "run", fake)
    monkeypatch.setattr(runner, "require_tools", lambda _: None)
    monkeypatch.setattr(command, "Workshop", FakeWorkshop)
    return results


def test_exit_code_0_only_when_the_story_came_out(played):
    assert run("run", "port-collision") == 0
    played["port-collision"] = outcome(SCENARIOS["port-collision"], "wrong pid")
    assert run("run", "port-collision") == 1
    played["port-collision"] = actors.StoryError("it did not come out")
    assert run("run", "port-collision") == 1


def test_all_makes_a_table_and_goes_on_after_a_failure(played, capsys):
    assert run("run", "--all") == 0
    played["accept-queue"] = actors.StoryError("it did not come out: x\nseen: y")
    played["port-collision"] = outcome(SCENARIOS["port-collision"], "wrong pid")
    capsys.readouterr()
    assert run("run", "--all", "-6") == 1
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if line and not line.startswith(" ")}
    assert set(SCENARIOS) < set(rows)
    assert [name for name in SCENARIOS if "FAILED" in rows[name]] == [
        "port-collision",
        "accept-queue",
    ]
    assert "    wrong pid" in lines
    assert "    seen: y" in lines


def test_what_is_not_checked_is_counted():
    scenario = SCENARIOS["port-collision"]
    found = Judgement(lives=["a"], findings=["b"], unchecked=["c", "d"])
    assert Outcome(scenario, 3, found, 1.0).in_short == (
        "3 facts, 1 socket, 1 finding, 2 not checked"
    )


def test_the_page_has_the_helps_of_both_commands():
    for name in ("list", "run"):
        shown = CliRunner().invoke(
            cli, ["lab", name, "--help"], prog_name="tcptrace", terminal_width=80
        )
        assert shown.output in PAGE


def test_the_pages_table_has_every_scenario_and_its_letter():
    for scenario in SCENARIOS.values():
        assert re.search(rf"^\| {scenario.letter} \| `{scenario.name}` \|", PAGE, re.MULTILINE)


def test_options_have_help():
    group = cli.get_command(click.Context(cli), "lab")
    for one in group.commands.values():
        assert one.help
        assert all(p.help for p in one.params if isinstance(p, click.Option))


def test_namespaces_that_a_killed_run_left_are_removed(tmp_path, monkeypatch):
    dead = next(pid for pid in range(400_000, 4_000_000) if not Path(f"/proc/{pid}").exists())
    ours = f"tcptrace-{os.getpid()}-server"
    names = [f"tcptrace-{dead}-server", f"tcptrace-{dead}-client", ours, "tcptrace-x", "other"]
    for name in names:
        (tmp_path / name).write_text("")
    removed = []
    monkeypatch.setattr(namespaces, "_NAMES", tmp_path)
    monkeypatch.setattr(namespaces, "_remove", removed.append)
    namespaces._remove_left_ones()
    assert sorted(removed) == sorted(names[:2])


def test_pair_removes_both_when_the_second_cannot_be_made(monkeypatch):
    made, removed = [], []

    def ip(*words):
        made.append(words)
        if len(made) == 2:
            raise TcptraceError("ip netns add: refused")

    monkeypatch.setattr(namespaces, "_remove_left_ones", lambda: None)
    monkeypatch.setattr(namespaces, "require", lambda *_: None)
    monkeypatch.setattr(namespaces, "_ip", ip)
    monkeypatch.setattr(namespaces, "_remove", removed.append)
    with pytest.raises(TcptraceError, match="refused"), pair():
        pass
    assert len(removed) == 2
