"""Compile, load and attach the C half. The only file that imports bcc.

BCC rewrites map calls only in the text it is given, not in #included files, so
the sources are joined into one text with #line directives: errors name the
file and line that a developer can open.
"""

from __future__ import annotations

import importlib
import importlib.resources
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from tcptrace.probes.engine import bpfcall
from tcptrace.probes.engine.errors import KernelRefusedError, MissingPieceError
from tcptrace.probes.engine.layout import Layout

SHARED = ("kernel.h", "task.h", "filter.h", "table.h", "owner.h", "listeners.h", "record.h", "children.h")

_DISTRIBUTION_PACKAGES = Path("/usr/lib/python3/dist-packages")
_CGROUP_SOCK = 9  # BPF_PROG_TYPE_CGROUP_SOCK, which BCC's Python does not name


@dataclass(frozen=True, slots=True)
class Hook:
    """One C function and where it is attached.

    ``how`` is ``raw`` (raw tracepoint), ``tracepoint``, ``fexit``, ``kretprobe``,
    ``cgroup_sock`` or ``sock_ops``; ``target`` the tracepoint or kernel function.
    """

    function: str
    how: str
    target: str = ""


@dataclass(slots=True)
class Plan:
    """What to compile and attach."""

    sources: tuple[str, ...]
    hooks: tuple[Hook, ...]
    run_on_demand: tuple[str, ...] = ()
    definitions: Mapping[str, int] = field(default_factory=dict)


class Programs:
    """The loaded programs and their maps. Closing it detaches everything."""

    def __init__(self, plan: Plan) -> None:
        self._bcc = import_bcc()
        self._links: list[int] = []
        self._bpf = self._compile(plan)
        self._on_demand = {
            name: self._bpf.load_func(name, self._bcc.BPF.RAW_TRACEPOINT).fd
            for name in plan.run_on_demand
        }
        self._hooks = plan.hooks

    def attach(self) -> None:
        """Attach every hook of the plan, in its order."""
        for hook in self._hooks:
            self._attach(hook)

    def map_fd(self, name: str) -> int:
        return int(self._bpf[name].map_fd)

    def max_entries(self, name: str) -> int:
        return int(self._bpf[name].max_entries)

    def layout(self, name: str) -> Layout:
        """The fields of ``layout_<name>``, as the compiler laid them out."""
        return Layout.of(self._bpf[f"layout_{name}"].Leaf)

    def run(self, function: str, *arguments: int) -> int:
        """Run an on-demand program in this thread's context; its return value."""
        return bpfcall.run_program(self._on_demand[function], arguments)

    def hook_fds(self) -> list[int]:
        """Program descriptors of the hooks."""
        return [int(self._bpf.funcs[hook.function.encode()].fd) for hook in self._hooks
                if hook.function.encode() in self._bpf.funcs]

    def put(self, name: str, key: bytes, value: bytes) -> None:
        bpfcall.update(self.map_fd(name), key, value)

    def close(self) -> None:
        """Detach; safe to call twice."""
        for fd in self._links:
            os.close(fd)
        self._links.clear()
        self._bpf.cleanup()

    def _compile(self, plan: Plan) -> Any:
        os.environ["BCC_KERNEL_SOURCE"] = str(_c_folder() / "headers")
        flags = [f"-D{name}={value}" for name, value in plan.definitions.items()]
        with _stderr_kept() as compiler_output:
            try:
                return self._bcc.BPF(
                    text=joined(SHARED + plan.sources), cflags=[*flags, "-Wno-unused-function"]
                )
            except Exception as error:
                raise KernelRefusedError(
                    f"the probes do not compile with this BCC ({self._bcc.__version__})",
                    help=compiler_output.text(),
                ) from error

    def _attach(self, hook: Hook) -> None:
        try:
            getattr(self, f"_attach_{hook.how}")(hook)
        except Exception as error:
            raise KernelRefusedError(
                f"the kernel refuses {hook.function} ({hook.how} {hook.target}): {error}",
                help="Run  sudo tcptrace doctor  to see what this kernel allows.",
            ) from error

    def _attach_raw(self, hook: Hook) -> None:
        self._bpf.load_func(hook.function, self._bcc.BPF.RAW_TRACEPOINT)
        self._bpf.attach_raw_tracepoint(hook.target, hook.function)

    def _attach_tracepoint(self, hook: Hook) -> None:
        self._bpf.attach_tracepoint(tp=hook.target, fn_name=hook.function)

    def _attach_kretprobe(self, hook: Hook) -> None:
        self._bpf.attach_kretprobe(event=hook.target, fn_name=hook.function)

    def _attach_fexit(self, hook: Hook) -> None:
        self._bpf.attach_kretfunc(hook.function)

    def _attach_cgroup_sock(self, hook: Hook) -> None:
        loaded = self._bpf.load_func(
            hook.function, _CGROUP_SOCK, attach_type=bpfcall.CGROUP_INET_SOCK_CREATE
        )
        self._links.append(
            bpfcall.link_to_cgroup(loaded.fd, hook.target, bpfcall.CGROUP_INET_SOCK_CREATE)
        )

    def _attach_sock_ops(self, hook: Hook) -> None:
        loaded = self._bpf.load_func(hook.function, self._bcc.BPF.SOCK_OPS)
        self._links.append(
            bpfcall.link_to_cgroup(loaded.fd, hook.target, bpfcall.CGROUP_SOCK_OPS)
        )


def import_bcc() -> ModuleType:
    """The distribution's bcc, also from a Python that does not look there.

    bcc is pure Python over libbcc.so, so any interpreter can load it.

    Raises:
        MissingPieceError: with the line that installs it.
    """
    try:
        return importlib.import_module("bcc")
    except ImportError:
        pass
    sys.path.append(str(_DISTRIBUTION_PACKAGES))
    try:
        return importlib.import_module("bcc")
    except ImportError as error:
        raise MissingPieceError(
            f"BCC is not installed ({error})",
            help="Install the distribution's package (the one named bcc on PyPI is another thing):\n"
            "  sudo apt-get install python3-bpfcc",
        ) from error
    finally:
        sys.path.remove(str(_DISTRIBUTION_PACKAGES))


def joined(files: Iterable[str]) -> str:
    """The C sources as one text, each part under its own file name."""
    parts = []
    for name in files:
        text = (_c_folder() / name).read_text()
        parts.append(f'#line 1 "bpf/{name}"\n{text}')
    return "\n".join(parts)


def _c_folder() -> Path:
    return Path(str(importlib.resources.files("tcptrace.bpf")))


class _stderr_kept:
    """clang writes to descriptor 2; keep that for the error, off the user's terminal."""

    def __enter__(self) -> _stderr_kept:
        sys.stderr.flush()
        self._kept = os.memfd_create("clang")
        self._saved = os.dup(2)
        os.dup2(self._kept, 2)
        return self

    def __exit__(self, *_: object) -> None:
        os.dup2(self._saved, 2)
        os.close(self._saved)
        os.close(self._kept)

    def text(self) -> str:
        os.lseek(self._kept, 0, os.SEEK_SET)
        return os.read(self._kept, 1 << 16).decode(errors="replace")


def machine() -> str:
    return platform.machine()
