"""--stack and its relatives: what is taken, how it is shown, and what happens without libdw."""

import pytest

from tcptrace.cli import tracing
from tcptrace.cli.main import cli, exit_code
from tcptrace.cli.sinks.ndjson import NdjsonSink
from tcptrace.cli.sinks.stack_lines import Depth
from tcptrace.cli.sinks.text import TextSink
from tcptrace.probes.engine.errors import MissingPieceError
from tcptrace.probes.enrich.stacks import libdw

LIBDW = "libdw.so.1 cannot be used (no such file)"
CURE = "sudo apt-get install libdw1"


@pytest.fixture(autouse=True)
def libdw_is_there(monkeypatch):
    """Also on a machine that lacks it."""
    monkeypatch.setattr(libdw, "library", lambda: None)


@pytest.fixture
def no_libdw(monkeypatch):
    def library():
        raise MissingPieceError(LIBDW, help=CURE)

    monkeypatch.setattr(libdw, "library", library)


@pytest.fixture
def tracers(monkeypatch):
    """The tracers that would have been started; none is."""
    made = []

    class Tracer:
        notes, lost = (), 0

        def __init__(self, filters, options):
            self.filters, self.options = filters, options
            made.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    class Run:
        def __init__(self, tracer, sink, **_):
            tracer.sink = sink

        def go(self):
            pass

    monkeypatch.setattr(tracing, "Tracer", Tracer)
    monkeypatch.setattr(tracing, "Run", Run)
    monkeypatch.setattr(tracing, "require_privileges", lambda: None)
    return made


def run(*arguments):
    return exit_code(lambda: cli.main(["states", *arguments], standalone_mode=False))


@pytest.fixture
def chosen(tracers, tmp_path):
    """The options of the run, and its sink."""

    def choose(*arguments):
        assert run("-o", str(tmp_path / "out"), *arguments) == 0
        return tracers[-1].options, tracers[-1].sink

    return choose


@pytest.mark.parametrize(
    ("arguments", "user", "kernel"),
    [
        ([], True, False),
        (["--stack", "user"], True, False),
        (["--stack", "kernel"], False, True),
        (["--stack", "both"], True, True),
        (["--stack", "none"], False, False),
    ],
)
def test_which_stacks_are_taken(chosen, arguments, user, kernel):
    options, _ = chosen(*arguments)
    assert (options.user_stacks, options.kernel_stacks) == (user, kernel)


@pytest.mark.parametrize(
    ("arguments", "inline", "sink"),
    [
        ([], True, TextSink),  # a person does not look ids up
        (["--format", "ndjson"], False, NdjsonSink),
        (["--format", "ndjson", "--inline-stacks"], True, NdjsonSink),
    ],
)
def test_where_the_frames_stand(chosen, arguments, inline, sink):
    options, opened = chosen(*arguments)
    assert options.inline_stacks == inline
    assert isinstance(opened, sink)


@pytest.mark.parametrize(
    ("arguments", "frames"),
    [([], 3), (["--stack-depth", "7"], 7), (["--full-stack", "--stack-depth", "7"], None)],
)
def test_how_many_frames_text_shows(chosen, arguments, frames):
    assert chosen(*arguments)[1]._depth == Depth(frames)


@pytest.mark.parametrize("arguments", [["--stack", "users"], ["--stack-depth", "0"]])
def test_a_wrong_word_is_one_line_and_code_2(tracers, arguments, capsys):
    assert run(*arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert tracers == []


@pytest.mark.usefixtures("no_libdw")
def test_without_libdw_the_default_traces_on_and_says_so(chosen, capsys):
    options, _ = chosen()
    assert not options.user_stacks
    assert capsys.readouterr().err == f"tcptrace: no stacks: {LIBDW}\n{CURE}\n"


@pytest.mark.usefixtures("no_libdw")
@pytest.mark.parametrize("stack", ["user", "both"])
def test_without_libdw_who_asks_for_them_gets_an_error(tracers, stack, capsys):
    assert run("--stack", stack) == MissingPieceError.exit_code == 4
    assert capsys.readouterr().err == f"tcptrace: {LIBDW}\n{CURE}\n"
    assert tracers == []


@pytest.mark.usefixtures("no_libdw")
@pytest.mark.parametrize("stack", ["kernel", "none"])
def test_others_do_not_need_it(chosen, stack, capsys):
    assert not chosen("--stack", stack)[0].user_stacks
    assert capsys.readouterr().err == ""


def test_the_cure_is_a_line_to_paste():
    with pytest.raises(MissingPieceError, match=r"libnosuch\.so\.9") as caught:
        libdw._loaded("libnosuch.so.9", {})
    assert CURE in caught.value.help


def test_an_old_library_that_lacks_a_function_is_a_missing_one():
    with pytest.raises(MissingPieceError, match="no_such_function"):
        libdw._loaded("libc.so.6", {"no_such_function": (None, ())})
