# SPDX-License-Identifier: Apache-2.0
"""Names in Windows layers: checks for NTFS, and one spelling for names that differ in case."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from lamella.changes.contracts import Source
from lamella.changes.limits import Implied
from lamella.changes.losses import Loss
from lamella.changes.model import Change, Entry, Kind, Link, Opaque, Put, Stream, Whiteout
from lamella.errors import InvalidInput, UnsafePath
from lamella.formats.ntfs import names
from lamella.paths import ROOT, LayerPath, Way, join, parse_path

WHITEOUT: Final = ".wh."

_HINT: Final = "NTFS allows the name; --awkward-names accepts it"
_KNOWN: Final = 16384
_KNOWN_LENGTH: Final = 1024


class NameRules(Struct, frozen=True):
    """Which names are accepted although most Windows programs cannot open all of the files."""

    awkward: bool = False
    """Device names, and names that end in a dot or a space; programs need a ``\\\\?\\`` path to open them."""
    clashes: bool = False
    """Names in one directory that differ in case only, for directories in which NTFS is case-sensitive."""


AS_WINDOWS: Final = NameRules(awkward=True)
"""The names that Windows' own tools accept: for existing images, and where no user can choose."""


def lost_stream(path: LayerPath, name: str, lost: Container[str]) -> Loss | None:
    """The loss if a layer cannot hold an alternate data stream. ``lost`` are the files that it could not hold."""
    problem = "its file was dropped" if path in lost else names.illegal_stream(name)
    return None if problem is None else Loss(path, f"alternate data stream {name!r}", problem)


class StreamNames:
    """The names of the alternate data streams of one file."""

    __slots__ = ("_folded", "_owner")

    def __init__(self) -> None:
        self._owner: object = None
        self._folded: set[str] = set()

    def claim(self, owner: str, name: str) -> None:
        """Record the stream ``name`` of ``owner``; another path object is another file.

        Raises InvalidInput if the file has the stream in any case.
        """
        if self._owner is not owner:
            self._owner = owner
            self._folded = set()
        key = names.folded(name)
        if key in self._folded:
            raise InvalidInput(f"the stream {name!r} of {owner!r} occurs twice; NTFS ignores case in names")
        self._folded.add(key)


class Directory:
    """A directory of the layer, and the names seen in it."""

    __slots__ = ("above", "inside", "name", "path", "spelled")

    def __init__(self, above: Directory | None, name: str) -> None:
        self.above = above
        self.name = name
        self.spelled: dict[str, str] = {}
        """Folded name -> its first spelling."""
        self.inside: dict[str, Directory] = {}
        self.path: LayerPath
        """The path in its first spelling; set when the directory itself is requested."""


class LayerNames:
    """The names in one layer, as they are read or written. Takes time and memory in proportion to their number."""

    __slots__ = ("_awkward", "_root", "_way", "fold", "known")

    def __init__(self, rules: NameRules | None = None) -> None:
        rules = rules or NameRules()
        self._root = Directory(None, "")
        self._root.path = ROOT
        self._way = Way(self._root)
        self.known: dict[str, Directory] = {}
        """Directories by their spelling; those requested recently."""
        self._awkward = rules.awkward
        self.fold: Callable[[str], str] = str if rules.clashes else names.folded

    def directory(self, spelled: str) -> Directory:
        """The directory ``spelled``, in any case; created if new. Raises UnsafePath."""
        known = self.known.get(spelled)
        if known is not None:
            return known
        if names.units(spelled) > names.MAX_PATH:
            raise UnsafePath(spelled[:80], f"more than {names.MAX_PATH} UTF-16 units")
        head, _, last = spelled.rpartition("/")
        above = self.known.get(head)
        if above is not None and names.plain(last) and last[:4] != WHITEOUT:
            at = self._inside(above, last, spelled)
        else:
            found = self._way.find(parse_path(spelled), lambda above, name: self._inside(above, name, spelled))
            assert found is not None  # noqa: S101  # missing directories are created
            at = found
        if not hasattr(at, "path"):
            at.path = _path(at)
        if len(spelled) <= _KNOWN_LENGTH:
            if len(self.known) >= _KNOWN:
                self.known.clear()
            self.known[spelled] = at
        return at

    def _inside(self, above: Directory, name: str, spelled: str) -> Directory:
        key = self.fold(name)
        inner = above.inside.get(key)
        if inner is None:
            if name.startswith(WHITEOUT):
                raise UnsafePath(spelled, "a component is a whiteout")
            self.check(spelled, name)
            inner = above.inside[key] = Directory(above, above.spelled.setdefault(key, name))
        return inner

    def check(self, path: str, name: str) -> None:
        """Check that NTFS can have the component ``name`` of ``path``. Raises UnsafePath."""
        if names.plain(name):
            return
        problem, hint = names.illegal(name), None
        if problem is None and not self._awkward:
            problem, hint = names.awkward(name), _HINT
        if problem is not None:
            raise UnsafePath(path, f"{name!r}: {problem}" if name != path else problem, hint=hint)

    def claim(self, directory: Directory, name: str) -> None:
        """Record that the layer puts ``name`` into ``directory``.

        Raises UnsafePath; InvalidInput if the layer has the same name in another case.
        """
        if not names.plain(name):
            self.check(join(directory.path, name), name)
        spelled = directory.spelled.setdefault(self.fold(name), name)
        if spelled != name:
            raise InvalidInput(f"{join(directory.path, name)!r} and {spelled!r} differ in case only; NTFS ignores case")

    def resolve(self, path: str) -> LayerPath:
        """``path`` with each known component in its first spelling. Raises UnsafePath."""
        head, _, base = path.rpartition("/")
        directory = self.known.get(head)
        if directory is not None and names.plain(base):
            return join(directory.path, directory.spelled.get(self.fold(base), base))
        parsed = parse_path(path)
        if names.units(parsed) > names.MAX_PATH:
            raise UnsafePath(path[:80], f"more than {names.MAX_PATH} UTF-16 units")
        parts = []
        at: Directory | None = self._root
        for part in parsed.split("/"):
            if not names.plain(part):
                self.check(path, part)
            if at is None:
                parts.append(part)
                continue
            key = self.fold(part)
            parts.append(at.spelled.get(key, part))
            at = at.inside.get(key)
        return LayerPath("/".join(parts))


def _path(directory: Directory) -> LayerPath:
    if directory.above is not None and hasattr(directory.above, "path"):
        return join(directory.above.path, directory.name)
    parts = []
    at: Directory | None = directory
    while at is not None and at.above is not None:
        parts.append(at.name)
        at = at.above
    return LayerPath("/".join(reversed(parts)))


class Spelling:
    """The spelling of paths in a stack of layers.

    The lowest layer with a file determines its spelling. Takes memory in proportion to the number of files.
    """

    __slots__ = ("_directories", "_implied", "_known", "_links")

    def __init__(self) -> None:
        self._known: dict[str, LayerPath] = {}
        self._links: set[str] = set()
        self._directories: dict[str, LayerPath] = {}
        """Directories requested recently."""
        self._implied = Implied()

    def respell(self, changes: Source) -> Iterator[Change]:
        """``changes`` with each path in the spelling of the layers below, or its first spelling in this layer.

        Raises InvalidInput for a file below a link: Windows does not accept such a layer.
        """
        for change in changes:
            match change:
                case Put(entry, content):
                    path = self._put(entry)
                    yield change if path == entry.path else Put(replace(entry, path=path), content)
                case Link(path, target):
                    target = self.find(target)
                    yield Link(self._claim(path), target)
                case Stream(path, name, content):
                    yield Stream(self.find(path), name, content)
                case Whiteout(path):
                    found = self.find(path)
                    key = names.folded(path)
                    self._known.pop(key, None)
                    if self._links:
                        self._links.discard(key)
                    self._directories.clear()
                    yield Whiteout(found)
                case Opaque(path):
                    yield Opaque(self.find(path))

    def find(self, path: LayerPath) -> LayerPath:
        """``path`` with each known component in its first spelling."""
        if not path:
            return ROOT
        known = self._known.get(names.folded(path))
        if known is not None:
            return known
        parent, _, name = path.rpartition("/")
        return join(self._directory(parent), name)

    def _put(self, entry: Entry) -> LayerPath:
        path = entry.path
        if not path:
            return path
        found = self._claim(path)
        if entry.kind is Kind.SYMLINK:
            self._links.add(names.folded(path))
            self._directories.clear()
        elif self._links:
            self._links.discard(names.folded(path))
        return found

    def _claim(self, path: LayerPath) -> LayerPath:
        key = names.folded(path)
        known = self._known.get(key)
        if known is None:
            parent, _, name = path.rpartition("/")
            known = self._known[key] = join(self._directory(parent), name)
        return known

    def _directory(self, path: str) -> LayerPath:
        found = self._directories.get(path) if path else ROOT
        if found is not None:
            return found
        at, above, new = path, ROOT, []
        while at:
            known = self._directories.get(at)
            if known is not None:
                above = known
                break
            key = names.folded(at)
            if key in self._links:
                raise InvalidInput(f"a file below {at!r}, which is a link: Windows does not follow links in layers")
            new.append((at, key))
            at = at.rpartition("/")[0]
        first = True
        for at, key in reversed(new):
            known = self._known.get(key)
            if known is None:
                if not first:
                    self._implied.add(at)
                first = False
                known = self._known[key] = join(above, at.rpartition("/")[2])
            if len(self._directories) >= 4096:
                self._directories.clear()
            self._directories[at] = above = known
        return above
