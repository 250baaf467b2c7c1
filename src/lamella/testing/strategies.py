# SPDX-License-Identifier: Apache-2.0
"""Random content, layers, stacks and trees for hypothesis, small and full of collisions.

Names, contents and times are few, because bugs appear where changes collide. Names sort differently by code points and
by bytes. A Linux file system can store everything, so the same layers can be applied to every kind of layer.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Final

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from msgspec.structs import replace

from lamella.changes.model import NO_XATTRS, Change, Content, Entry, Inline, Kind, Link, Opaque, Posix, Put, Whiteout
from lamella.changes.tree import MemoryTree, fold, merge, walk
from lamella.errors import InvalidInput, NotFound
from lamella.paths import LayerPath
from lamella.testing.builders import sparse

NAMES: Final = ("a", "b", "é", "\udc80")
DEPTH: Final = 3

WHOLE_TIMES: Final = (0, 1_000_000_000, 1_700_000_000_000_000_000)
TIMES: Final = (*WHOLE_TIMES, 1_700_000_000_123_456_789)


def paths(*, depth: int = DEPTH) -> SearchStrategy[LayerPath]:
    """Paths of at most ``depth`` components, never the root."""
    every = (LayerPath("/".join(parts)) for length in range(1, depth + 1) for parts in product(NAMES, repeat=length))
    return st.sampled_from(tuple(every))


_CONTENTS: Final = (
    *map(Inline, (b"", b"x", b"y", b"xy", b"\0\0\0\0", b"\0x\0\0")),
    *(sparse(4), sparse(4, [(1, b"x")]), sparse(8192, [(4096, b"x\0")])),
)


def contents() -> SearchStrategy[Content]:
    """Content in memory, in part sparse; some values differ only in their holes, others in one byte."""
    return st.sampled_from(_CONTENTS)


@cache
def posix(kind: Kind, *, times: tuple[int, ...] = TIMES) -> SearchStrategy[Posix]:
    """Metadata that a file of ``kind`` can have on Linux."""
    modes = (0o777,) if kind is Kind.SYMLINK else (0o644, 0o755, 0o2755, 0o4711)
    owners = ((0, 0), (0, 1000), (1000, 0))
    xattrs = [NO_XATTRS, NO_XATTRS]
    if kind in (Kind.FILE, Kind.DIRECTORY):
        xattrs += [{"user.x": b"1"}, {"user.x": b"\0\xff", "user.y": b""}]
    devices = ((1, 3), (8, 0)) if kind in (Kind.CHARACTER, Kind.BLOCK) else ((0, 0),)
    # One draw instead of five, because draws dominate the run time.
    return st.sampled_from(
        [
            Posix(mode, *owner, time, attributes, numbers)
            for mode, owner, time, attributes, numbers in product(modes, owners, times, xattrs, devices)
        ]
    )


_KINDS: Final = (Kind.FILE, Kind.FILE, Kind.DIRECTORY, Kind.DIRECTORY, Kind.FIFO, Kind.CHARACTER)
_ALL_KINDS: Final = (*_KINDS, Kind.SYMLINK, Kind.SYMLINK)


@st.composite
def puts(
    draw: st.DrawFn,
    path: SearchStrategy[LayerPath] | None = None,
    *,
    symlinks: bool = False,
    times: tuple[int, ...] = TIMES,
) -> Put:
    """A file of any kind at ``path``, or at a random path."""
    where = draw(paths() if path is None else path)
    kind = draw(st.sampled_from(_ALL_KINDS if symlinks else _KINDS))
    content = draw(contents()) if kind is Kind.FILE else None
    target = draw(targets()) if kind is Kind.SYMLINK else ""
    size = 0 if content is None else content.size
    return Put(Entry(where, kind, draw(posix(kind, times=times)), size, target), content)


def targets() -> SearchStrategy[str]:
    """Targets of symbolic links: upward, downward, absolute, dangling, out of the root, circular."""
    return st.sampled_from(["a", "b", "/a", "/a/b", "../a", "a/b", "..", ".", "/", "../../../a", "none", "/b/../a"])


@st.composite
def layers(
    draw: st.DrawFn, *, symlinks: bool = False, markers: bool = True, times: tuple[int, ...] = TIMES, size: int = 10
) -> list[Change]:
    """One layer: puts with duplicates, hard links to its own files, whiteouts and opaque markers at random paths.

    Some layers cannot be applied: the target of a hard link may have been replaced.
    """
    layer: list[Change] = []
    linkable: list[LayerPath] = []
    forms = ["put", "put", "put", "link", *(["whiteout", "opaque"] if markers else [])]
    for form in draw(st.lists(st.sampled_from(forms), max_size=size)):
        if form == "link" and linkable:
            layer.append(Link(draw(paths()), draw(st.sampled_from(linkable))))
        elif form == "whiteout":
            layer.append(Whiteout(draw(paths())))
        elif form == "opaque":
            layer.append(Opaque(draw(st.one_of(paths(), st.just(LayerPath(""))))))
        else:
            put = draw(puts(symlinks=symlinks, times=times))
            layer.append(put)
            if put.entry.kind is not Kind.DIRECTORY:
                linkable.append(put.entry.path)
    return layer


def stacks(
    *, symlinks: bool = False, markers: bool = True, times: tuple[int, ...] = TIMES, most: int = 4
) -> SearchStrategy[list[list[Change]]]:
    """Up to ``most`` layers that can be applied, base first."""
    layer = layers(symlinks=symlinks, markers=markers, times=times)
    return st.lists(layer, min_size=1, max_size=most).filter(_applies)


def _applies(stack: list[list[Change]]) -> bool:
    try:
        merge(stack)
    except (NotFound, InvalidInput):
        return False
    return True


def trees(*, symlinks: bool = True, times: tuple[int, ...] = TIMES) -> SearchStrategy[MemoryTree]:
    """Trees with a stated root, every kind of file, and hard links."""
    return st.tuples(
        posix(Kind.DIRECTORY, times=times),
        stacks(symlinks=symlinks, markers=False, times=times, most=1),
    ).map(lambda drawn: _tree(*drawn))


def _tree(root: Posix, stack: list[list[Change]]) -> MemoryTree:
    return fold([Put(Entry(LayerPath(""), Kind.DIRECTORY, root), None), *stack[0]])


@st.composite
def tree_pairs(
    draw: st.DrawFn, *, symlinks: bool = True, times: tuple[int, ...] = TIMES
) -> tuple[MemoryTree, MemoryTree]:
    """Two trees: the second is unrelated, or the first with one more layer or with other hard links."""
    lower = draw(trees(symlinks=symlinks, times=times))
    relation = draw(st.sampled_from(["layer", "links", "links", "none"]))
    if relation == "links":
        one, other = (fold(draw(_relinked(list(walk(lower)), times[-1]))) for _ in range(2))
        return one, other
    layer = draw(layers(symlinks=symlinks, times=times)) if relation == "layer" else []
    if layer and _applies([list(walk(lower)), layer]):
        return lower, merge([walk(lower), layer])
    return lower, draw(trees(symlinks=symlinks, times=times))


@st.composite
def _relinked(draw: st.DrawFn, changes: list[Change], mtime: int) -> list[Change]:
    """Two versions of a tree with one more file of several names, hard-linked in different ways."""
    shared = Put(Entry(LayerPath(""), Kind.FILE, Posix(0o644, 0, 0, mtime), 1), Inline(b"x"))
    firsts: dict[int, LayerPath] = {}
    for number, group in enumerate(draw(st.lists(st.sampled_from([0, 1, 2, None]), min_size=2, max_size=5))):
        path = LayerPath(f"link{number}")
        if group in firsts:
            changes.append(Link(path, firsts[group]))
        elif group is not None:
            firsts[group] = path
            changes.append(Put(replace(shared.entry, path=path), shared.content))
    return changes
