# SPDX-License-Identifier: Apache-2.0
"""Trees put into few words, to be compared with what a test expects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from lamella.changes.contracts import Tree
from lamella.changes.dump import dump, escape
from lamella.changes.model import Entry, Kind, Link, Put, StoredContent, dense
from lamella.changes.tree import walk
from lamella.paths import LayerPath

T = TypeVar("T", bound=Tree)


@contextmanager
def closed_after(tree: T) -> Iterator[T]:
    """``tree``, closed at the end of the block where it can be closed."""
    try:
        yield tree
    finally:
        close = getattr(tree, "close", None)
        if close is not None:
            close()


@contextmanager
def raises(*kinds: type[Exception]) -> Iterator[None]:
    """Fail unless the block raises one of ``kinds``."""
    try:
        yield
    except kinds:
        return
    raise AssertionError(f"did not raise {' or '.join(kind.__name__ for kind in kinds)}")


def outline(tree: Tree) -> dict[str, str]:
    """Each path but the root, with the kind of file there and what it holds."""
    found: dict[str, str] = {}
    for change in walk(tree):
        match change:
            case Put(entry, _) if entry.path:
                found[entry.path] = _words(tree, entry)
            case Link(path, target):
                found[path] = f"link {target}"
            case _:
                pass
    return found


def _words(tree: Tree, entry: Entry) -> str:
    words = entry.kind.value
    if entry.kind is Kind.FILE:
        text = held(tree.open(entry.path))[:40].decode("utf-8", "surrogateescape")
        words += f" {escape(text)}" if text else ""
    elif entry.kind is Kind.SYMLINK:
        words += f" {entry.target}"
    elif entry.posix is not None and entry.kind in (Kind.CHARACTER, Kind.BLOCK):
        words += " {}:{}".format(*entry.posix.device)
    return words


def held(content: StoredContent) -> bytes:
    """The bytes of ``content``, zeros for its holes."""
    return b"".join(map(bytes, dense(content)))


def text(tree: Tree) -> list[str]:
    """All of ``tree`` as canonical text, where zeros and holes are the same."""
    return list(dump(walk(tree), inline=64, extents=False))


def at(tree: Tree, path: str) -> Entry:
    """The entry at ``path``, which must be there."""
    entry = tree.lookup(LayerPath(path))
    assert entry is not None, f"{path!r} is not there"
    return entry
