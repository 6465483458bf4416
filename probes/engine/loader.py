"""Compile the C half. The only file that imports bcc.

Runs in a child process (see forked.py), as the compiler takes 120 MB that the
tracer does not need afterwards. BCC rewrites map calls only in the text it is
given, not in #included files, so the sources are joined into one text with
#line directives: errors name the file and line that a developer can open.
"""

from __future__ import annotations

import ctypes as ct
import importlib.resources
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from tcptrace.probes.engine.compiled import Compiled, Instructions, MapShape, Plan
from tcptrace.probes.engine.errors import KernelRefusedError, MissingPieceError
from tcptrace.probes.engine.forked import Channel
from tcptrace.probes.engine.layout import Layout

SHARED = (
    "kernel.h",
    "task.h",
    "filter.h",
    "table.h",
    "space.h",
    "python.h",
    "stack.h",
    "owner.h",
    "listeners.h",
    "record.h",
    "children.h",
    "deeds.h",
    "nesting.h",
)

_DISTRIBUTION_PACKAGES = Path("/usr/lib/python3/dist-packages")


def compile_in_child(plan: Plan, channel: Channel) -> None:
    """The compiler child's whole life: compile, hand the result over, end."""
    channel.send(_Compiled(plan).result())


class _Compiled:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._bcc = import_bcc()
        self._bpf = self._compile()

    def result(self) -> Compiled:
        maps = self._maps()
        return Compiled(
            maps={name: _described(fd) for name, fd in maps.items()},
            programs={name: self._instructions(name, maps) for name in self._plan.functions},
            layouts={
                name: Layout.of(self._bpf[f"layout_{name}"].Leaf) for name in self._plan.layouts
            },
        )

    def _compile(self) -> Any:
        os.environ["BCC_KERNEL_SOURCE"] = str(c_folder() / "headers")
        flags = [f"-D{name}={_literal(value)}" for name, value in self._plan.definitions.items()]
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

    def _maps(self) -> dict[str, int]:
        """Every map of the module: name -> descriptor."""
        lib, module = self._bcc.lib, ct.c_void_p(self._bpf.module)
        lib.bpf_table_name.restype = ct.c_char_p
        return {
            lib.bpf_table_name(module, index).decode(): lib.bpf_table_fd_id(module, index)
            for index in range(lib.bpf_num_tables(module))
        }

    def _instructions(self, function: str, maps: dict[str, int]) -> Instructions:
        """The machine code, with the places where a map's descriptor belongs."""
        lib, module, name = self._bcc.lib, self._bpf.module, function.encode()
        size = lib.bpf_function_size(module, name)
        if not size:
            raise KernelRefusedError(f"the C half has no function {function}")
        code = ct.string_at(lib.bpf_function_start(module, name), size)
        return Instructions.linked(code, {fd: map_name for map_name, fd in maps.items()})


def _described(fd: int) -> MapShape:
    """From the kernel itself: what kind of map BCC made."""
    text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return MapShape(
        kind=int(fields["map_type"]),
        key_size=int(fields["key_size"]),
        value_size=int(fields["value_size"]),
        max_entries=int(fields["max_entries"]),
        flags=int(fields["map_flags"], 16),
    )


def _literal(value: int) -> str:
    return f"{value}ULL" if value >= 1 << 63 else str(value)


def import_bcc() -> ModuleType:
    """The distribution's bcc, also from a Python that does not look there.

    bcc is pure Python over libbcc.so, so any interpreter can load it.

    Raises:
        MissingPieceError: with the line that installs it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # bcc 0.26 on Python 3.12
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


def bcc_version() -> str:
    """Without importing it: what the cache of compiled programs goes by."""
    for folder in (*map(Path, sys.path), _DISTRIBUTION_PACKAGES):
        version = folder / "bcc" / "version.py"
        if version.is_file():
            return f"{version.read_text()} {version.stat().st_mtime_ns}"
    return ""


def _keep_stderr() -> int:
    """clang and the verifier write to descriptor 2; this child's goes to a file of its own."""
    kept = os.memfd_create("compiler")
    os.dup2(kept, 2)
    return kept


def _text_of(fd: int) -> str:
    os.lseek(fd, 0, os.SEEK_SET)
    return os.read(fd, 1 << 16).decode(errors="replace")
