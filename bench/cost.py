"""What tracing costs: the workload's slow-down, start, memory, CPU per event, loss.

    make bench                     prints the tables
    python -m bench.cost --write   and puts them into docs/benchmarks.md

Each round runs the workload without a tracer and with each tracer in turn, so
that a machine whose speed drifts drifts for all; ratios are taken within a
round, and the median of the rounds is what is quoted. The workload's two processes
share one CPU and the tracer has another: else it is the wake-up of an idle CPU that is
measured, which a busy tracer makes faster.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

_HERE = Path(__file__).parent
_PAGE = _HERE.parent / "docs" / "benchmarks.md"
_MARK = "<!-- measured by bench/cost.py -->"


@dataclass(slots=True)
class Result:
    """Figures of one tracer, one entry per round."""

    slowdown: list[float] = field(default_factory=list)
    ready_s: list[float] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)
    cpu_us_per_event: list[float] = field(default_factory=list)
    transitions: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)


def main() -> None:
    """Run all rounds, print, and write if asked."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        workload = _compile(Path(folder))
        idle = subprocess.Popen(["sleep", "infinity"])
        try:
            tracers = _tracers(idle.pid, Path(folder))
            results = {name: Result() for name in tracers}
            for _ in range(options.rounds):
                for name, command in tracers.items():
                    _round(results[name], workload, options.connections, command, Path(folder))
        finally:
            idle.kill()
            idle.wait()
    text = _report(results, options)
    print(text)
    if options.write:
        _write(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true")
    return parser.parse_args()


def _compile(folder: Path) -> Path:
    program = folder / "connections"
    subprocess.run(["gcc", "-O2", "-o", program, _HERE / "connections.c"], check=True)
    return program


def _tracers(idle_pid: int, folder: Path) -> dict[str, Callable[[Path], list[str]]]:
    base = [sys.executable, "-m", "tcptrace", "states", "--format", "ndjson"]
    output = ["-o", str(folder / "events.ndjson")]

    def ours(*more: str) -> Callable[[Path], list[str]]:
        return lambda ready: [*base, *output, *more, "--ready-file", str(ready)]

    return {
        "`states -p` of an idle process": ours("-p", str(idle_pid)),
        "`states --stack none`, unfiltered": ours("--stack", "none"),
        "`states`, unfiltered, with user stacks": ours(),
    }


def _round(
    result: Result,
    workload: Path,
    count: int,
    command: Callable[[Path], list[str]],
    folder: Path,
) -> None:
    plain = _work(workload, count)
    ready = folder / "ready"
    ready.unlink(missing_ok=True)
    started = time.monotonic()
    tracer = subprocess.Popen(["taskset", "-c", "1", *command(ready)])
    while not ready.exists():
        if tracer.poll() is not None:
            sys.exit(f"the tracer ended with {tracer.returncode}")
        time.sleep(0.002)
    result.ready_s.append(time.monotonic() - started)
    result.rss_mib.append(_rss_mib(tracer.pid))
    cpu_ready = _cpu_s(tracer.pid)
    result.slowdown.append(_work(workload, count) / plain)
    tracing = _cpu_s(tracer.pid) - cpu_ready
    tracer.terminate()
    tracer.wait()
    end = _last_event(folder / "events.ndjson")
    result.transitions.append(end["states"])
    result.lost.append(end["lost"])
    if end["states"]:
        result.cpu_us_per_event.append(tracing * 1e6 / end["states"])


def _work(workload: Path, count: int) -> float:
    """In a network namespace of its own, so that no run meets the TIME_WAITs of an earlier one."""
    script = f"ip link set lo up; exec {workload} {count}"
    command = ["taskset", "-c", "0", "unshare", "--net", "sh", "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def _rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _last_event(path: Path) -> dict[str, int]:
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, 4096), os.SEEK_END)
        event: dict[str, int] = json.loads(file.read().splitlines()[-1])
    return event


def _report(results: dict[str, Result], options: argparse.Namespace) -> str:
    lines = [
        f"{datetime.now(timezone.utc):%Y-%m-%d}, Linux {platform.release()} {platform.machine()}, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}; "
        f"{options.connections} short connections (10 transitions each and 2 of the listener), "
        f"median (lowest to highest) of {options.rounds} rounds.",
        "",
        "| | workload slowed by | start to ready | RSS once ready | CPU per event "
        "| transitions | lost |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        percent = [100 * (ratio - 1) for ratio in result.slowdown]
        lines.append(
            f"| {name} | {_spread(percent, '%')} | {_spread(result.ready_s, 's', 2)} "
            f"| {_spread(result.rss_mib, 'MiB')} | {_spread(result.cpu_us_per_event, 'us')} "
            f"| {statistics.median(result.transitions):.0f} | {max(result.lost)} |"
        )
    return "\n".join(lines)


def _spread(values: list[float], unit: str, digits: int = 1) -> str:
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} {unit} ({low:.{digits}f} to {high:.{digits}f})"


def _write(text: str) -> None:
    head = _PAGE.read_text().partition(_MARK)[0]
    _PAGE.write_text(f"{head}{_MARK}\n\n{text}\n")


if __name__ == "__main__":
    if shutil.which("gcc") is None:
        sys.exit("the workload is a C program: sudo apt-get install gcc")
    main()
