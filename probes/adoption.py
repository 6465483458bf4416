"""Sockets that are older than the tracer: into the kernel's table, with their holders."""

from __future__ import annotations

import os

from tcptrace.probes.engine import constants
from tcptrace.probes.engine.constants import Adopt
from tcptrace.probes.engine.errors import KernelRefusedError
from tcptrace.probes.engine.programs import Programs
from tcptrace.probes.enrich.inventory import Found, Inventory
from tcptrace.probes.enrich.procfs import Holder

_BATCHES = 16384


class Adoption:
    """``unwanted``: inodes of the sockets that the kernel half's filters turned away."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self.unwanted: set[int] = set()

    def all(self, taken: Inventory, wanted: set[int] | None) -> None:
        """Every socket of the inventory that one of these processes holds (None: anybody)."""
        for found in taken.found:
            holder = _chosen_holder(found, wanted)
            if not holder or not found.row.inode:
                continue
            outcome = self.one(holder, found.row.inode)
            if outcome in (Adopt.DONE_LISTENER, Adopt.ONLY_LISTENER):
                self._queue(holder.pid)
            if outcome in (Adopt.NOT_WANTED, Adopt.ONLY_LISTENER):
                self.unwanted.add(found.row.inode)

    def one(self, holder: Holder, inode: int) -> Adopt:
        """The socket behind this descriptor, if its inode is still that."""
        try:
            pidfd = os.pidfd_open(holder.pid)
        except OSError:
            return Adopt.NO_TASK
        try:
            arguments = (pidfd, holder.pid, holder.fd, inode, constants.How.FD_SCAN)
            return Adopt(self._programs.run("adopt", *arguments))
        except OSError as error:
            raise KernelRefusedError(
                f"the kernel does not run the adoption program: {error}",
                help="It needs BPF_PROG_TEST_RUN of raw tracepoints (Linux 5.10).",
            ) from error
        finally:
            os.close(pidfd)

    def _queue(self, listener_pid: int) -> None:
        for _ in range(_BATCHES):  # 64 children at a time
            if not self._programs.run("adopt_children", listener_pid):
                return


def _chosen_holder(found: Found, wanted: set[int] | None) -> Holder | None:
    """Of several holders, the first that is traced; without -p, simply the first."""
    for holder in found.holders:
        if wanted is None or holder.pid in wanted:
            return holder
    return None
