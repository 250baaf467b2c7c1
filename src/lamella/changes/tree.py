# SPDX-License-Identifier: Apache-2.0
"""A tree in memory and the sink that builds it: the merged view of a stack of layers without a file system."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping

from msgspec import Struct
from msgspec.structs import replace

from lamella.changes.apply import LinkBudget, apply
from lamella.changes.contracts import HasLinkRoot, HasStreams, Seen, Source, Tree
from lamella.changes.limits import Implied, Limits
from lamella.changes.model import (
    EMPTY,
    Change,
    Content,
    Entry,
    Kind,
    Link,
    Put,
    StoredContent,
    Stream,
    implied_directory,
)
from lamella.changes.whiteouts import PutRecord, prune
from lamella.errors import InvalidInput, NotFound, StreamConsumed, Unsupported
from lamella.paths import ROOT, LayerPath, Way, join, split


class _Names:
    """The number of hard links of one file."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 1


class _Node(Struct):
    entry: Entry
    content: StoredContent | None
    children: dict[str, _Node] | None
    """None unless the file is a directory."""
    names: _Names | None = None
    """Shared by all hard links of one file; None if it never had a second name."""
    streams: dict[str, StoredContent] | None = None
    """Alternate data streams, shared by all hard links of one file."""


class MemoryTree:
    """A `Tree` in memory. Content must be stored (readable again); alternate data streams need ``streams=True``."""

    __slots__ = ("_implied", "_near", "_near_path", "_root", "_streams", "_way")

    def __init__(self, *, streams: bool = False) -> None:
        self._streams = streams
        self._root = _Node(implied_directory(ROOT), None, {})
        # The directory of the last lookup: the next path is often in it, and paths can be long.
        self._near_path = ""
        self._near = self._root
        self._way = Way(self._root)
        self._implied = Implied()

    def lookup(self, path: LayerPath) -> Entry | None:
        node = self._find(path)
        return node.entry if node is not None else None

    def entries(self, directory: LayerPath) -> list[Entry]:
        children = self._directory(directory)
        names = sorted(children) if "".join(children).isascii() else sorted(children, key=_bytes)
        return [children[name].entry for name in names]

    def open(self, path: LayerPath) -> StoredContent:
        node = self._find(path)
        if node is None:
            raise NotFound(f"{path!r} does not exist")
        if node.content is None:
            raise InvalidInput(f"{path!r} is a {node.entry.kind.phrase}, not a file")
        return node.content

    def identity(self, path: LayerPath) -> Hashable:
        node = self._find(path)
        if node is None or node.names is None or node.names.count < 2:
            return None
        return id(node.names)

    def streams(self, path: LayerPath) -> Mapping[str, StoredContent]:
        """The alternate data streams of a file by name; empty if the file does not exist."""
        node = self._find(path)
        return node.streams if node is not None and node.streams else _NO_STREAMS

    def _find(self, path: str) -> _Node | None:
        if not path:
            return self._root
        if path == self._near_path:
            return self._near
        parent, _, name = path.rpartition("/")
        node = self._near
        if parent != self._near_path:
            above = self._way.find(parent, _inner)
            if above is None:
                return None
            node = above
        if node.children is None:
            return None
        found = node.children.get(name)
        if found is not None and found.children is not None:
            self._near_path, self._near = path, found
        else:
            self._near_path, self._near = parent, node
        return found

    def _directory(self, path: LayerPath) -> dict[str, _Node]:
        node = self._find(path)
        if node is None:
            raise NotFound(f"{path!r} does not exist")
        if node.children is None:
            raise InvalidInput(f"{path!r} is a {node.entry.kind.phrase}, not a directory")
        return node.children

    def _set(self, path: LayerPath, node: _Node) -> _Node | None:
        """Put ``node`` at ``path`` and return the node that it replaces."""
        parent, name = split(path)
        children = self._directory(parent)
        old = children.get(name)
        children[name] = node
        if old is not None:
            self._release(old)
        return old

    def _remove(self, path: LayerPath) -> _Node | None:
        parent, name = split(path)
        old = self._directory(parent).pop(name, None)
        if old is not None:
            self._release(old)
        return old

    def _release(self, node: _Node) -> None:
        if node.children is not None:
            self._near_path, self._near = "", self._root
            self._way.reset()
        todo = [node]
        while todo:
            node = todo.pop()
            if node.names is not None:
                node.names.count -= 1
            if node.children:
                todo.extend(node.children.values())


def _inner(directory: _Node, name: str) -> _Node | None:
    """The subdirectory ``name``, or None."""
    assert directory.children is not None  # noqa: S101  # only directories are walked
    found = directory.children.get(name)
    return found if found is not None and found.children is not None else None


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


class MemorySink:
    """Applies a layer to a `MemoryTree` in place; `commit` returns the tree.

    A layer that fails half-way leaves the tree partly changed: callers that go on after an error build a new one.
    """

    __slots__ = ("_layered", "_tree")

    def __init__(self, tree: MemoryTree) -> None:
        self._tree = tree
        self._layered = bool(tree._directory(ROOT))  # noqa: SLF001  # sink and tree are one module's two halves

    @property
    def view(self) -> MemorySink:
        return self

    @property
    def layered(self) -> bool:
        return self._layered

    @property
    def implied(self) -> Implied:
        """The total charged for implied directories of all layers, since the tree holds them all."""
        return self._tree._implied  # noqa: SLF001

    def seen(self, path: LayerPath) -> Seen | None:
        entry = self._tree.lookup(path)
        return None if entry is None else Seen(entry.kind, entry.target)

    def put(self, entry: Entry, content: Content | None) -> bool | None:
        tree, path = self._tree, entry.path
        if entry.kind is Kind.DIRECTORY:
            old = tree._find(path)  # noqa: SLF001
            if old is not None and old.children is not None:
                old.entry, old.streams = entry, None
                return False
            return tree._set(path, _Node(entry, None, {})) is not None  # noqa: SLF001
        stored: StoredContent | None = None
        if entry.kind is Kind.FILE:
            stored = _stored(path, EMPTY if content is None else content)
        return _reshapes(tree._set(path, _Node(entry, stored, None)))  # noqa: SLF001

    def link(self, path: LayerPath, target: LayerPath) -> bool | None:
        tree = self._tree
        node = tree._find(target)  # noqa: SLF001
        if node is None:
            raise NotFound(f"hard link {path!r}: its target {target!r} does not exist")
        if node.children is not None:
            raise InvalidInput(f"hard link {path!r}: its target {target!r} is a directory")
        if node.names is None:
            node.names = _Names()
        node.names.count += 1
        further = _Node(replace(node.entry, path=path), node.content, None, node.names, node.streams)
        return _reshapes(tree._set(path, further))  # noqa: SLF001

    def stream(self, path: LayerPath, name: str, content: Content) -> None:
        if not self._tree._streams:  # noqa: SLF001
            raise Unsupported(f"{path!r}: this tree in memory holds no alternate data stream ({name!r})")
        node = self._tree._find(path)  # noqa: SLF001
        if node is None:
            raise NotFound(f"{path!r}, which has the alternate data stream {name!r}, does not exist")
        if node.streams is None:
            node.streams = {}
        node.streams[name] = _stored(path, content)

    def whiteout(self, path: LayerPath) -> bool | None:
        return _reshapes(self._tree._remove(path))  # noqa: SLF001

    def opaque(self, path: LayerPath, record: PutRecord) -> bool | None:
        return prune(self, path, record)

    def names(self, directory: LayerPath) -> Iterable[tuple[str, bool]]:
        children = self._tree._directory(directory)  # noqa: SLF001
        return [(name, node.children is not None) for name, node in children.items()]

    def remove(self, path: LayerPath) -> None:
        self._tree._remove(path)  # noqa: SLF001

    def commit(self) -> MemoryTree:
        return self._tree

    def abort(self) -> None:
        """Do nothing: the tree is discarded with its sink."""


def _reshapes(old: _Node | None) -> bool:
    return old is not None and (old.children is not None or old.entry.kind is Kind.SYMLINK)


def _stored(path: str, content: Content) -> StoredContent:
    if not content.stored:
        raise StreamConsumed(f"{path!r}: a tree needs content that can be read again, not a one-shot stream")
    return content  # type: ignore[return-value]


def fold(changes: Source, *, limits: Limits | None = None) -> MemoryTree:
    """Build the tree of one layer without parents. Raises as `apply` does."""
    return apply(changes, MemorySink(MemoryTree()), limits=limits)


def merge(layers: Iterable[Source], *, limits: Limits | None = None) -> MemoryTree:
    """Build the merged tree of ``layers``, base first. Raises as `apply` does."""
    tree = MemoryTree()
    for layer in layers:
        tree = apply(layer, MemorySink(tree), limits=limits)
    return tree


_NO_STREAMS: Mapping[str, StoredContent] = {}


def streams_of(tree: Tree, path: LayerPath) -> Mapping[str, StoredContent]:
    """The alternate data streams of the file ``path``; empty for a tree that supports none."""
    return tree.streams(path) if isinstance(tree, HasStreams) else _NO_STREAMS


def walk(tree: Tree, start: LayerPath = ROOT) -> Iterator[Change]:
    """Yield ``tree`` as the changes of one layer without parents: the root first, directories before their entries.

    Entries come in the byte order of their names; the first name of a file is a `Put`, the others are `Link`s to it.
    """
    entry = tree.lookup(start)
    if entry is None:
        raise NotFound(f"{start!r} does not exist")
    firsts: dict[Hashable, LayerPath] = {}
    streams = tree.streams if isinstance(tree, HasStreams) else None
    todo = [entry]
    while todo:
        entry = todo.pop()
        path = entry.path
        if entry.kind is Kind.DIRECTORY:
            yield Put(entry, None)
            if streams is not None:
                yield from (Stream(path, name, content) for name, content in streams(path).items())
            todo.extend(reversed(tree.entries(path)))
            continue
        if entry.target and entry.kind is Kind.FILE:  # a hard link into a lower layer
            yield Link(path, LayerPath(entry.target))
            continue
        identity = tree.identity(path)
        if identity is not None:
            first = firsts.setdefault(identity, path)
            if first != path:
                yield Link(path, first)
                continue
        yield Put(entry, tree.open(path) if entry.kind is Kind.FILE else None)
        if streams is not None:
            yield from (Stream(path, name, content) for name, content in streams(path).items())


def resolve(tree: Tree, path: LayerPath, *, follow: bool = True) -> LayerPath:
    """Resolve ``path`` to a canonical path, following symbolic links inside the root as after chroot(2).

    With ``follow``, a link as the last component is followed. Absolute links start at the root, or at the
    `HasLinkRoot` of the tree. Raises NotFound, InvalidInput (too many links).
    """
    link_root = tree.link_root if isinstance(tree, HasLinkRoot) else None
    where = ROOT
    todo = list(reversed(path.split("/"))) if path else []
    links = LinkBudget()
    while todo:
        name = todo.pop()
        if name in ("", "."):
            continue
        if name == "..":
            where = split(where)[0]
            continue
        at = join(where, name)
        entry = tree.lookup(at)
        if entry is None or (entry.kind not in (Kind.DIRECTORY, Kind.SYMLINK) and todo):
            raise NotFound(f"{path!r} does not exist")
        if entry.kind is Kind.SYMLINK and (todo or follow):
            where = links.follow(at, entry.target, where, todo)
            if link_root is not None and entry.target.startswith("/"):
                where = link_root(at)
            continue
        where = at if link_root is None else entry.path
    return where
