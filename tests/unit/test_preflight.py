"""What doctor says of stacks: they are an extra, so that nothing of them is ever missing."""

import pytest

from tcptrace.probes import preflight
from tcptrace.probes.engine.errors import MissingPieceError
from tcptrace.probes.enrich.stacks import libdw


class Symbols:
    hidden, why = False, ""


class HiddenSymbols:
    hidden, why = True, "kernel.kptr_restrict=2 hides them: sudo sysctl kernel.kptr_restrict=1"


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """One that has everything."""
    monkeypatch.setattr(libdw, "library", lambda: None)
    monkeypatch.setattr(preflight, "KernelSymbols", Symbols)
    return monkeypatch


def looked():
    return next(check for check in preflight.checks() if check.name == "stacks")


def test_both_kinds():
    check = looked()
    assert (check.status, check.cure) == ("ok", "")
    assert "libdw" in check.detail
    assert "kallsyms" in check.detail


def test_without_libdw_there_are_no_user_stacks(machine):
    def library():
        raise MissingPieceError("libdw.so.1 cannot be used", help="sudo apt-get install libdw1")

    machine.setattr(libdw, "library", library)
    check = looked()
    assert check.status == "degraded"
    assert check.detail == "no user stacks: libdw.so.1 cannot be used"
    assert check.cure == "sudo apt-get install libdw1"


def test_without_kernel_addresses_there_are_only_user_stacks(machine):
    machine.setattr(preflight, "KernelSymbols", HiddenSymbols)
    check = looked()
    assert check.status == "degraded"
    assert check.detail == f"user only: {HiddenSymbols.why}"
