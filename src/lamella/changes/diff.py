# SPDX-License-Identifier: Apache-2.0
"""The changes that turn one tree into another: one algorithm for all kinds of tree.

The rules are those of containerd (continuity's ``fs.Changes`` and ``archive.ChangeWriter``), or stricter:

- A file or directory has changed if its kind, mode, owner, device, extended attributes, size, symbolic link target or
  modification time in nanoseconds differs. (containerd ignores the times of directories, and all attributes except
  capabilities: see `CONTAINERD`.)
- If all of these agree, content is compared when the time has no fraction of a second, since it may have passed through
  an archive with whole seconds; with ``exact`` content is always compared.
- A removed directory is one whiteout, whatever was in it. A file that replaces a directory needs no whiteout.
- The parent directories of a change are stated before the first change in them.
- Of the names of one file, the first changed one is a `Put` and the others are `Link`s to it: later names in their
  order, earlier unchanged names right after it. Names that were one file and are now two, or the reverse, have changed
  even if nothing else differs (containerd does not detect this).

A diff applied to its lower tree gives the upper tree, including metadata and hard links, but not necessarily holes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

from msgspec import Struct, field

from lamella.changes.contracts import HasStreams, Tree
from lamella.changes.model import Change, Content, Entry, Kind, Link, Posix, Put, Stream, Whiteout, Windows, pieces
from lamella.changes.tree import streams_of, walk
from lamella.errors import Conflict, NotFound
from lamella.paths import ROOT, LayerPath
from lamella.times import SECOND


class Compare(Struct, frozen=True):
    """What counts as a difference between two entries."""

    xattrs: bool = True
    """All extended attributes; otherwise only file capabilities."""
    directory_times: bool = True
    """Modification times of directories."""


EVERYTHING: Final = Compare()
CONTAINERD: Final = Compare(xattrs=False, directory_times=False)
"""What counts in containerd's diff."""


class Comparison(Protocol):
    """Compares two trees directory by directory, faster than through the methods of each tree."""

    def entries(self, directory: LayerPath) -> tuple[list[Entry], list[Entry], bool]:
        """The entries of a directory in the lower and the upper tree (`Tree.entries`), and whether it is unchanged.

        The third value is true if the metadata of the directory itself is known to be equal. A regular file may be left
        out of both lists if its metadata and bytes are equal in both and it has one name in each; its bytes need not
        be read if its time is trusted. Directories in both lists may lack their metadata.
        """
        ...

    def same(self, path: LayerPath) -> bool:
        """Whether the regular files at ``path``, of one size, hold the same bytes."""
        ...

    def close(self) -> None:
        """Release the resources of the comparison."""
        ...


@runtime_checkable
class HasComparison(Protocol):
    """A tree that can be compared with another tree of its class."""

    def comparison(self, lower: Any, *, exact: bool) -> Comparison | None:
        """The comparison with ``lower``; None if these two trees cannot be compared so."""
        ...


def diff(
    lower: Tree | None,
    upper: Tree,
    *,
    exact: bool = False,
    compare: Compare = EVERYTHING,
    parents: bool = True,
) -> Iterator[Change]:
    """Yield the changes that turn ``lower`` into ``upper``: directories before their entries, names in byte order.

    Without a lower tree, yields all of the upper one. The root is stated if its metadata differs. Without ``parents``,
    unchanged directories are not stated. Neither tree may change until the last change is taken. The trees are read
    lazily; memory grows only with hard links and changed directories.

    Raises what the trees raise.
    """
    if lower is None:
        return walk(upper)
    return _Changes(upper, parents=parents).all(_found(lower, upper, exact, compare))


_Found: TypeAlias = tuple[Entry | None, Entry | None, bool, Hashable, Hashable]
"""Lower and upper entry, whether their metadata and content are equal, and if so, both identities."""


def _found(lower: Tree, upper: Tree, exact: bool, compare: Compare) -> Iterator[_Found]:
    """Walk both trees in step: yield what differs, and equal files that have several names."""
    comparison: Comparison | None = None
    if isinstance(upper, HasComparison) and type(lower) is type(upper):
        comparison = upper.comparison(lower, exact=exact)
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
    has_streams = isinstance(upper, HasStreams)
    listed, others, _ = comparison.entries(ROOT)
    lows, ups = iter(listed), iter(others)
    above: list[tuple[Iterator[Entry], Iterator[Entry], Entry | None]] = []
    first = next(lows, None)
    while True:
        second = next(ups, None)
        # Lower entries before the next upper one, or after the last, were removed.
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
    """Complete an entry that a `Comparison` listed without metadata."""
    if entry.posix is not None or entry.windows is not None:
        return entry
    found = tree.lookup(entry.path)
    if found is None:
        raise Conflict(f"{entry.path!r} changed while it was compared")
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
    """Whether the Windows facets of two entries of one kind agree, times excepted."""
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
    """Compare Windows facets; access and change times do not count, since they move without a change."""
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
    """Whether equal times imply equal content: not if the time may have been cut to whole seconds."""
    if entry.posix is not None:
        return entry.posix.mtime % SECOND != 0
    written = entry.windows.write_time if entry.windows is not None else None
    return written is not None and written % SECOND != 0


class _SideBySide:
    """The general comparison of any two trees."""

    def __init__(self, lower: Tree, upper: Tree) -> None:
        self._lower, self._upper = lower, upper

    def entries(self, directory: LayerPath) -> tuple[list[Entry], list[Entry], bool]:
        return self._lower.entries(directory), self._upper.entries(directory), False

    def same(self, path: LayerPath) -> bool:
        return same_bytes(self._lower.open(path), self._upper.open(path))

    def close(self) -> None: ...


class _Names(Struct):
    """The names of one file of the upper tree that the walk has met."""

    put: LayerPath | None = None
    """The name that was put."""
    waiting: list[LayerPath] = field(default_factory=list)
    """Unchanged names met before any name was put."""
    lower: Hashable = None
    """Identity of these names in the lower tree."""


class _Changes:
    """Turns differences into changes."""

    def __init__(self, upper: Tree, *, parents: bool) -> None:
        self._upper = upper
        self._has_streams = isinstance(upper, HasStreams)
        self._parents = parents
        self._stated: set[str] = {""}
        """Directories stated so far."""
        self._names: dict[Hashable, _Names] = {}
        self._kept: dict[Hashable, Hashable] = {}
        """Identity in the lower tree -> identity (or the path, for a single name) of the upper file that it remains."""

    def all(self, found: Iterable[_Found]) -> Iterator[Change]:
        upper, stated, parents, has_streams = self._upper, self._stated, self._parents, self._has_streams
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
        """Whether an unchanged file needs no change for its hard links either."""
        kept = self._kept
        if other is None:
            # Only one name of a lower file may become a file of its own; further ones would remain links to it.
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
        if self._has_streams:
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
        """State the parents of ``path`` that are not stated yet."""
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
                raise NotFound(f"{parent!r} disappeared while it was compared")
            stated.add(parent)
            yield Put(entry, None)
            if self._has_streams:
                yield from self._streams(LayerPath(parent))


# Content

_ZEROS: Final = bytes(1 << 16)


def same_bytes(one: Content, other: Content) -> bool:
    """Whether two contents hold the same bytes; holes count as zeros. Stops at the first difference."""
    if one.size != other.size:
        return False
    if one is other:  # both trees share the layer
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


def _equal(one: memoryview, other: memoryview) -> bool:
    # bytes.startswith is a memcmp; comparing memoryviews goes item by item.
    whole = one.obj
    held = whole if isinstance(whole, bytes) and len(whole) == len(one) else bytes(one)
    return held.startswith(other)


def _is_zero(data: memoryview) -> bool:
    step = len(_ZEROS)
    return all(_ZEROS.startswith(data[at : at + step]) for at in range(0, len(data), step))
