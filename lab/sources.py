"""The laboratory's C programs: compiled as plainly as can be, and where their marks stand."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path
from types import TracebackType

from tcptrace.probes.engine.errors import MissingPieceError, TcptraceError

PROGRAMS = Path(str(resources.files("tcptrace.lab"))) / "programs"
_FLAGS = ("-O2", "-g")
"""What a distribution's packages are built with: without frame pointers."""
_MARK = re.compile(r"/\* HERE: (\w+)( [\w-]+)? \*/")


class Workshop:
    """A folder with the compiled programs; each is compiled when it is first asked for."""

    def __init__(self) -> None:
        if shutil.which("gcc") is None:
            raise MissingPieceError(
                "gcc is not installed: the laboratory compiles its programs",
                help="sudo apt-get install gcc libc6-dev",
            )
        self._folder = tempfile.TemporaryDirectory(prefix="tcptrace-lab-")
        self.folder = Path(self._folder.name)

    def __enter__(self) -> Workshop:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    def program(self, name: str) -> Path:
        """Raises TcptraceError with the compiler's own words."""
        target = self.folder / name
        if not target.exists():
            command = ["gcc", *_FLAGS, "-o", str(target), str(PROGRAMS / f"{name}.c")]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                raise TcptraceError(
                    f"gcc does not compile {name}.c:\n{done.stderr.strip()}",
                    help="If a header is missing:  sudo apt-get install libc6-dev",
                )
        return target


@functools.cache
def marks(program: str) -> dict[str, str]:
    """``function`` or ``function word`` -> the frame of that line, ``function file:line``."""
    found: dict[str, str] = {}
    text = (PROGRAMS / f"{program}.c").read_text()
    for number, line in enumerate(text.splitlines(), 1):
        for function, word in _MARK.findall(line):
            assert function + word not in found, f"{function}{word} twice in {program}.c"
            found[function + word] = f"{function} {program}.c:{number}"
    return found


def frames(program: str, *names: str) -> tuple[str, ...]:
    """The frames of these marks, the innermost first."""
    return tuple(marks(program)[name] for name in names)
