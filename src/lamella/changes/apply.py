# SPDX-License-Identifier: Apache-2.0
"""The only driver: gives the changes of one layer to a sink, with every path made safe on the way.

Why nothing can escape:

1. A name is taken apart here, and an empty, ``.`` or ``..`` component or a NUL is refused (`_checked`).
2. Parents are walked here, one component at a time from the root, and links on the way are followed *by reading them*:
   an absolute target starts again at the root, ``..`` stops at the root (`Walker.step`). So a sink is only ever given
   paths whose parents are real directories beneath its root, and no sink has a reason to let the kernel follow a link.
3. The last component is never followed: what is put at a link replaces the link.

Sinks in turn open each component without following links, so that a link slipped in between by somebody else is an
error and not a way out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from lamella.changes.contracts import Sink, Source, View
from lamella.changes.model import Kind, Link, Opaque, Put, Stream, Whiteout, implied_directory
from lamella.changes.semantics import PutRecord
from lamella.errors import Exhausted, InvalidInput, NotFound, UnsafePath
from lamella.paths import ROOT, LayerPath, join, parse_path, split

if TYPE_CHECKING:
    from lamella.progress import Cancellation

R = TypeVar("R")

MAX_LINKS: Final = 40
"""Links followed on the way to one file, as on Linux."""

_KNOWN_PLACES: Final = 16384
_UNSAFE: Final = frozenset({"", ".", ".."})


@dataclass(slots=True, frozen=True)
class Limits:
    """Bounds on one layer; reaching one raises Exhausted."""

    entries: int = 50_000_000
    depth: int = 5_000
    """Components of a path."""


@dataclass(slots=True)
class Tally:
    """What went by."""

    changes: int = 0


def apply(
    changes: Source,
    sink: Sink[R],
    *,
    limits: Limits | None = None,
    cancel: Cancellation | None = None,
    tally: Tally | None = None,
) -> R:
    """Feed ``changes`` to ``sink`` and return what its `commit` returns; on any exception the sink is aborted.

    ``tally`` is filled in when all changes have been taken.

    Raises UnsafePath, InvalidInput, NotFound (a hard link to nothing), Exhausted, Cancelled, and whatever the source
    and the sink raise.
    """
    try:
        count = _feed(changes, sink, limits or Limits(), cancel)
        if tally is not None:
            tally.changes = count
        return sink.commit()
    except BaseException:
        sink.abort()
        raise


def _feed(changes: Source, sink: Sink[R], limits: Limits, cancel: Cancellation | None) -> int:
    mine = PutRecord() if sink.layered and sink.view is not None else None
    walker = Walker(sink, mine, limits.depth)
    places, put, unsafe, directory = walker.places, sink.put, _UNSAFE, Kind.DIRECTORY
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
                    raise _refusal(path)
                if entry.kind is not directory:
                    raise InvalidInput(f"the root must be a directory, not a {entry.kind.value}")
                put(entry, None)
                continue
            where = places.get(parent)
            if where is None:
                where = walker.enter(parent)
            if where != parent:
                entry = replace(entry, path=join(where, name))
            if put(entry, change.content):
                walker.forget()
            if mine is not None:
                mine.add(where, name)
                if entry.kind is directory:
                    mine.state(entry.path)
        else:
            match change:
                case Link(path, target):
                    _link(sink, walker, mine, path, target)
                case Whiteout(path):
                    _whiteout(sink, walker, mine, path)
                case Opaque(path):
                    _opaque(sink, walker, mine, path)
                case Stream(path, name, content):
                    sink.stream(walker.locate(path), name, content)
                case Put():  # a subclass, which the quick test above passed over
                    raise TypeError("Put cannot be subclassed")
    if count > most:
        raise Exhausted(f"the layer has more than {most} entries")
    return count


def _link(sink: Sink[R], walker: Walker[R], mine: PutRecord | None, path: LayerPath, target: LayerPath) -> None:
    if not path or not target:
        raise InvalidInput(f"hard link {path!r} -> {target!r}: the root cannot be linked")
    parent, name = _checked(path)
    where = walker.enter(parent)
    target_parent, target_name = _checked(target)
    target_where = walker.find(target_parent)
    if target_where is None:
        raise NotFound(f"hard link {path!r}: its target {target!r} is not there")
    path, target = join(where, name), join(target_where, target_name)
    if path != target:
        if sink.link(path, target):
            walker.forget()
    elif walker.view is not None and walker.view.seen(path) is None:
        raise NotFound(f"hard link {path!r}: its target {target!r} is not there")
    if mine is not None:
        mine.add(where, name)


def _whiteout(sink: Sink[R], walker: Walker[R], mine: PutRecord | None, path: LayerPath) -> None:
    """Hide what lies below at ``path``. It implies no parents: where a directory is gone, there is nothing to hide."""
    if not path:
        raise UnsafePath(path, "a whiteout cannot name the root")
    parent, name = _checked(path)
    where = walker.find(parent)
    if where is None or not sink.layered:
        return
    path = join(where, name)
    if mine is None or walker.view is None or name not in mine.names(where):
        if sink.whiteout(path):
            walker.forget()
        return
    seen = walker.view.seen(path)
    if seen is not None and seen.kind is Kind.DIRECTORY:
        sink.opaque(path, mine)
        if not mine.stated(path):
            sink.put(implied_directory(path), None)
        walker.forget()


def _opaque(sink: Sink[R], walker: Walker[R], mine: PutRecord | None, path: LayerPath) -> None:
    """Hide what lies below in ``path``, which the marker implies as any file in it would."""
    if path:
        _checked(path)
    where = walker.imply(path)
    if where is None or not sink.layered:
        return
    if mine is None:
        mine = PutRecord()
    mine.enter(where)
    sink.opaque(where, mine)
    walker.forget()


def _checked(path: LayerPath) -> tuple[LayerPath, str]:
    """Parent and last component of a path other than the root. Raises UnsafePath."""
    parent, name = split(path)
    if name in _UNSAFE or "\0" in name:
        raise _refusal(path)
    return parent, name


def _refusal(path: str) -> UnsafePath:
    return UnsafePath(path, "a component is empty, '.' or '..', or has a NUL")


class Walker(Generic[R]):
    """Finds the real directory that a spelling of it leads to, inside the root, and makes it where it is implied."""

    __slots__ = ("_depth", "_mine", "_sink", "places", "view")

    def __init__(self, sink: Sink[R], mine: PutRecord | None, depth: int) -> None:
        self._sink = sink
        self._mine = mine
        self._depth = depth
        self.view: View | None = sink.view
        self.places: dict[str, LayerPath] = {"": ROOT}
        """Spelling of a directory -> its canonical path; what is not here has not been looked at."""

    def forget(self) -> None:
        """Something was replaced or removed that known places may have led through."""
        self.places.clear()
        self.places[""] = ROOT

    def enter(self, spelled: str) -> LayerPath:
        """The directory ``spelled``, made with its parents where missing, in place of whatever else is in the way."""
        where = self._walk(spelled, create=True, replace=True)
        assert where is not None  # noqa: S101  # only a walk that may not create or replace comes back without
        return where

    def imply(self, spelled: str) -> LayerPath | None:
        """The directory ``spelled``, made with its parents where missing; None where a file is in the way."""
        return self._walk(spelled, create=True, replace=False)

    def find(self, spelled: str) -> LayerPath | None:
        """The directory ``spelled``; None where it is not there."""
        return self._walk(spelled, create=False, replace=False)

    def locate(self, path: LayerPath) -> LayerPath:
        """The canonical path of the file ``path``. Raises NotFound where its directory is not there."""
        parent, name = _checked(path)
        where = self.find(parent)
        if where is None:
            raise NotFound(f"{path!r}: its directory is not there")
        return join(where, name)

    def _walk(self, spelled: str, *, create: bool, replace: bool) -> LayerPath | None:
        places = self.places
        pending: list[str] = []
        known = spelled
        while (where := places.get(known)) is None:
            known, _, name = known.rpartition("/")
            pending.append(name)
        if not pending:
            return where
        if parse_path(spelled) != spelled:
            raise _refusal(spelled)
        if spelled.count("/") >= self._depth:
            raise Exhausted(f"the path {spelled[:60]!r}... has more than {self._depth} components")
        if len(places) > _KNOWN_PLACES:
            self.forget()
        for name in reversed(pending):
            at = self.step(where, name, create=create, replace=replace)
            if at is None:
                return None
            where = at
            known = f"{known}/{name}" if known else name
            places[known] = where
        return where

    def step(self, where: LayerPath, name: str, *, create: bool, replace: bool) -> LayerPath | None:
        """The directory that ``name`` in the real directory ``where`` leads to, links read and followed in the root."""
        view = self.view
        if view is None:
            return join(where, name)
        todo = [name]
        links = 0
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
                links += 1
                if links > MAX_LINKS:
                    raise InvalidInput(f"{path!r}: more than {MAX_LINKS} links on the way")
                if seen.target.startswith("/"):
                    where = ROOT
                todo.extend(reversed(seen.target.split("/")))
                continue
            if seen is None:
                if not create:
                    return None
                self._imply(path)
            elif seen.kind is not Kind.DIRECTORY:
                if not replace:
                    return None
                self._imply(path)
                self.forget()
            where = path
        return where

    def _imply(self, path: LayerPath) -> None:
        self._sink.put(implied_directory(path), None)
        if self._mine is not None:
            self._mine.enter(path)
