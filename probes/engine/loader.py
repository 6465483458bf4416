"""Compile, load and attach the C half. The only file that imports bcc.

Runs in a child process (see forked.py): the parent never maps the compiler.
BCC rewrites map calls only in the text it is given, not in #included files, so
the sources are joined into one text with #line directives: errors name the
file and line that a developer can open.
"""

from __future__ import annotations

import importlib.resources
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from tcptrace.probes.engine import bpfcall, btf, constants, offsets
from tcptrace.probes.engine.errors import KernelRefusedError, MissingPieceError
from tcptrace.probes.engine.forked import Channel
from tcptrace.probes.engine.layout import Layout

SHARED = (
    "kernel.h",
    "task.h",
    "filter.h",
    "table.h",
    "owner.h",
    "listeners.h",
    "record.h",
    "children.h",
)

_DISTRIBUTION_PACKAGES = Path("/usr/lib/python3/dist-packages")
_CGROUP_SOCK = 9  # BPF_PROG_TYPE_CGROUP_SOCK, which BCC's Python does not name


@dataclass(frozen=True, slots=True)
class Hook:
    """One C function and where it is attached.

    ``how`` is ``raw`` (raw tracepoint), ``tracepoint``, ``cgroup_sock`` or
    ``sock_ops``; ``target`` the tracepoint, or the cgroup's folder.
    """

    function: str
    how: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compile and attach."""

    sources: tuple[str, ...]
    hooks: tuple[Hook, ...]
    on_demand: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    definitions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the child reports; the descriptors travel beside it, maps first."""

    maps: list[tuple[str, int]]
    programs: list[str]
    layouts: dict[str, Layout]


def compile_and_attach(plan: Plan, channel: Channel) -> None:
    """The child's whole life."""
    compiled = _Compiled(plan)
    compiled.report(channel)
    channel.receive()  # the parent has filled the maps
    channel.send("attached", compiled.attach())
    channel.receive()  # the parent has the descriptors, and ends us


class _Compiled:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._bcc = import_bcc()
        self._bpf = self._compile()
        self._programs = {name: self._load(name, "raw") for name in plan.on_demand}
        for hook in plan.hooks:
            self._programs[hook.function] = self._load(hook.function, hook.how)

    def report(self, channel: Channel) -> None:
        maps = [self._bpf[name] for name in self._plan.maps]
        loaded = Loaded(
            maps=[
                (name, table.max_entries) for name, table in zip(self._plan.maps, maps, strict=True)
            ],
            programs=list(self._programs),
            layouts={
                name: Layout.of(self._bpf[f"layout_{name}"].Leaf) for name in self._plan.layouts
            },
        )
        channel.send(loaded, [*(table.map_fd for table in maps), *self._programs.values()])

    def attach(self) -> list[int]:
        """A descriptor per hook, that holds the attachment."""
        return [self._attach(hook) for hook in self._plan.hooks]

    def _compile(self) -> Any:
        folder = c_folder()
        os.environ["BCC_KERNEL_SOURCE"] = str(folder / "headers")
        definitions = constants.definitions() | offsets.constants(btf.kernel())
        flags = [
            f"-D{name}={value}"
            for name, value in (definitions | dict(self._plan.definitions)).items()
        ]
        output = _keep_stderr()
        try:
            return self._bcc.BPF(
                text=joined(SHARED + self._plan.sources), cflags=[*flags, "-Wno-unused-function"]
            )
        except Exception as error:
            raise KernelRefusedError(
                f"the probes do not compile with this BCC ({self._bcc.__version__})",
                help=_text_of(output),
            ) from error

    def _load(self, function: str, how: str) -> int:
        kinds = self._bcc.BPF
        kind, attach_type = {
            "raw": (kinds.RAW_TRACEPOINT, -1),
            "tracepoint": (kinds.TRACEPOINT, -1),
            "cgroup_sock": (_CGROUP_SOCK, bpfcall.CGROUP_INET_SOCK_CREATE),
            "sock_ops": (kinds.SOCK_OPS, bpfcall.CGROUP_SOCK_OPS),
        }[how]
        try:
            return int(self._bpf.load_func(function, kind, attach_type=attach_type).fd)
        except Exception as error:
            raise _refused(function, error) from error

    def _attach(self, hook: Hook) -> int:
        try:
            return self._attached(hook)
        except Exception as error:
            raise _refused(f"{hook.function} at {hook.target}", error) from error

    def _attached(self, hook: Hook) -> int:
        if hook.how == "raw":  # not by BCC: it keeps one descriptor per function name
            fd = self._bcc.lib.bpf_attach_raw_tracepoint(
                self._programs[hook.function], hook.target.encode()
            )
        elif hook.how == "tracepoint":
            category, name = hook.target.split(":")
            fd = self._bcc.lib.bpf_attach_tracepoint(
                self._programs[hook.function], category.encode(), name.encode()
            )
        else:
            kind = {
                "cgroup_sock": bpfcall.CGROUP_INET_SOCK_CREATE,
                "sock_ops": bpfcall.CGROUP_SOCK_OPS,
            }[hook.how]
            fd = bpfcall.link_to_cgroup(self._programs[hook.function], hook.target, kind)
        if fd < 0:
            raise OSError(f"attaching failed ({fd})")
        return int(fd)


def _refused(what: str, error: Exception) -> KernelRefusedError:
    return KernelRefusedError(
        f"the kernel refuses {what}: {error}",
        help="Run  sudo tcptrace doctor  to see what this kernel allows.",
    )


def import_bcc() -> ModuleType:
    """The distribution's bcc, also from a Python that does not look there.

    bcc is pure Python over libbcc.so, so any interpreter can load it.

    Raises:
        MissingPieceError: with the line that installs it.
    """
    try:
        import bcc
    except ImportError:
        return _import_from_distribution()
    return cast("ModuleType", bcc)


def _import_from_distribution() -> ModuleType:
    sys.path.append(str(_DISTRIBUTION_PACKAGES))
    try:
        import bcc
    except ImportError as error:
        raise MissingPieceError(
            f"BCC is not installed ({error})",
            help="Install the distribution's package (PyPI's bcc is another project):\n"
            "  sudo apt-get install python3-bpfcc",
        ) from error
    finally:
        sys.path.remove(str(_DISTRIBUTION_PACKAGES))
    return cast("ModuleType", bcc)


def joined(files: Iterable[str]) -> str:
    """The C sources as one text, each part under its own file name."""
    parts = []
    for name in files:
        text = (c_folder() / name).read_text()
        parts.append(f'#line 1 "bpf/{name}"\n{text}')
    return "\n".join(parts)


def c_folder() -> Path:
    """Where the C half is installed."""
    return Path(str(importlib.resources.files("tcptrace.bpf")))


def _keep_stderr() -> int:
    """clang and the verifier write to descriptor 2; this child's goes to a file of its own."""
    kept = os.memfd_create("compiler")
    os.dup2(kept, 2)
    return kept


def _text_of(fd: int) -> str:
    os.lseek(fd, 0, os.SEEK_SET)
    return os.read(fd, 1 << 16).decode(errors="replace")
