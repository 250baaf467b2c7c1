# SPDX-License-Identifier: Apache-2.0
"""Find files of a tree by name, kind, size and time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fnmatch import translate
from typing import Final

from msgspec import Struct

from lamella.changes.contracts import IgnoresCase, Tree
from lamella.changes.model import Entry, Kind
from lamella.errors import InvalidInput, NotFound
from lamella.paths import ROOT, LayerPath

_UNITS: Final = {"": 1, "c": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE: Final = re.compile(r"([+-]?)([0-9]{1,18})([ckMGT]?)")


class Sizes(Struct, frozen=True):
    """Bounds on a size in bytes, both ends included; None is no bound."""

    least: int | None = None
    most: int | None = None

    @classmethod
    def parse(cls, text: str) -> Sizes:
        """``N`` for exactly, ``+N`` for at least and ``-N`` for at most, with ``k``, ``M``, ``G`` or ``T`` for 1024s.

        Raises InvalidInput.
        """
        match = _SIZE.fullmatch(text)
        if match is None:
            raise InvalidInput(
                f"malformed size {text[:40]!r}", hint="write it as in 512, +10k (or more), -2M (or less)"
            )
        sign, number, unit = match.groups()
        size = int(number) * _UNITS[unit]
        return cls(None if sign == "-" else size, None if sign == "+" else size)


class Wanted(Struct, frozen=True):
    """The conditions a file must meet, all of them; None and empty set no condition."""

    names: tuple[str, ...] = ()
    """Globs for the last component; one of them must match."""
    paths: tuple[str, ...] = ()
    """Globs for the whole path from ``/``, in which ``*`` also matches slashes."""
    kinds: frozenset[Kind] = frozenset()
    sizes: tuple[Sizes, ...] = ()
    """Only regular files have a size."""
    newer: int | None = None
    """Nanoseconds since the epoch; the modification time must be later."""
    any_case: bool = False
    """Globs ignore case; they always do in a tree that ignores case."""


def find(tree: Tree, start: LayerPath = ROOT, wanted: Wanted | None = None) -> Iterator[Entry]:
    """The entries at and beneath ``start`` that meet the conditions, each directory before its content.

    Links are not followed. Raises NotFound.
    """
    entry = tree.lookup(start)
    if entry is None:
        raise NotFound(f"'/{start}' does not exist")
    fits = _test(wanted or Wanted(), any_case=isinstance(tree, IgnoresCase))
    todo = [entry]
    while todo:
        entry = todo.pop()
        if entry.kind is Kind.DIRECTORY:
            todo.extend(reversed(tree.entries(entry.path)))
        if fits(entry):
            yield entry


def _test(wanted: Wanted, *, any_case: bool) -> Callable[[Entry], bool]:
    flags = re.IGNORECASE if wanted.any_case or any_case else 0
    names = [re.compile(translate(glob), flags).match for glob in wanted.names]
    paths = [re.compile(translate(glob), flags).match for glob in wanted.paths]
    kinds, sizes, newer = wanted.kinds, wanted.sizes, wanted.newer

    def fits(entry: Entry) -> bool:
        if kinds and entry.kind not in kinds:
            return False
        if names and not any(match(entry.path.rpartition("/")[2]) for match in names):
            return False
        if paths and not any(match(f"/{entry.path}") for match in paths):
            return False
        if newer is not None and (entry.posix is None or entry.posix.mtime <= newer):
            return False
        return not sizes or (entry.kind is Kind.FILE and all(_within(entry.size, one) for one in sizes))

    return fits


def _within(size: int, bounds: Sizes) -> bool:
    return (bounds.least is None or size >= bounds.least) and (bounds.most is None or size <= bounds.most)
