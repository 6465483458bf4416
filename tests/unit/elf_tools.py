"""Programs of all kinds, and what binutils say of them: the oracle of the stack tests."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tcptrace.probes.enrich.stacks.binary import Binary

_PADDING = r"nop|xchg +%ax,%ax|data16|cs nop|\."
_FDE = re.compile(r"^[0-9a-f]{8,} [0-9a-f]+ [0-9a-f]+ FDE .*pc=([0-9a-f]+)\.\.([0-9a-f]+)")


def run(*command, check=True):
    """What the tool writes; it must succeed."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=120, check=False
    )
    assert not check or done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@dataclass
class Program:
    """A file that was built, and its tables as binutils print them."""

    path: Path

    def opened(self, *roots, name="", path=""):
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return Binary(fd, name or self.path.name, roots, path or str(self.path))

    def copied(self, to, *objcopy):
        """Another file, made from this one by objcopy."""
        to.parent.mkdir(parents=True, exist_ok=True)
        run("objcopy", *objcopy, self.path, to)
        return Program(to)

    @cached_property
    def symbols(self):
        """Name -> address, of the symbol table."""
        rows = (line.split() for line in run("nm", self.path).splitlines())
        return {row[-1]: int(row[0], 16) for row in rows if len(row) == 3}

    @cached_property
    def instructions(self):
        """Addresses of all instructions of .text that are no padding."""
        rows = run("objdump", "-d", "--no-show-raw-insn", "-j", ".text", self.path).splitlines()
        found = (re.match(rf" +([0-9a-f]+):\t(?!{_PADDING})", row) for row in rows)
        return [int(match[1], 16) for match in found if match]

    @cached_property
    def build_id(self):
        return re.search(r"Build ID: ([0-9a-f]+)", run("readelf", "-n", self.path))[1]

    def function_at(self, name):
        """Its instructions."""
        listing = run("objdump", "-d", "--no-show-raw-insn", f"--disassemble={name}", self.path)
        return [int(at, 16) for at in re.findall(r"^ +([0-9a-f]+):\t", listing, re.MULTILINE)]

    def frames(self, addresses):
        """addr2line's: for each address, [(function, file, line), ...]."""
        asked = [hex(address) for address in addresses]
        told = run("addr2line", "-a", "-i", "-f", "-C", "-e", self.path, *asked).splitlines()
        found, current = {}, []
        for line in told:
            if re.fullmatch(r"0x[0-9a-f]{16}", line):
                current = found[int(line, 16)] = []
            else:
                current.append(line)
        return {at: list(map(_place, rows[::2], rows[1::2])) for at, rows in found.items()}

    def rows(self):
        """readelf's: (address, {column: value}) for each row of the call frame tables."""
        columns, code = [], range(0)
        for line in run("readelf", "-wF", self.path, check=False).splitlines():
            if match := _FDE.match(line):
                code, columns = range(int(match[1], 16), int(match[2], 16)), []
            elif " CIE " in line:
                code = range(0)
            elif line.lstrip().startswith("LOC "):
                columns = line.split()
            elif columns and re.match(r"[0-9a-f]{16} ", line):
                # a register that is kept in another one takes two words: r3 (rbx)
                values = re.sub(r"(\S) \((\w+)\)", r"\1(\2)", line).split()
                if int(values[0], 16) in code:
                    yield int(values[0], 16), dict(zip(columns[1:], values[1:], strict=True))


def _place(function, where):
    path, _, line = where.split(" (discriminator")[0].rpartition(":")
    return (
        None if function == "??" else function,
        None if path == "??" else path,
        int(line) if line.isdigit() and line != "0" else None,
    )


def build(folder, source, *options, name="program", suffix="c"):
    """Compile and link; ``source`` is C, C++ (suffix cpp) or assembly (suffix s)."""
    text = folder / f"{name}.{suffix}"
    text.write_text(source)
    compiler = "g++" if suffix == "cpp" else "gcc"
    run(compiler, "-o", folder / name, text, *options)
    return Program(folder / name)


INLINES = """
#include <stdio.h>
#define INLINE static inline __attribute__((always_inline))
int leaf(int n);
INLINE int deepest(int n) {
    if (n > 3) {
        n += leaf(n);
    }
    return n;
}
INLINE int middle(int n) {
    return deepest(n) * 3;
}
__attribute__((noinline)) int outer(int n) {
    return middle(n + 1);
}
__attribute__((noinline)) int leaf(int n) {
    return printf("%d", n);
}
int main(int count, char **words) {
    return outer(count) + !words;
}
"""

CLASSES = """
#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <vector>
namespace net {
struct Handler { virtual ~Handler() {} virtual int on(int) = 0; };
template <class T> struct Leaky : Handler {
    std::map<std::string, std::vector<T>> seen;
    int on(int n) override {
        seen[std::to_string(n)].push_back(T(n));
        std::sort(seen.begin()->second.begin(), seen.begin()->second.end());
        return seen.size();
    }
};
namespace { __attribute__((noinline)) int hidden(int n) { return n * getchar(); } }
int loop(Handler &handler, int n) {
    auto once = [&](int i) { return handler.on(i) + hidden(i); };
    int sum = 0;
    for (int i = 0; i < n; i++) sum += once(i);
    return sum;
}
}
int main(int count, char **) {
    net::Leaky<int> one;
    net::Leaky<double> other;
    std::function<int(int)> both = [&](int n) { return net::loop(one, n) + net::loop(other, n); };
    return both(count);
}
"""
