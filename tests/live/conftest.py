"""Fixtures of the live tests. They need root and a kernel that runs BPF programs."""

from __future__ import annotations

import os
import subprocess

import pytest
from harness import HERE, TCPTRACE, V4, V6, Namespace, Puppet, Tcptrace, check_stream


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.live)


@pytest.fixture(scope="session", autouse=True)
def machine_can_trace():
    """Skip with the reason, or fail if TCPTRACE_LIVE=1 says that this machine must be able to."""
    why = _why_not()
    if why and os.environ.get("TCPTRACE_LIVE") == "1":
        pytest.fail(f"TCPTRACE_LIVE=1, but {why}", pytrace=False)
    if why:
        pytest.skip(why)


def _why_not():
    if os.geteuid():
        return "live tests need root"
    command = [*TCPTRACE, "states", "--no-existing", "--duration", "0.01"]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return f"tcptrace does not run here: {tried.stderr.strip()}" if tried.returncode else None


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """Where the compiled programs of tests/live/programs are."""
    folder = tmp_path_factory.mktemp("programs")
    for source in (HERE / "programs").glob("*.c"):
        command = ["gcc", "-O2", "-g", "-Wall", "-pthread", "-o", folder / source.stem, source]
        subprocess.run(command, check=True)
    return folder


@pytest.fixture(params=[V4, V6], ids=["ipv4", "ipv6"])
def family(request):
    return request.param


@pytest.fixture
def ns():
    namespace = Namespace()
    yield namespace
    namespace.remove()


@pytest.fixture
def puppet(programs, ns):
    """Makes processes in the test's namespace (or in another), and ends them."""
    made = []

    def make(namespace=ns):
        made.append(Puppet(programs / "puppet", namespace))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture
def trace():
    """Starts tracers; kills those that the test left running."""
    made = []

    def start(*options, **more):
        made.append(Tcptrace(*options, **more))
        return made[-1]

    yield start
    for one in made:
        one.kill()


@pytest.fixture(scope="module", params=["everything", "followed"])
def tracer(request):
    """One tracer for the module: first of everything, then of pytest and all its children.

    It sees what else happens on this machine, so it may lose something; it must say so.
    """
    options = ["-p", os.getpid(), "-f"] if request.param == "followed" else []
    with Tcptrace("--ring-mib", 64, *options) as running:
        yield running
        events = running.stop()
        assert running.process.returncode == 0
        check_stream(events, lost=events[-1]["lost"])
