# SPDX-License-Identifier: Apache-2.0
"""What must be done to one tree to get another: one algorithm for every kind of tree.

The rules are those of containerd (continuity's ``fs.Changes`` and ``archive.ChangeWriter``), or sharper ones:

- A file counts as changed by kind, mode, owner, device, extended attributes, size, target of a symbolic link, or time
  of modification in nanoseconds; a directory too, times included (containerd leaves out a directory's time, and all
  attributes but capabilities: see `CONTAINERD`).
- Where all that agrees, content is compared if the time has no fraction of a second, for then it may have gone through
  an archive that keeps whole seconds only; with ``exact`` content is always compared.
- What is gone is one whiteout, however much was in it. What replaces a directory needs none.
- The directories on the way to a change are stated before the first change in them.
- Of the names of one file the first that changed is put, and all others are links to it: later names when their turn
  comes, earlier ones, which did not change by themselves, right behind it. Names that were one file and are two now,
  or the other way round, have changed, even if nothing else tells it (containerd does not notice).

So a diff applied to its lower tree gives the upper tree, metadata, holes aside, and hard links included.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Final, Protocol, TypeAlias

from msgspec import Struct, field

from lamella.changes.contracts import Tree
from lamella.changes.model import Change, Content, Entry, Kind, Link, Posix, Put, Stream, Whiteout, Windows
from lamella.changes.tree import streams_of, walk
from lamella.errors import Conflict, NotFound
from lamella.paths import ROOT, LayerPath
from lamella.times import SECOND


class Compare(Struct, frozen=True):
    """What counts as a difference."""

    xattrs: bool = True
    """All extended attributes; else file capabilities alone."""
    directory_times: bool = True
    """A directory's time of modification."""


EVERYTHING: Final = Compare()
CONTAINERD: Final = Compare(xattrs=False, directory_times=False)
"""What containerd's diff takes for a difference."""


class Comparison(Protocol):
    """Looks at two trees side by side, faster than through the methods of each.

    A tree that knows how has a method ``comparison(lower, exact=...)``, which is asked of the upper tree where both are
    of one class, and which gives None where these two cannot be compared so.
    """

    def entries(self, directory: LayerPath) -> tuple[list[Entry], list[Entry], bool]:
        """What the lower and the upper tree have in ``directory``, as `Tree.entries` gives it, and a verdict on it.

        The verdict is true where all metadata of the directory itself is known to be the same. Regular files that are
        in both may be left out of both lists, where all of their metadata and all their bytes are the same and neither
        has a second name; bytes need not be looked at where the time is believed. Directories that are in both may be
        given without their metadata.
        """
        ...

    def same(self, path: LayerPath) -> bool:
        """Whether the regular files at ``path``, of one size, hold the same bytes."""
        ...

    def close(self) -> None:
        """Nothing more is asked."""
        ...


def diff(
    lower: Tree | None,
    upper: Tree,
    *,
    exact: bool = False,
    compare: Compare = EVERYTHING,
    parents: bool = True,
) -> Iterator[Change]:
    """The changes that make ``lower`` into ``upper``: directories before what is in them, names by their bytes.

    Without a lower tree, all of the upper one. The root is stated where its metadata differs. Without ``parents``,
    directories that did not change are not stated. Both trees must stay as they are until the last change is taken.
    Nothing is looked at before it is needed; memory grows with hard links and changed directories only.

    Raises what the trees raise.
    """
    if lower is None:
        return walk(upper)
    return _Changes(upper, parents=parents).all(_found(lower, upper, exact, compare))


_Found: TypeAlias = tuple[Entry | None, Entry | None, bool, Hashable, Hashable]
"""Lower and upper entry, whether the file is the same by itself, and if so, both identities."""


def _found(lower: Tree, upper: Tree, exact: bool, compare: Compare) -> Iterator[_Found]:
    """Walk both trees in step; all that differs, and all that does not and has other names."""
    make = getattr(upper, "comparison", None) if type(lower) is type(upper) else None
    comparison: Comparison | None = make(lower, exact=exact) if make is not None else None
    if comparison is None:
        comparison = _SideBySide(lower, upper)
    try:
        yield from _differences(lower, upper, comparison, exact, compare)
    finally:
        comparison.close()


def _differences(lower: Tree, upper: Tree, comparison: Comparison, exact: bool, compare: Compare) -> Iterator[_Found]:
    low, up = _root(lower), _root(upper)
    if not _same_facts(low, up, compare):
        yield low, up, False, None, None
    directory, file = Kind.DIRECTORY, Kind.FILE
    lower_identity, upper_identity = lower.identity, upper.identity
    nothing: tuple[Entry, ...] = ()
    has_streams = hasattr(upper, "streams")
    listed, others, _ = comparison.entries(ROOT)
    lows, ups = iter(listed), iter(others)
    above: list[tuple[Iterator[Entry], Iterator[Entry], Entry | None]] = []
    first = next(lows, None)
    while True:
        second = next(ups, None)
        # What comes before the next upper entry, or after the last, is gone.
        while first is not None and (second is None or first.path != second.path):
            if second is not None and _key(second.path) < _key(first.path):
                break
            yield first, None, False, None, None
            first = next(lows, None)
        if second is None:
            if not above:
                return
            lows, ups, first = above.pop()
            continue
        path = second.path
        if first is None or first.path != path:
            yield None, second, False, None, None
            if second.kind is directory:
                above.append((lows, ups, first))
                lows, ups, first = iter(nothing), iter(upper.entries(path)), None
            continue
        if second.kind is directory:
            above.append((lows, ups, next(lows, None)))
            if first.kind is directory:
                listed, others, same = comparison.entries(path)
                if not same:
                    low, up = _whole(lower, first), _whole(upper, second)
                    if not _same_facts(low, up, compare) or (has_streams and not _same_streams(lower, upper, path)):
                        yield low, up, False, None, None
                lows, ups = iter(listed), iter(others)
            else:
                yield first, second, False, None, None
                lows, ups = iter(nothing), iter(upper.entries(path))
            first = next(lows, None)
            continue
        same = _same_facts(first, second, compare)
        if same and second.kind is file and second.size and (exact or not _trusted(second)):
            same = comparison.same(path)
        if same and has_streams:
            same = _same_streams(lower, upper, path)
        if not same:
            yield first, second, False, None, None
        else:
            one, other = lower_identity(path), upper_identity(path)
            if one is not None or other is not None:
                yield first, second, True, one, other
        first = next(lows, None)


def _same_streams(lower: Tree, upper: Tree, path: LayerPath) -> bool:
    ours, others = streams_of(lower, path), streams_of(upper, path)
    return (not ours and not others) or (
        ours.keys() == others.keys() and all(same_bytes(ours[name], others[name]) for name in ours)
    )


def _root(tree: Tree) -> Entry:
    entry = tree.lookup(ROOT)
    if entry is None:
        raise NotFound("the tree has no root")
    return entry


def _whole(tree: Tree, entry: Entry) -> Entry:
    """An entry that may have come without its metadata, with it."""
    if entry.posix is not None or entry.windows is not None:
        return entry
    found = tree.lookup(entry.path)
    if found is None:
        raise Conflict(f"{entry.path!r} changed while it was looked at")
    return found


def _key(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _same_facts(low: Entry, up: Entry, compare: Compare) -> bool:
    kind = up.kind
    if low.kind is not kind or low.size != up.size or low.target != up.target:
        return False
    one, other = low.posix, up.posix
    if one is None or other is None:
        if one is not other:
            return False
    elif (
        one.mode != other.mode
        or one.uid != other.uid
        or one.gid != other.gid
        or one.device != other.device
        or (one.mtime != other.mtime and (compare.directory_times or kind is not Kind.DIRECTORY))
        or (one.xattrs is not other.xattrs and not _same_xattrs(one, other, compare))
    ):
        return False
    return low.windows is up.windows or _same_windows(low.windows, up.windows, compare, kind)


def _same_xattrs(one: Posix, other: Posix, compare: Compare) -> bool:
    if compare.xattrs:
        return one.xattrs == other.xattrs
    return one.xattrs.get("security.capability") == other.xattrs.get("security.capability")


def same_windows(low: Entry, up: Entry) -> bool:
    """Whether two entries of one kind agree in what their Windows facets say beside times."""
    one, other = low.windows, up.windows
    if one is None or other is None:
        return one is other
    return (
        one.attributes == other.attributes
        and one.security_descriptor == other.security_descriptor
        and one.reparse == other.reparse
        and one.extended_attributes == other.extended_attributes
    )


def _same_windows(one: Windows | None, other: Windows | None, compare: Compare, kind: Kind) -> bool:
    """The times of the last access and of the last change to metadata do not count: they move without a change."""
    if one is None or other is None:
        return one is other
    return (
        one.attributes == other.attributes
        and one.creation_time == other.creation_time
        and (one.write_time == other.write_time or (kind is Kind.DIRECTORY and not compare.directory_times))
        and one.security_descriptor == other.security_descriptor
        and one.reparse == other.reparse
        and one.extended_attributes == other.extended_attributes
    )


def _trusted(entry: Entry) -> bool:
    """Whether the same time tells the same content: not where it may have been cut to whole seconds."""
    if entry.posix is not None:
        return entry.posix.mtime % SECOND != 0
    written = entry.windows.write_time if entry.windows is not None else None
    return written is not None and written % SECOND != 0


class _SideBySide:
    """Compares any two trees."""

    def __init__(self, lower: Tree, upper: Tree) -> None:
        self._lower, self._upper = lower, upper

    def entries(self, directory: LayerPath) -> tuple[list[Entry], list[Entry], bool]:
        return self._lower.entries(directory), self._upper.entries(directory), False

    def same(self, path: LayerPath) -> bool:
        return same_bytes(self._lower.open(path), self._upper.open(path))

    def close(self) -> None:
        """Nothing is open."""


class _Names(Struct):
    """The names of one file of the upper tree, as far as the walk has come."""

    put: LayerPath | None = None
    """The name under which it was put."""
    waiting: list[LayerPath] = field(default_factory=list)
    """Names that did not change by themselves, while no name has been put."""
    lower: Hashable = None
    """What those names are in the lower tree."""


class _Changes:
    """Makes changes of differences."""

    def __init__(self, upper: Tree, *, parents: bool) -> None:
        self._upper = upper
        self._parents = parents
        self._stated: set[str] = {""}
        """Directories that need not be stated any more."""
        self._names: dict[Hashable, _Names] = {}
        self._kept: dict[Hashable, Hashable] = {}
        """File of the lower tree -> file of the upper tree, or path of one with a single name, that it stays."""

    def all(self, found: Iterable[_Found]) -> Iterator[Change]:
        upper, stated, parents = self._upper, self._stated, self._parents
        has_streams = hasattr(upper, "streams")
        for low, up, same, one, other in found:
            if up is None:
                assert low is not None  # noqa: S101
                if parents:
                    yield from self._lead_to(low.path)
                yield Whiteout(low.path)
                continue
            path = up.path
            if up.kind is Kind.DIRECTORY:
                if parents:
                    yield from self._lead_to(path)
                    stated.add(path)
                yield Put(up, None)
                if has_streams:
                    yield from self._streams(path)
                continue
            if same:
                if self._stays(path, one, other):
                    continue
            else:
                other = upper.identity(path)
            yield from self._changed(up, other)

    def _stays(self, path: LayerPath, one: Hashable, other: Hashable) -> bool:
        """Whether a file that is the same by itself needs nothing, as far as its other names go."""
        kept = self._kept
        if other is None:
            # One of a lower file's names may stay what it is alone; any further one would stay linked to that.
            return kept.setdefault(one, (path,)) == (path,)
        names = self._names.get(other)
        if names is None:
            names = self._names[other] = _Names(lower=one)
        elif names.put is not None or one is None or one != names.lower:
            return False
        if one is not None and kept.setdefault(one, other) != other:
            return False
        names.waiting.append(path)
        return True

    def _changed(self, entry: Entry, identity: Hashable) -> Iterator[Change]:
        path = entry.path
        if self._parents:
            yield from self._lead_to(path)
        names = None
        if identity is not None:
            names = self._names.get(identity)
            if names is None:
                names = self._names[identity] = _Names()
            if names.put is not None:
                yield Link(path, names.put)
                return
            names.put = path
        yield Put(entry, self._upper.open(path) if entry.kind is Kind.FILE else None)
        yield from self._streams(path)
        if names is not None:
            for earlier in names.waiting:
                if self._parents:
                    yield from self._lead_to(earlier)
                yield Link(earlier, path)
            names.waiting.clear()

    def _streams(self, path: LayerPath) -> Iterator[Stream]:
        for name, content in streams_of(self._upper, path).items():
            yield Stream(path, name, content)

    def _lead_to(self, path: str) -> Iterator[Change]:
        """The directories on the way to ``path`` that are not stated yet."""
        stated = self._stated
        parent = path.rpartition("/")[0]
        if parent in stated:
            return
        way: list[str] = []
        while parent not in stated:
            way.append(parent)
            parent = parent.rpartition("/")[0]
        for parent in reversed(way):
            entry = self._upper.lookup(LayerPath(parent))
            if entry is None:
                raise NotFound(f"{parent!r} is not there any more")
            stated.add(parent)
            yield Put(entry, None)
            yield from self._streams(LayerPath(parent))


# Content

_ZEROS: Final = bytes(1 << 16)


def same_bytes(one: Content, other: Content) -> bool:
    """Whether two contents are the same bytes; holes are zeros, and are not read. Stops at the first difference."""
    if one.size != other.size:
        return False
    if one is other:  # of a layer that both trees have
        return True
    ours, others = pieces(one), pieces(other)
    left = right = 0
    view: memoryview | None = None
    against: memoryview | None = None
    while True:
        if not left:
            left, view = next(ours, (0, None))
        if not right:
            right, against = next(others, (0, None))
        if not left or not right:
            return left == right
        length = min(left, right)
        if view is not None and against is not None:
            if not _equal(view[:length], against[:length]):
                return False
        elif view is not None or against is not None:
            data = view if view is not None else against
            assert data is not None  # noqa: S101
            if not _is_zero(data[:length]):
                return False
        left -= length
        right -= length
        if view is not None:
            view = view[length:]
        if against is not None:
            against = against[length:]


def pieces(content: Content) -> Iterator[tuple[int, memoryview | None]]:
    """The content from its start to its end, as pieces of data and holes (None) that are not empty."""
    extents = content.extents
    if extents is None:
        for chunk in content.chunks():
            if chunk:
                yield len(chunk), memoryview(chunk)
        return
    starts = iter(extents)
    position = left = 0
    for chunk in content.chunks():
        view = memoryview(chunk)
        while view:
            if not left:
                offset, left = next(starts)
                if offset > position:
                    yield offset - position, None
                    position = offset
                continue
            part = view[:left]
            yield len(part), part
            position += len(part)
            left -= len(part)
            view = view[len(part) :]
    if position < content.size:
        yield content.size - position, None


def _equal(one: memoryview, other: memoryview) -> bool:
    # Comparing memoryviews goes item by item; this is a memcmp.
    whole = one.obj
    held = whole if isinstance(whole, bytes) and len(whole) == len(one) else bytes(one)
    return held.startswith(other)


def _is_zero(data: memoryview) -> bool:
    step = len(_ZEROS)
    return all(_ZEROS.startswith(data[at : at + step]) for at in range(0, len(data), step))
