# SPDX-License-Identifier: Apache-2.0
"""Short descriptions of trees for assertions, and other means of the contract suites."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar, runtime_checkable

from lamella.changes.contracts import Tree
from lamella.changes.dump import dump, escape
from lamella.changes.model import Entry, Kind, Link, Put, StoredContent, dense
from lamella.changes.tree import walk
from lamella.paths import LayerPath

T = TypeVar("T", bound=Tree)


@runtime_checkable
class _HasClose(Protocol):
    def close(self) -> None: ...


@contextmanager
def closed_after(tree: T) -> Iterator[T]:
    """Yield ``tree`` and close it after the block if it has a ``close`` method."""
    try:
        yield tree
    finally:
        resource: object = tree
        if isinstance(resource, _HasClose):
            resource.close()


@contextmanager
def raises(*kinds: type[Exception]) -> Iterator[None]:
    """Fail unless the block raises one of ``kinds``."""
    try:
        yield
    except kinds:
        return
    raise AssertionError(f"did not raise {' or '.join(kind.__name__ for kind in kinds)}")


def outline(tree: Tree) -> dict[str, str]:
    """Map each path except the root to its kind and the start of its content, its target or its device numbers."""
    found: dict[str, str] = {}
    for change in walk(tree):
        match change:
            case Put(entry, _) if entry.path:
                found[entry.path] = _describe(tree, entry)
            case Link(path, target):
                found[path] = f"link {target}"
            case _:
                pass
    return found


def _describe(tree: Tree, entry: Entry) -> str:
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
    """Return the bytes of ``content``, with zeros for its holes."""
    return b"".join(map(bytes, dense(content)))


def text(tree: Tree) -> list[str]:
    """Return ``tree`` as canonical text, in which zeros and holes are the same."""
    return list(dump(walk(tree), inline=64, extents=False))


def at(tree: Tree, path: str) -> Entry:
    """Return the entry at ``path``; fail if it does not exist."""
    entry = tree.lookup(LayerPath(path))
    assert entry is not None, f"{path!r} does not exist"
    return entry
