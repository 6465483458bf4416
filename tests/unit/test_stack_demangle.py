"""Mangled names of C++ and of both of Rust's schemes, against c++filt and by the RFC."""

import re
import string
import subprocess
import time

import pytest

from tcptrace.probes.enrich.stacks import demangle, rustnames
from tcptrace.probes.enrich.stacks.demangle import demangled

PLAIN = ["main", "read", "_start", "__libc_start_main", "main.main", "(*T).Read", "", "_", "Z3foo"]


@pytest.mark.parametrize("name", PLAIN)
def test_names_that_are_not_mangled_stay(name):
    assert demangled(name) == name


CPP = [
    "_Z3foov",
    "_ZN3net6Server6acceptEi",
    "_ZNSt6vectorIiSaIiEE9push_backERKi",
    "_ZN12_GLOBAL__N_16hiddenEPKc",
    "_ZZ4mainENKUlvE_clEv",
    "_ZN3FooC4Ev",
    "_ZThn8_N3FooD1Ev",
    "_ZGVZ3foovE1x",
]


@pytest.mark.parametrize("name", CPP)
def test_cpp_as_cxxfilt_says(name):
    filtered = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True)
    assert demangled(name) == filtered.stdout.strip() != name


@pytest.mark.parametrize(
    "name",
    ["_Z", "_Zxx", "_ZN3foo", "_ZN99fooE", "_R", "_Rust", "_RNvC3foo", "_ZN17h0123456789abcdefE."],
)
def test_what_only_begins_like_one_stays(name):
    assert demangled(name) == name


def test_without_the_runtime_library_cpp_stays_mangled(monkeypatch):
    monkeypatch.setattr(demangle, "_runtime", lambda: None)
    demangled.cache_clear()
    assert demangled("_Z3foov") == "_Z3foov"
    assert demangled("_ZN3foo3bar17h05af221e174051e9E") == "foo::bar"
    demangled.cache_clear()


@pytest.mark.parametrize(
    ("name", "readable"),
    [
        ("_ZN4core3fmt9Formatter3pad17h0123456789abcdefE", "core::fmt::Formatter::pad"),
        ("_ZN3foo17h05af221e174051e9E.llvm.A5310EB9", "foo"),
        (
            "_ZN71_$LT$Test$u20$$u2b$$u20$$u27$static$u20$as$u20$foo..Bar$LT$Test$GT$$GT$"
            "3bar17h930b740aa94f1d3aE",
            "<Test + 'static as foo::Bar<Test>>::bar",
        ),
        ("_ZN14_$LT$$RF$T$GT$3fmt17h930b740aa94f1d3aE", "<&T>::fmt"),
        ("_ZN4main28_$u7b$$u7b$closure$u7d$$u7d$17h930b740aa94f1d3aE", "main::{{closure}}"),
        ("_ZN13$u0$$u110000$17h930b740aa94f1d3aE", "$u0$$u110000$"),  # no characters
    ],
)
def test_rust_of_the_older_scheme(name, readable):
    assert demangled(name) == readable


def test_a_cpp_name_with_something_like_a_hash_is_not_taken_for_rust():
    assert demangled("_ZN3foo17h0123456789abcdeeEv") == "foo::h0123456789abcdee()"


# From RFC 2603 and rustc-demangle's documentation, and what the compiler really writes.
V0 = {
    "_RNvC6_123foo3bar": "123foo::bar",
    "_RNvNtNtCs1234_7mycrate3foo3bar3baz": "mycrate::foo::bar::baz",
    "_RNvC3foo3bar.llvm.9D1C9369": "foo::bar",
    "_RNCNCNgCs6DXkGYLi8lr_2cc5spawn00B5_": "cc::spawn::{closure#0}::{closure#0}",
    "_RNCNvC3foo3bars0_0": "foo::bar::{closure#2}",
    "_RNSNvC3foo3bar6vtable": "foo::bar::{shim:vtable#0}",
    "_RMCs4fqI2P2rA04_13const_genericINtB0_8UnsignedKhb_E": "<const_generic::Unsigned<11>>",
    "_RMCs4fqI2P2rA04_13const_genericINtB0_6SignedKanb_E": "<const_generic::Signed<-11>>",
    "_RMCs4fqI2P2rA04_13const_genericINtB0_4BoolKb1_E": "<const_generic::Bool<true>>",
    "_RMCs4fqI2P2rA04_13const_genericINtB0_4CharKc2202_E": "<const_generic::Char<'∂'>>",
    "_RINvC3foo3barpE": "foo::bar::<_>",
    "_RMC0FG_RL0_hEu": "<for<'a> fn(&'a u8)>",
    "_RMC0FG0_RL1_hRL0_tEu": "<for<'a, 'b> fn(&'a u8, &'b u16)>",
    "_RMC0FUKCmnEo": '<unsafe extern "C" fn(u32, i128) -> u128>',
    "_RMC0FK10thiscall_xEu": '<extern "thiscall-x" fn()>',
    "_RMC0DNtC3foo3BarEL_": "<dyn foo::Bar>",
    "_RMC0DNtC3foo3BarNtC3foo4SendEL_": "<dyn foo::Bar + foo::Send>",
    "_RMC0DINtC3foo3BarhEp4ItemtEL_": "<dyn foo::Bar<u8, Item = u16>>",
    "_RMC0DNtC3foo3Barp4ItemtEL_": "<dyn foo::Bar<Item = u16>>",
    "_RMC0TE": "<()>",
    "_RMC0TjE": "<(usize,)>",
    "_RMC0TajE": "<(i8, usize)>",
    "_RMC0Aj8_": None,
    "_RMC0Ahj8_": "<[u8; 8]>",
    "_RMC0Sh": "<[u8]>",
    "_RMC0QPOe": "<&mut *const *mut str>",
    "_RNvXs5_NtCsd4VYFwevHkG_4core3cmpINtB5_6OptionpENtB5_3Ord3cmp":
    "<core::cmp::Option<_> as core::cmp::Ord>::cmp",
    "_RNvYjNtNtCs_4core3cmp3Ord3max": "<usize as core::cmp::Ord>::max",
    "_RNqCs4fqI2P2rA04_11utf8_identsu30____7hkackfecea1cbdathfdh9hlq6y":
    "utf8_idents::საჭმელად_გემრიელი_სადილი",
}  # fmt: skip


@pytest.mark.parametrize("name", V0)
def test_rust_of_the_newer_scheme(name):
    assert rustnames.v0(name) == V0[name]
    assert demangled(name) == (V0[name] or name)


def test_every_beginning_of_a_name_is_survived():
    for name in V0:
        for end in range(len(name)):
            rustnames.v0(name[:end])


@pytest.mark.parametrize(
    "name",
    ["_RMC0B_", "_RMC0B3_", "_RMC0SB2_", "_RMC0" + "S" * 100_000, "_RMC0" + "TB2_" * 5000],
    ids=["the start", "itself", "around itself", "deep", "deep and around"],
)
def test_references_back_that_never_end(name):
    began = time.monotonic()
    assert rustnames.v0(name) is None
    assert time.monotonic() - began < 2


def reference(place):
    """To a place in a v0 name, in base 62."""
    digits = string.digits + string.ascii_letters
    return "B" + (digits[(place - 1) // 62] if place > 62 else "") + digits[(place - 1) % 62] + "_"


def pairs_of_pairs(levels):
    """A tuple of types, each a pair of the one before: the last is 2^levels long."""
    body, last = "MC0T", None
    for _ in range(levels):
        one = reference(last) if last else "h"
        last, body = len(body), f"{body}T{one}{one}E"
    return f"_R{body}E"


def test_a_short_name_for_something_endless_stays_mangled():
    assert rustnames.v0(pairs_of_pairs(2)) == "<((u8, u8), ((u8, u8), (u8, u8)))>"
    began = time.monotonic()
    assert demangled(pairs_of_pairs(60)) == pairs_of_pairs(60)
    assert time.monotonic() - began < 2


def test_a_long_name_of_digits_is_no_error():
    assert demangled("_ZN" + "9" * 6000 + "17h0123456789abcdefE").startswith("_ZN999")
    assert re.fullmatch("_RC9+", demangled("_RC" + "9" * 6000))
