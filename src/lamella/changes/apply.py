# SPDX-License-Identifier: Apache-2.0
"""Applies one layer: feeds its changes to a sink, and makes every path safe. Nothing else drives a sink.

Why nothing can escape:

1. Paths are split here; an empty, ``.`` or ``..`` component or a NUL is refused (`_check`).
2. Parents are walked here, one component at a time from the root, and symbolic links among them are followed *by
   reading them*: an absolute target restarts at the root, ``..`` stops at the root (`Walker`). A sink therefore only
   receives paths whose parents are real directories beneath its root, and never needs the kernel to follow a link.
3. The last component is never followed: a file put at a link replaces the link.

Sinks in turn open each component with O_NOFOLLOW, so that a link which another process slips in is an error.

What layers mean where the specification is silent:

- A whiteout implies no parents: if the directory is gone, there is nothing to hide. An opaque marker does imply its
  directory, unless a file is in the way at the end of the layer.
- An implied directory has mode 0755, owner 0:0 and time 0. If it is implied by an entry, it replaces a file in the
  way; an existing directory stays as it is.
- A hard link to a file that an earlier marker of the same layer hides raises NotFound.
- A hard link of a path to itself keeps the lower file there from the layer's markers.

Each step takes time proportional to the length of its names, or to what it removes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from lamella.changes.contracts import HasImplied, Sink, Source, View
from lamella.changes.limits import Implied, Limits
from lamella.changes.model import Kind, Link, Opaque, Put, Stream, Whiteout, implied_directory
from lamella.changes.whiteouts import PutRecord
from lamella.errors import Exhausted, InvalidInput, NotFound, UnsafePath
from lamella.paths import ROOT, LayerPath, join, parse_path, split

if TYPE_CHECKING:
    from lamella.progress import Cancellation

R = TypeVar("R")

MAX_LINKS: Final = 40
"""Symbolic links followed while one path is resolved, as on Linux."""

MAX_LINK_TEXT: Final = 16384
"""Characters of all link targets while one path is resolved; Linux allows 4096 for a whole path."""

_KNOWN_PLACES: Final = 16384
_KNOWN_TEXT: Final = 1 << 25
"""Bounds of the cache of a `Walker`, in paths and in characters: a deep path has thousands of long parents."""
_UNSAFE: Final = frozenset({"", ".", ".."})


class Counts(Struct):
    """Counts of one `apply`."""

    changes: int = 0


def apply(
    changes: Source,
    sink: Sink[R],
    *,
    limits: Limits | None = None,
    cancel: Cancellation | None = None,
    counts: Counts | None = None,
) -> R:
    """Feed ``changes`` to ``sink`` and return the result of its `commit`; on any exception, abort the sink.

    ``counts`` is set before the commit.

    Raises UnsafePath, InvalidInput, NotFound (the target of a hard link), Exhausted, Cancelled, and what the source
    and the sink raise.
    """
    try:
        count = _feed(changes, sink, limits or Limits(), cancel)
        if counts is not None:
            counts.changes = count
        return sink.commit()
    except BaseException:
        sink.abort()
        raise


def _feed(changes: Source, sink: Sink[R], limits: Limits, cancel: Cancellation | None) -> int:
    # The record of what this layer puts: only markers need it, which have no effect without lower layers.
    record = PutRecord(limits) if sink.layered and sink.view is not None else None
    walker = Walker(sink, record, limits)
    places, put, unsafe, directory = walker.places, sink.put, _UNSAFE, Kind.DIRECTORY
    opaque: dict[LayerPath, None] = {}
    count, most = 0, limits.entries
    for change in changes:
        count += 1
        if not count & 0xFF:
            if count > most:
                raise Exhausted(f"the layer has more than {most} entries")
            if cancel is not None:
                cancel.check()
        if type(change) is Put:
            entry = change.entry
            path = entry.path
            parent, _, name = path.rpartition("/")
            if name in unsafe or "\0" in name:
                if path:
                    raise _unsafe_path(path)
                if entry.kind is not directory:
                    raise InvalidInput(f"the root must be a directory, not a {entry.kind.phrase}")
                put(entry, None)
                continue
            where = places.get(parent)
            if where is None:
                if not parent and path != name:
                    raise _unsafe_path(path)
                where = walker.enter(parent)
            if where != parent:
                entry = replace(entry, path=join(where, name))
            if put(entry, change.content):
                walker.gone(entry.path)
            if record is not None:
                record.add(where, name)
                if entry.kind is directory:
                    record.state(entry.path)
        else:
            match change:
                case Link(path, target):
                    _link(sink, walker, record, path, target)
                case Whiteout(path):
                    _whiteout(sink, walker, record, path)
                case Opaque(path):
                    _opaque(sink, walker, record, path)
                    opaque[path] = None
                case Stream(path, name, content):
                    sink.stream(walker.locate(path), name, content)
                case Put():  # a subclass, which the identity test above missed
                    raise TypeError("Put cannot be subclassed")
    if count > most:
        raise Exhausted(f"the layer has more than {most} entries")
    # At the end, so that the position of a marker among the entries does not matter.
    for path in opaque:
        walker.imply(path)
    return count


def _link(sink: Sink[R], walker: Walker[R], record: PutRecord | None, path: LayerPath, target: LayerPath) -> None:
    if not path or not target:
        raise InvalidInput(f"hard link {path!r} -> {target!r}: the root cannot be linked")
    parent, name = _check(path)
    where = walker.enter(parent)
    target_parent, target_name = _check(target)
    target_where = walker.find(target_parent)
    if target_where is None:
        raise NotFound(f"hard link {path!r}: its target {target!r} does not exist")
    path, target = join(where, name), join(target_where, target_name)
    if path != target:
        if target.startswith(path + "/"):
            raise InvalidInput(f"hard link {path!r}: it would replace its own target {target!r}")
        if sink.link(path, target):
            walker.gone(path)
    elif walker.view is not None:
        # A link to itself changes nothing; it only enters the record.
        seen = walker.view.seen(path)
        if seen is None:
            raise NotFound(f"hard link {path!r}: its target {target!r} does not exist")
        if seen.kind is Kind.DIRECTORY:
            raise InvalidInput(f"hard link {path!r}: its target {target!r} is a directory")
    if record is not None:
        record.add(where, name)


def _whiteout(sink: Sink[R], walker: Walker[R], record: PutRecord | None, path: LayerPath) -> None:
    """Hide the lower file at ``path``. No parents are implied: if a directory is gone, there is nothing to hide."""
    if not path:
        raise UnsafePath(path, "a whiteout cannot name the root")
    parent, name = _check(path)
    where = walker.find(parent)
    if where is None or not sink.layered:
        return
    path = join(where, name)
    if record is None or walker.view is None or name not in record.names(where):
        if sink.whiteout(path):
            walker.gone(path)
        return
    # The layer has put this path or something beneath it, which stays: hide only what a directory has below.
    seen = walker.view.seen(path)
    if seen is not None and seen.kind is Kind.DIRECTORY:
        _hide(sink, walker, record, path)
        if not record.stated(path):
            sink.put(implied_directory(path), None)


def _opaque(sink: Sink[R], walker: Walker[R], record: PutRecord | None, path: LayerPath) -> None:
    """Hide the lower entries of ``path``. `_feed` creates the implied directory at the end of the layer."""
    if path:
        _check(path)
    where = walker.find(path)
    if where is not None and sink.layered:
        _hide(sink, walker, record or PutRecord(), where)


def _hide(sink: Sink[R], walker: Walker[R], record: PutRecord, directory: LayerPath) -> None:
    if sink.opaque(directory, record) is not False:
        walker.emptied(directory)


def _check(path: LayerPath) -> tuple[LayerPath, str]:
    """Split a path other than the root into parent and last component. Raises UnsafePath."""
    parent, slash, name = path.rpartition("/")
    if name in _UNSAFE or "\0" in name or (slash and not parent):
        raise _unsafe_path(path)
    return LayerPath(parent), name


def _unsafe_path(path: str) -> UnsafePath:
    return UnsafePath(path, "a component is empty, '.' or '..', or has a NUL")


class LinkBudget(Struct):
    """The symbolic links followed while one path is resolved, bounded by `MAX_LINKS` and `MAX_LINK_TEXT`."""

    count: int = 0
    length: int = 0

    def follow(self, path: LayerPath, target: str, where: LayerPath, todo: list[str]) -> LayerPath:
        """Push the components of the link's target on ``todo``, the next one last.

        ``path`` is the link, ``where`` its directory. Returns the directory that the target starts at: the root if
        the target is absolute. Raises InvalidInput for one link too many.
        """
        self.count += 1
        self.length += len(target)
        if self.count > MAX_LINKS:
            raise InvalidInput(f"{path!r}: more than {MAX_LINKS} symbolic links in the path")
        if self.length > MAX_LINK_TEXT:
            raise InvalidInput(f"{path!r}: more than {MAX_LINK_TEXT} characters of link targets in the path")
        todo.extend(reversed(target.split("/")))
        return ROOT if target.startswith("/") else where


class Walker(Generic[R]):
    """Resolves the parent directory of a path inside the root, and creates it if it is implied.

    Results are cached by spelling. A canonical spelling, as nearly all are, is dropped exactly when it or one of its
    parents is removed or replaced. Aliases, spellings that lead through links, are all dropped when anything is
    removed or replaced that one of them may lead through.
    """

    __slots__ = (
        "_aliases",
        "_first",
        "_held",
        "_implied",
        "_inside",
        "_limits",
        "_links",
        "_passed",
        "_record",
        "_sink",
        "places",
        "view",
    )

    def __init__(self, sink: Sink[R], record: PutRecord | None, limits: Limits) -> None:
        self._sink = sink
        self._record = record
        self._limits = limits
        self.view: View | None = sink.view
        self.places: dict[str, LayerPath] = {}
        """Cache: spelling of a directory -> its canonical path. The root is never in it."""
        self._inside: dict[str, set[str]] = {}
        """Directory -> the cached canonical paths of its direct children; the parents of every cached path are keys."""
        self._aliases: list[str] = []
        """The cached spellings that are not canonical."""
        self._passed: set[str] = set()
        """Canonical paths of the links that aliases lead through, and of the directories behind them."""
        self._links = LinkBudget()
        """Links followed in the current walk."""
        self._held = 0
        """Characters of all cached paths."""
        self._implied = sink.implied if isinstance(sink, HasImplied) else Implied()
        """Charge for implied directories; shared with a sink that holds several layers in memory."""
        self._first = True
        """Whether the current walk has implied no directory yet: the first is free, by `Limits.implied`."""

    def gone(self, path: LayerPath) -> None:
        """Drop cached results that depend on the directory or link ``path``, which was removed or replaced."""
        known = path in self.places
        if known or path in self._passed:
            self._forget_aliases()
        if known:
            self._forget(path)

    def emptied(self, directory: LayerPath) -> None:
        """Drop cached results that depend on the directories and links in ``directory``, which were hidden."""
        self._forget_aliases()
        for path in self._inside.pop(directory, ()):
            self._forget(path)

    def _forget(self, path: str) -> None:
        places, inside = self.places, self._inside
        todo = [path]
        while todo:
            path = todo.pop()
            places.pop(path, None)
            todo.extend(inside.pop(path, ()))

    def _forget_aliases(self) -> None:
        for path in self._aliases:
            self.places.pop(path, None)
        self._aliases.clear()
        self._passed.clear()

    def enter(self, spelled: str) -> LayerPath:
        """Return the directory ``spelled``; create it and missing parents, and replace files in the way."""
        where = self._walk(spelled, create=True, replace=True)
        assert where is not None  # noqa: S101  # None needs create or replace to be off
        return where

    def imply(self, spelled: str) -> LayerPath | None:
        """Return the directory ``spelled``; create it and missing parents. None if a file is in the way."""
        return self._walk(spelled, create=True, replace=False)

    def find(self, spelled: str) -> LayerPath | None:
        """Return the directory ``spelled``, or None if it does not exist."""
        return self._walk(spelled, create=False, replace=False)

    def locate(self, path: LayerPath) -> LayerPath:
        """Return the canonical path of the file ``path``. Raises NotFound if its directory does not exist."""
        parent, name = _check(path)
        where = self.find(parent)
        if where is None:
            raise NotFound(f"{path!r}: its directory does not exist")
        return join(where, name)

    def _walk(self, spelled: str, *, create: bool, replace: bool) -> LayerPath | None:
        if not spelled:
            return ROOT
        places = self.places
        where = places.get(spelled)
        if where is not None:
            return where
        limits = self._limits
        if len(spelled) > limits.length:
            raise Exhausted(f"the path {spelled[:60]!r}... has more than {limits.length} characters")
        if parse_path(spelled) != spelled:
            raise _unsafe_path(spelled)
        if spelled.count("/") >= limits.depth:
            raise Exhausted(f"the path {spelled[:60]!r}... has more than {limits.depth} components")
        if len(places) > _KNOWN_PLACES or len(self._passed) > _KNOWN_PLACES or self._held > _KNOWN_TEXT:
            places.clear()
            self._inside.clear()
            self._forget_aliases()
            self._held = 0
        known, at = spelled, ROOT
        pending: list[str] = []
        while known:
            known, _, name = known.rpartition("/")
            pending.append(name)
            if known in places:
                at = places[known]
                break
        self._links = LinkBudget()
        self._first = True
        while pending:
            name = pending.pop()
            above, known = known, join(known, name)
            found = self._step(at, name, create=create, replace=replace)
            if found is None:
                return None
            at = found
            places[known] = at
            self._held += len(at)
            if at == known:
                row = self._inside.get(above)
                if row is None:
                    self._inside[above] = {known}
                else:
                    row.add(known)
            else:
                self._aliases.append(known)
                self._passed.add(at)
        return at

    def _step(self, where: LayerPath, name: str, *, create: bool, replace: bool) -> LayerPath | None:
        """Resolve ``name`` in the real directory ``where`` to a directory, following links inside the root."""
        view = self.view
        if view is None:
            return join(where, name)
        todo = [name]
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                where = split(where)[0]
                continue
            path = join(where, name)
            seen = view.seen(path)
            if seen is not None and seen.kind is Kind.SYMLINK:
                self._passed.add(path)
                self._held += len(path)
                where = self._links.follow(path, seen.target, where, todo)
                continue
            if seen is None or seen.kind is not Kind.DIRECTORY:
                # Neither a file in the way nor a path beneath it is cached: replacing it makes no result stale.
                if not (create if seen is None else replace):
                    return None
                self._imply(path)
            if self._links.count:
                self._passed.add(path)
            where = path
        return where

    def _imply(self, path: LayerPath) -> None:
        if self._first:
            self._first = False
        else:
            self._implied.add(path, self._limits)
        self._sink.put(implied_directory(path), None)
        if self._record is not None:
            self._record.enter(path)
