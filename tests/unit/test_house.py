"""House rules that no linter knows: packaging, who may import what, sizes, no machine's paths."""

import ast
import re
import subprocess
import warnings
from pathlib import Path

import pytest

try:
    import tomllib
except ImportError:  # Python 3.10
    tomllib = None

ROOT = Path(__file__).parents[2]
FOLDERS = ("bpf", "cli", "lab", "probes")
"""What is installed as tcptrace.FOLDER."""
SOURCES = [path for folder in (*FOLDERS, "tcptrace") for path in (ROOT / folder).rglob("*.py")]
PARSED = {path: ast.parse(path.read_text()) for path in SOURCES}
LONGEST_FUNCTION, USUAL_FILE = 60, 400
IGNORED = {".git", ".venv", "build", "dist", "__pycache__", "tcptrace.egg-info", "node_modules"}


@pytest.mark.skipif(tomllib is None, reason="tomllib came with Python 3.11")
def test_the_packages_are_exactly_the_folders_that_have_an_init():
    listed = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    found = {"tcptrace"}
    for folder in FOLDERS:
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join(["tcptrace", *init.parent.relative_to(ROOT).parts]))
    assert listed == found


def test_every_folder_with_python_in_it_is_a_package():
    for path in SOURCES:
        assert (path.parent / "__init__.py").is_file(), f"{path.parent} has no __init__.py"


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_link_in_tcptrace_points_to_the_folder(folder):
    link = ROOT / "tcptrace" / folder
    assert link.is_symlink()
    assert link.readlink() == Path("..") / folder
    assert link.resolve() == ROOT / folder


def test_there_are_no_other_links():
    links = {path.name for path in (ROOT / "tcptrace").iterdir() if path.is_symlink()}
    assert links == set(FOLDERS)
    assert (ROOT / "tcptrace" / "py.typed").is_file()


def imported(tree):
    """Every module that is imported, at the top of the file or within a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))


def test_only_the_loader_imports_bcc():
    importers = {
        path.name
        for path, tree in PARSED.items()
        if any(name.split(".")[0] == "bcc" for name in imported(tree))
    }
    assert importers == {"loader.py"}


@pytest.mark.parametrize("text", ["import bcc", "from bcc import BPF", "import bcc.utils as b"])
def test_every_form_of_the_import_would_be_seen(text):
    assert any(name.split(".")[0] == "bcc" for name in imported(ast.parse(text)))


def test_folders_are_imported_by_their_full_name():
    """`import probes` works from here, and would make a second copy of every module."""
    for path, tree in PARSED.items():
        for name in imported(tree):
            assert name.split(".")[0] not in FOLDERS, f"{path}: import tcptrace.{name}"


C_CODE = re.compile(
    r"^\s*#\s*(?:include|define|ifdef)\b|\bstruct\s+\w+\s*\{|\bBPF_(?:HASH|ARRAY|RINGBUF)\w*\("
    r"|\bTRACEPOINT_PROBE\b|\breturn 0;|\bu(?:32|64) \w+ ?[=;]",
    re.MULTILINE,
)


def test_no_c_code_in_python_strings():
    for path, tree in PARSED.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not C_CODE.search(node.value), f"{path}:{node.lineno}"


@pytest.mark.parametrize("text", ["#include <a.h>", "BPF_HASH(x, u64);", "int f() { return 0; }"])
def test_c_code_would_be_seen(text):
    assert C_CODE.search(text)


def functions():
    for path, tree in PARSED.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.name}", node.end_lineno - node.lineno + 1


def test_no_function_is_longer_than_a_page():
    too_long = {name: lines for name, lines in functions() if lines > LONGEST_FUNCTION}
    assert too_long == {}


@pytest.mark.filterwarnings("default")
def test_files_stay_readable():
    """A mirror, not a master: it warns."""
    lengths = sorted(len(path.read_text().splitlines()) for path in SOURCES)
    ninth_of_ten = lengths[len(lengths) * 9 // 10]
    if ninth_of_ten > USUAL_FILE:
        warnings.warn(f"one file in ten is longer than {ninth_of_ten} lines", stacklevel=1)


def project_files():
    """What git would keep; without git (an unpacked archive) all but caches."""
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        paths = [
            path
            for path in ROOT.rglob("*")
            if not IGNORED & set(path.relative_to(ROOT).parts) and "_cache" not in str(path)
        ]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


MACHINES_PATHS = re.compile(r"/wo(?:)rk/|/ro(?:)ot/(?!x\b)|/ho(?:)me/(?!user\b)\w+/")
REGISTRIES = re.compile(
    r"(?:index|registry|mirror|proxy)[-_]?url\s*=|https?://[^\s\"')>]*"
    r"(?:/simple/?\b|pypi\.|registry\.|artifact|nexus|devpi|mirror)",
    re.IGNORECASE,
)


@pytest.mark.parametrize("forbidden", [MACHINES_PATHS, REGISTRIES], ids=["paths", "registries"])
def test_nothing_tells_of_the_machine_it_was_made_on(forbidden):
    for path in project_files():
        text = path.read_bytes().decode(errors="replace")
        match = forbidden.search(text)
        assert not match, f"{path.relative_to(ROOT)}: {match[0]!r}"


def test_a_machines_path_would_be_seen():
    assert MACHINES_PATHS.search("cd /" + "work/main")
    assert REGISTRIES.search("https://" + "pypi.example/simple")


def test_text_files_end_with_one_newline_and_have_no_trailing_blanks():
    for path in project_files():
        if path.suffix in {".py", ".c", ".h", ".md", ".toml"} and path.stat().st_size:
            text = path.read_text()
            assert text.endswith("\n"), path
            assert not text.endswith("\n\n"), path
