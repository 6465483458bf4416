"""Rust's mangled names ``_R...`` (RFC 2603), which its standard library has by now.

PyPI's one package for them has not been kept since 2021.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator

_BASIC = {
    "a": "i8", "b": "bool", "c": "char", "d": "f64", "e": "str", "f": "f32", "h": "u8",
    "i": "isize", "j": "usize", "l": "i32", "m": "u32", "n": "i128", "o": "u128", "s": "i16",
    "t": "u16", "u": "()", "v": "...", "x": "i64", "y": "u64", "z": "!", "p": "_",
}  # fmt: skip
_NUMBER62 = re.compile(r"([0-9a-zA-Z]{0,12})_")
_IDENTIFIER = re.compile(r"(u?)(0|[1-9][0-9]{0,5})_?")
_CONSTANT = re.compile(r"(n?)([0-9a-f]*)_")
_DIGITS62 = string.digits + string.ascii_letters
_MOST_STEPS, _MOST_LIFETIMES = 5_000, 26


def v0(name: str) -> str | None:
    """None: the name is not of this scheme, or has something in it that is not known here."""
    text = name.partition(".")[0]  # what LLVM appends
    if not text.startswith("_R") or not text.isascii():
        return None
    try:
        return _Parser(text[2:]).path(in_type=False)
    except (_OddError, IndexError, RecursionError):
        return None


class _OddError(Exception):
    """Not as the RFC says."""


class _Parser:
    """One method for each rule of the RFC's grammar; each returns what it has read as text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = self._steps = self._bound = 0

    def path(self, *, in_type: bool) -> str:
        self._step()
        rules: dict[str, Callable[[], str]] = {
            "C": self._crate,
            "M": lambda: self._implementation(self._own_item),
            "X": lambda: self._implementation(self._trait_item),
            "Y": self._trait_item,
            "N": lambda: self._nested(in_type=in_type),
            "I": lambda: self._generic(in_type=in_type),
            "B": lambda: self._back(lambda: self.path(in_type=in_type)),
        }
        return rules.get(self._next(), self._odd)()

    def _crate(self) -> str:
        self._disambiguator()
        return self._name()

    def _implementation(self, rest: Callable[[], str]) -> str:
        """Where the implementation is does not matter."""
        self._disambiguator()
        self.path(in_type=True)
        return rest()

    def _own_item(self) -> str:
        return f"<{self._type()}>"

    def _trait_item(self) -> str:
        return f"<{self._type()} as {self.path(in_type=True)}>"

    def _nested(self, *, in_type: bool) -> str:
        space = self._next()
        outer = self.path(in_type=in_type)
        number = self._disambiguator()
        name = self._name()
        if space.isupper():
            kind = {"C": "closure", "S": "shim"}.get(space, space)
            return f"{outer}::{{{kind}{':' if name else ''}{name}#{number}}}"
        return f"{outer}::{name}" if name else outer

    def _generic(self, *, in_type: bool) -> str:
        outer = self.path(in_type=in_type)
        return f"{outer}{'' if in_type else '::'}<{', '.join(self._until_end(self._argument))}>"

    def _argument(self) -> str:
        if self._skip("L"):
            return self._lifetime(self._number62())
        return self._constant() if self._skip("K") else self._type()

    def _type(self) -> str:
        self._step()
        first = self._next()
        if first in _BASIC:
            return _BASIC[first]
        rules: dict[str, Callable[[], str]] = {
            "A": lambda: f"[{self._type()}; {self._constant()}]",
            "S": lambda: f"[{self._type()}]",
            "T": self._tuple,
            "R": lambda: f"&{self._optional_lifetime()}{self._type()}",
            "Q": lambda: f"&{self._optional_lifetime()}mut {self._type()}",
            "P": lambda: f"*const {self._type()}",
            "O": lambda: f"*mut {self._type()}",
            "F": lambda: self._bind(self._function),
            "D": self._dynamic,
            "B": lambda: self._back(self._type),
        }
        if first in rules:
            return rules[first]()
        self._at -= 1
        return self.path(in_type=True)

    def _tuple(self) -> str:
        parts = list(self._until_end(self._type))
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"

    def _function(self) -> str:
        before = "unsafe " if self._skip("U") else ""
        if self._skip("K"):
            abi = "C" if self._skip("C") else self._name().replace("_", "-")
            before += f'extern "{abi}" '
        arguments = ", ".join(self._until_end(self._type))
        result = self._type()
        return f"{before}fn({arguments}){'' if result == '()' else f' -> {result}'}"

    def _dynamic(self) -> str:
        bounds = self._bind(lambda: " + ".join(self._until_end(self._dynamic_trait)))
        if not self._skip("L"):
            raise _OddError
        lifetime = self._number62()
        return f"dyn {bounds}{f' + {self._lifetime(lifetime)}' if lifetime else ''}"

    def _dynamic_trait(self) -> str:
        trait = self.path(in_type=True)
        bindings = []
        while self._skip("p"):
            bindings.append(f"{self._name()} = {self._type()}")
        if not bindings:
            return trait
        open_list = f"{trait[:-1]}, " if trait.endswith(">") else f"{trait}<"
        return f"{open_list}{', '.join(bindings)}>"

    def _constant(self) -> str:
        self._step()
        kind = self._next()
        if kind == "p":
            return "_"
        if kind == "B":
            return self._back(self._constant)
        match = _CONSTANT.match(self._text, self._at)
        if kind not in "abchijlmnostxy" or not match:
            raise _OddError  # of a type that only unstable Rust has: a string, a struct
        self._at = match.end()
        value = int(match[2] or "0", 16)
        if kind == "b":
            return "true" if value else "false"
        if kind == "c":
            return repr(chr(value)) if value <= 0x10FFFF else self._odd()
        return f"{'-' if match[1] else ''}{value}"

    def _back(self, rule: Callable[[], str]) -> str:
        """Something that was written before: the rest is read from there, and then from here."""
        place = self._number62()
        here, self._at = self._at, place
        if place >= here:
            raise _OddError
        try:
            return rule()
        finally:
            self._at = here

    def _bind(self, rule: Callable[[], str]) -> str:
        """``for<'a>`` and what follows, in which the new lifetimes have names."""
        count = self._number62() + 1 if self._skip("G") else 0
        if count > _MOST_LIFETIMES:
            raise _OddError
        self._bound += count
        names = ", ".join(self._lifetime(index) for index in range(count, 0, -1))
        text = rule()
        self._bound -= count
        return f"for<{names}> {text}" if count else text

    def _optional_lifetime(self) -> str:
        index = self._number62() if self._skip("L") else 0
        return f"{self._lifetime(index)} " if index else ""

    def _lifetime(self, index: int) -> str:
        if index == 0:
            return "'_"
        depth = self._bound - index
        if not 0 <= depth < 26:
            raise _OddError
        return f"'{chr(ord('a') + depth)}"

    def _name(self) -> str:
        match = _IDENTIFIER.match(self._text, self._at)
        end = match.end() + int(match[2]) if match else len(self._text)
        if not match or end > len(self._text):
            raise _OddError
        name, self._at = self._text[match.end() : end], end
        return _unicode(name) if match[1] else name

    def _disambiguator(self) -> int:
        return self._number62() + 1 if self._skip("s") else 0

    def _number62(self) -> int:
        """0 is nothing, 1 is "0": they count from there."""
        match = _NUMBER62.match(self._text, self._at)
        if not match:
            raise _OddError
        self._at = match.end()
        value = 0
        for digit in match[1]:
            value = value * 62 + _DIGITS62.index(digit)
        return value + 1 if match[1] else 0

    def _until_end(self, rule: Callable[[], str]) -> Iterator[str]:
        while not self._skip("E"):
            yield rule()

    def _skip(self, mark: str) -> bool:
        found = self._text.startswith(mark, self._at)
        self._at += found
        return found

    def _next(self) -> str:
        self._at += 1
        return self._text[self._at - 1]

    def _step(self) -> None:
        """References back can make a short name endlessly long."""
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise _OddError

    def _odd(self) -> str:
        raise _OddError


def _unicode(name: str) -> str:
    plain, _, rest = name.rpartition("_")
    try:
        return (f"{plain}-{rest}" if plain else rest).encode().decode("punycode")
    except UnicodeError as error:
        raise _OddError from error
