"""What can go wrong, in the user's words.

TcptraceError            exit code 1
├── UsageError           2   the command line asks for something impossible
├── PrivilegeError       3   root, or the capabilities, are missing
├── MissingPieceError    4   a package or a mount that the user can add
├── KernelRefusedError   5   this kernel does not offer or does not allow it
└── EventsLostError      6   --fail-on-loss, and events were lost

Each carries what happened (the message), the likely cause and the line to paste
(``help``). Only ``cli.main`` turns one into text and an exit code.
"""

from __future__ import annotations


class TcptraceError(Exception):
    """Base of everything that ``tcptrace`` raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, help: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.help = help


class UsageError(TcptraceError):
    """What was asked for is impossible or contradicts itself."""

    exit_code = 2


class PrivilegeError(TcptraceError):
    """Root, or the capabilities, are missing."""

    exit_code = 3


class MissingPieceError(TcptraceError):
    """Something that the user can install or mount."""

    exit_code = 4


class KernelRefusedError(TcptraceError):
    """This kernel does not offer it, or does not allow it."""

    exit_code = 5


class EventsLostError(TcptraceError):
    """Events were lost, and the user had asked to be told by the exit code."""

    exit_code = 6
