"""The documentation says what the program does."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import click
import jsonschema
import pytest

from tcptrace.cli.main import cli
from tcptrace.cli.registry import COMMANDS
from tcptrace.probes.engine import errors, schema
from tcptrace.probes.enrich import owner
from tcptrace.probes.enrich.stacks import stack
from tests import generate_docs
from tests.generate_docs import DOCS, ROOT

PAGES = [
    *ROOT.glob("*.md"),
    *DOCS.rglob("*.md"),
    *(page for folder in ("bench", "vagrant") for page in (ROOT / folder).rglob("*.md")),
]
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def name_of(path):
    return str(path.relative_to(ROOT))


def command_named(name):
    return cli.get_command(click.Context(cli), name)


def anchors(path):
    """Of a page's headings, as GitHub makes them."""
    text = _FENCE.sub("", path.read_text())
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


def json_lines():
    for page in PAGES:
        for number, line in enumerate(page.read_text().splitlines(), 1):
            if line.startswith('{"'):
                yield pytest.param(line, id=f"{name_of(page)}:{number}")


def test_generated_parts_are_up_to_date():
    assert [name_of(path) for path in generate_docs.stale()] == [], "run: make docs"


def test_staleness_is_noticed(monkeypatch):
    monkeypatch.setitem(generate_docs._PARTS, "reasons", lambda: "something else\n")
    assert [name_of(path) for path in generate_docs.stale()] == ["docs/events.md"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_on_the_page_is_what_the_command_prints(name):
    printed = subprocess.run(
        [sys.executable, "-m", "tcptrace", name, "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"COLUMNS": "80", "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
    ).stdout
    page = (DOCS / "commands" / f"{name}.md").read_text()
    # "python -m tcptrace" names itself in the first line
    assert printed.partition("\n\n")[2] in page


@pytest.mark.parametrize("name", COMMANDS)
def test_command_and_its_options_have_help_texts(name):
    command = command_named(name)
    assert command.help
    options = [one for one in command.params if isinstance(one, click.Option)]
    assert [one.name for one in options if not one.help] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained_on_its_page(name):
    page = (DOCS / "commands" / f"{name}.md").read_text()
    explained = set(re.findall(r"`(-[^`\s]*)`", _FENCE.sub("", page)))
    names = {
        option
        for one in command_named(name).params
        if isinstance(one, click.Option)
        for option in [*one.opts, *one.secondary_opts]
    }
    explained |= set(re.findall(r"`(-[^`\s]+) ", _FENCE.sub("", page)))  # `-- CMD ARGS...`
    assert names - explained == set()


def test_readme_names_every_command():
    readme = (ROOT / "README.md").read_text()
    assert [name for name in COMMANDS if f"(docs/commands/{name}.md)" not in readme] == []


def test_every_page_of_a_command_has_a_command():
    assert {page.stem for page in (DOCS / "commands").glob("*.md")} == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_resolve(page):
    broken = []
    for link in _LINK.finditer(_FENCE.sub("", page.read_text())):
        where, _, anchor = link["target"].partition("#")
        if ":" in where:
            continue
        target = (page.parent / where).resolve() if where else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link["target"])
    assert broken == []


def test_there_are_examples():
    assert len([*json_lines()]) > 3


@pytest.mark.parametrize("line", [*json_lines()])
def test_examples_fit_the_schema(line):
    published = json.loads(generate_docs.SCHEMA.read_text())
    jsonschema.Draft202012Validator(published).validate(json.loads(line))


@pytest.mark.parametrize("page", ["README.md", "docs/errors.md"])
def test_every_exit_code_is_listed(page):
    text = (ROOT / page).read_text()
    kinds = [errors.TcptraceError, *errors.TcptraceError.__subclasses__()]
    codes = {0, 130, *(kind.exit_code for kind in kinds)}
    assert [code for code in codes if f"| {code} |" not in text] == []


def test_every_reason_for_an_unknown_owner_is_explained():
    page = (DOCS / "events.md").read_text()
    texts = [
        value for name, value in vars(owner).items() if name.isupper() and isinstance(value, str)
    ]
    assert len(texts) >= 5
    assert [text for text in texts if f"| {text} |" not in page] == []


def test_every_way_to_learn_the_owner_is_explained():
    page = (DOCS / "events.md").read_text().partition("## Events and fields")[0]
    (how,) = [field for field in schema.OWNER if field.name == "how"]
    assert [value for value in how.values if f"`{value}`" not in page] == []


def test_every_note_of_a_stack_is_explained():
    page = (DOCS / "commands" / "states.md").read_text()
    stacks = [*vars(stack).values(), *stack.SPECIAL.values()]
    notes = {frame for one in stacks if isinstance(one, stack.Stack) for frame in one.frames}
    notes |= set(stack._ENDS.values()) | {"[guessed: frame pointer]"}
    assert len(notes) > 12
    assert [note for note in notes if f"| `{note}` |" not in page] == []


def test_every_place_of_loss_is_explained():
    page = (DOCS / "errors.md").read_text()
    (where,) = [field for field in schema.LOSS if field.name == "where"]
    assert [value for value in where.values if f"| `{value}` |" not in page] == []
