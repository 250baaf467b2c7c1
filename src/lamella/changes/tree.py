# SPDX-License-Identifier: Apache-2.0
"""A tree in memory, and the sink that makes one: what a stack of layers comes to, without a file system."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping

from msgspec import Struct
from msgspec.structs import replace

from lamella.changes.apply import LinksPassed, apply
from lamella.changes.contracts import Mine, Seen, Source, Tree
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
from lamella.changes.whiteouts import prune
from lamella.errors import InvalidInput, NotFound, StreamConsumed, Unsupported
from lamella.paths import ROOT, LayerPath, Way, join, split


class _Names:
    """How many names one file has."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 1


class _Node(Struct):
    entry: Entry
    content: StoredContent | None
    children: dict[str, _Node] | None
    """None for all but directories."""
    names: _Names | None = None
    """Shared by all names of one file; None where it never had a second one."""
    streams: dict[str, StoredContent] | None = None
    """Alternate data streams, shared by all names of one file."""


class MemoryTree:
    """A `Tree` in memory. It holds content that can be opened again only; alternate data streams with ``streams``."""

    __slots__ = ("_implied", "_near", "_near_path", "_root", "_streams", "_way")

    def __init__(self, *, streams: bool = False) -> None:
        self._streams = streams
        self._root = _Node(implied_directory(ROOT), None, {})
        # The directory that was last come by: what is asked for next is often in it, and paths can be long.
        self._near_path = ""
        self._near = self._root
        self._way = Way(self._root)
        self._implied = Implied()

    def lookup(self, path: LayerPath) -> Entry | None:
        """See `Tree.lookup`."""
        node = self._find(path)
        return node.entry if node is not None else None

    def entries(self, directory: LayerPath) -> list[Entry]:
        """See `Tree.entries`."""
        children = self._directory(directory)
        names = sorted(children) if "".join(children).isascii() else sorted(children, key=_bytes)
        return [children[name].entry for name in names]

    def open(self, path: LayerPath) -> StoredContent:
        """See `Tree.open`."""
        node = self._find(path)
        if node is None:
            raise NotFound(f"{path!r} is not there")
        if node.content is None:
            raise InvalidInput(f"{path!r} is a {node.entry.kind.phrase}, not a file")
        return node.content

    def identity(self, path: LayerPath) -> Hashable:
        """See `Tree.identity`."""
        node = self._find(path)
        if node is None or node.names is None or node.names.count < 2:
            return None
        return id(node.names)

    def streams(self, path: LayerPath) -> Mapping[str, StoredContent]:
        """The alternate data streams of a file, by their names; none where nothing is."""
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
            raise NotFound(f"{path!r} is not there")
        if node.children is None:
            raise InvalidInput(f"{path!r} is a {node.entry.kind.phrase}, not a directory")
        return node.children

    def _set(self, path: LayerPath, node: _Node) -> _Node | None:
        """Put ``node`` at ``path`` and return what was there."""
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
    """The directory ``name`` in another."""
    assert directory.children is not None  # noqa: S101  # it is one
    found = directory.children.get(name)
    return found if found is not None and found.children is not None else None


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


class MemorySink:
    """Applies a layer to a `MemoryTree`, in place; `commit` returns the tree.

    A layer that fails half-way leaves the tree as it is then: callers that go on after an error start a new one.
    """

    __slots__ = ("_layered", "_tree")

    def __init__(self, tree: MemoryTree) -> None:
        self._tree = tree
        self._layered = bool(tree._directory(ROOT))  # noqa: SLF001  # sink and tree are one module's two halves

    @property
    def view(self) -> MemorySink:
        """See `Sink.view`."""
        return self

    @property
    def layered(self) -> bool:
        """See `Sink.layered`."""
        return self._layered

    @property
    def implied(self) -> Implied:
        """What all layers of the tree imply counts together, since all of it is held."""
        return self._tree._implied  # noqa: SLF001

    def seen(self, path: LayerPath) -> Seen | None:
        """See `View.seen`."""
        entry = self._tree.lookup(path)
        return None if entry is None else Seen(entry.kind, entry.target)

    def put(self, entry: Entry, content: Content | None) -> bool | None:
        """See `Sink.put`. Content must be stored: raises StreamConsumed for a one-shot stream."""
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
        """See `Sink.link`."""
        tree = self._tree
        node = tree._find(target)  # noqa: SLF001
        if node is None:
            raise NotFound(f"hard link {path!r}: its target {target!r} is not there")
        if node.children is not None:
            raise InvalidInput(f"hard link {path!r}: its target {target!r} is a directory")
        if node.names is None:
            node.names = _Names()
        node.names.count += 1
        further = _Node(replace(node.entry, path=path), node.content, None, node.names, node.streams)
        return _reshapes(tree._set(path, further))  # noqa: SLF001

    def stream(self, path: LayerPath, name: str, content: Content) -> None:
        """See `Sink.stream`. Raises Unsupported where the tree was not made for that, StreamConsumed, NotFound."""
        if not self._tree._streams:  # noqa: SLF001
            raise Unsupported(f"{path!r}: this tree in memory holds no alternate data stream ({name!r})")
        node = self._tree._find(path)  # noqa: SLF001
        if node is None:
            raise NotFound(f"{path!r}, which has the alternate data stream {name!r}, is not there")
        if node.streams is None:
            node.streams = {}
        node.streams[name] = _stored(path, content)

    def whiteout(self, path: LayerPath) -> bool | None:
        """See `Sink.whiteout`."""
        return _reshapes(self._tree._remove(path))  # noqa: SLF001

    def opaque(self, path: LayerPath, mine: Mine) -> bool | None:
        """See `Sink.opaque`."""
        return prune(self, path, mine)

    def names(self, directory: LayerPath) -> Iterable[tuple[str, bool]]:
        """See `FlatPlace.names`."""
        children = self._tree._directory(directory)  # noqa: SLF001
        return [(name, node.children is not None) for name, node in children.items()]

    def remove(self, path: LayerPath) -> None:
        """See `FlatPlace.remove`."""
        self._tree._remove(path)  # noqa: SLF001

    def commit(self) -> MemoryTree:
        """The tree."""
        return self._tree

    def abort(self) -> None:
        """Nothing to undo that anybody could still use."""


def _reshapes(old: _Node | None) -> bool:
    return old is not None and (old.children is not None or old.entry.kind is Kind.SYMLINK)


def _stored(path: str, content: Content) -> StoredContent:
    if not getattr(content, "stored", False):
        raise StreamConsumed(f"{path!r}: a tree needs content that can be opened again, not a stream")
    return content  # type: ignore[return-value]


def fold(changes: Source, *, limits: Limits | None = None) -> MemoryTree:
    """The tree that one layer without parents comes to. Raises as `apply` does."""
    return apply(changes, MemorySink(MemoryTree()), limits=limits)


def merge(layers: Iterable[Source], *, limits: Limits | None = None) -> MemoryTree:
    """The tree that ``layers``, the base first, come to. Raises as `apply` does."""
    tree = MemoryTree()
    for layer in layers:
        tree = apply(layer, MemorySink(tree), limits=limits)
    return tree


_NO_STREAMS: Mapping[str, StoredContent] = {}


def streams_of(tree: Tree, path: LayerPath) -> Mapping[str, StoredContent]:
    """The alternate data streams of the file ``path``; none of a tree that cannot have any."""
    streams = getattr(tree, "streams", None)
    found: Mapping[str, StoredContent] = _NO_STREAMS if streams is None else streams(path)
    return found


def walk(tree: Tree, start: LayerPath = ROOT) -> Iterator[Change]:
    """``tree`` as the changes of one layer without parents: the root first, directories before what is in them.

    Names come in the order of their bytes; the first name of a file is put, the others are links to it.
    """
    entry = tree.lookup(start)
    if entry is None:
        raise NotFound(f"{start!r} is not there")
    firsts: dict[Hashable, LayerPath] = {}
    has_streams = hasattr(tree, "streams")
    todo = [entry]
    while todo:
        entry = todo.pop()
        path = entry.path
        if entry.kind is Kind.DIRECTORY:
            yield Put(entry, None)
            if has_streams:
                yield from (Stream(path, name, content) for name, content in streams_of(tree, path).items())
            todo.extend(reversed(tree.entries(path)))
            continue
        if entry.target and entry.kind is Kind.FILE:  # a hard link out of the tree
            yield Link(path, LayerPath(entry.target))
            continue
        identity = tree.identity(path)
        if identity is not None:
            first = firsts.setdefault(identity, path)
            if first != path:
                yield Link(path, first)
                continue
        yield Put(entry, tree.open(path) if entry.kind is Kind.FILE else None)
        if has_streams:
            yield from (Stream(path, name, content) for name, content in streams_of(tree, path).items())


def resolve(tree: Tree, path: LayerPath, *, follow: bool = True) -> LayerPath:
    """The canonical path that ``path`` leads to, links followed inside the root as if chrooted there.

    ``follow`` says whether a link at the very end is followed too. A tree in which an absolute link does not start at
    the root has a method ``link_root``, which tells where. Raises NotFound, InvalidInput (too many links).
    """
    link_root = getattr(tree, "link_root", None)
    where = ROOT
    todo = list(reversed(path.split("/"))) if path else []
    links = LinksPassed()
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
            raise NotFound(f"{path!r} is not there")
        if entry.kind is Kind.SYMLINK and (todo or follow):
            where = links.follow(at, entry.target, where, todo)
            if link_root is not None and entry.target.startswith("/"):
                where = link_root(at)
            continue
        where = at if link_root is None else entry.path
    return where
