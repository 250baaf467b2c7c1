# SPDX-License-Identifier: Apache-2.0
"""Merged layers against a plain model.

The model keeps the files of the layer and the visible files of the lower layers in two dictionaries, and scans both for
each change. It ignores symbolic links.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from random import Random
from typing import TypeAlias

from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lamella.changes.model import Change, Content, Entry, Kind, Link, Opaque, Put, Whiteout, implied_directory
from lamella.changes.tree import MemoryTree, merge, walk
from lamella.errors import InvalidInput, LamellaError, NotFound
from lamella.paths import LayerPath
from lamella.testing.builders import directory, file, link, opaque, whiteout
from lamella.testing.strategies import layers, stacks

Parts: TypeAlias = tuple[str, ...]


@dataclass(eq=False)
class File:
    """A file, under one or more names."""

    entry: Entry
    content: Content | None = None

    @property
    def is_directory(self) -> bool:
        return self.entry.kind is Kind.DIRECTORY


@dataclass
class Layer:
    """One layer while it is applied. None in ``mine`` is an implied directory."""

    lower: dict[Parts, File]
    mine: dict[Parts, File | None] = field(default_factory=dict)
    opaque: list[Parts] = field(default_factory=list)

    def at(self, path: Parts) -> File | None:
        if path not in self.mine:
            return self.lower.get(path)
        return self.mine[path] or File(implied_directory(LayerPath("/".join(path))))

    def remove(self, path: Parts) -> None:
        for files in (self.lower, self.mine):
            for known in [known for known in files if known[: len(path)] == path]:
                del files[known]

    def lead_to(self, path: Parts) -> None:
        for end in range(1, len(path)):
            above = path[:end]
            there = self.at(above)
            if there is not None and not there.is_directory:
                self.remove(above)
            self.mine.setdefault(above, None)

    def put(self, path: Parts, new: File) -> None:
        self.lead_to(path)
        old = self.at(path)
        if path and (old is None or not old.is_directory or not new.is_directory):
            self.remove(path)
        self.mine[path] = new

    def link(self, path: Parts, target: Parts) -> None:
        self.lead_to(path)
        there = self.at(target)
        if there is None:
            raise NotFound("no target")
        if there.is_directory:
            raise InvalidInput("the target is a directory")
        if target[: len(path)] == path and target != path:
            raise InvalidInput("the target is in what it would replace")
        if path != target:
            self.remove(path)
        self.mine[path] = there

    def hide(self, path: Parts, *, itself: bool) -> None:
        for known in [known for known in self.lower if known[: len(path)] == path]:
            if known and (itself or known != path):
                del self.lower[known]

    def result(self) -> dict[Parts, File]:
        for path in self.opaque:
            way = [path[:end] for end in range(1, len(path) + 1)]
            if all(there is None or there.is_directory for there in map(self.at, way)):
                for above in way:
                    self.mine.setdefault(above, None)
        files = dict(self.lower)
        for path, new in self.mine.items():
            if new is not None:
                files[path] = new
            elif path not in files:
                files[path] = File(implied_directory(LayerPath("/".join(path))))
        return files


def parts(path: str) -> Parts:
    return tuple(path.split("/")) if path else ()


def model(stack: list[list[Change]]) -> dict[Parts, File]:
    files: dict[Parts, File] = {(): File(implied_directory(LayerPath("")))}
    for changes in stack:
        layer = Layer(files)
        for change in changes:
            match change:
                case Put(entry, content):
                    layer.put(parts(entry.path), File(entry, content))
                case Link(path, target):
                    layer.link(parts(path), parts(target))
                case Whiteout(path):
                    layer.hide(parts(path), itself=True)
                case Opaque(path):
                    layer.hide(parts(path), itself=False)
                    layer.opaque.append(parts(path))
        files = layer.result()
    return files


Facts: TypeAlias = dict[str, tuple[Entry, Content | None, frozenset[str]]]


def facts_of_model(files: dict[Parts, File]) -> Facts:
    names: dict[int, set[str]] = {}
    for path, there in files.items():
        names.setdefault(id(there), set()).add("/".join(path))
    return {
        "/".join(path): (
            replace(there.entry, path=LayerPath("/".join(path))),
            there.content,
            frozenset(names[id(there)]),
        )
        for path, there in files.items()
    }


def names_of(tree: MemoryTree, path: LayerPath) -> Hashable:
    identity = tree.identity(path)
    return path if identity is None else identity


def facts_of_tree(tree: MemoryTree) -> Facts:
    names: dict[Hashable, set[str]] = {}
    found: dict[LayerPath, Entry] = {}
    todo = [LayerPath("")]
    while todo:
        path = todo.pop()
        entry = tree.lookup(path)
        assert entry is not None
        assert path == entry.path
        found[path] = entry
        if entry.kind is Kind.DIRECTORY:
            todo += [child.path for child in tree.entries(path)]
        else:
            names.setdefault(names_of(tree, path), set()).add(path)
    return {
        path: (
            entry,
            tree.open(path) if entry.kind is Kind.FILE else None,
            frozenset({path} if entry.kind is Kind.DIRECTORY else names[names_of(tree, path)]),
        )
        for path, entry in found.items()
    }


def outcome_of_model(stack: list[list[Change]]) -> Facts | type[LamellaError]:
    try:
        return facts_of_model(model(stack))
    except LamellaError as error:
        return type(error)


def outcome_of_merge(stack: list[list[Change]]) -> Facts | type[LamellaError]:
    try:
        return facts_of_tree(merge(stack))
    except LamellaError as error:
        return type(error)


@settings(max_examples=400)
@given(st.lists(layers(), min_size=1, max_size=4))
@example([[file("a/b")], [opaque("a"), file("a"), directory("a"), opaque("a/b")]])
@example([[file("a")], [opaque("a"), whiteout("a")]])
@example([[file("a")], [whiteout("a"), opaque("a")]])
@example([[file("a/b/a")], [directory("a/b"), opaque("a"), file("a/b/b"), whiteout("a/b")]])
@example([[file("a")], [link("a", "a"), whiteout("a")]])
@example([[directory("a")], [link("a", "a")]])
@example([[file("a")], [link("a/b", "a")]])
@example([[file("a", b"x"), link("b", "a")], [file("a", b"y")], [whiteout("b")]])
def test_merging_a_stack_agrees_with_the_model(stack: list[list[Change]]) -> None:
    assert outcome_of_model(stack) == outcome_of_merge(stack)


@settings(max_examples=200)
@given(stacks(), st.randoms(use_true_random=False))
def test_the_position_of_markers_in_their_layer_does_not_matter(stack: list[list[Change]], random: Random) -> None:
    shuffled = []
    for layer in stack:
        rest: list[Change] = [change for change in layer if not isinstance(change, (Whiteout, Opaque))]
        for marker in (change for change in layer if isinstance(change, (Whiteout, Opaque))):
            rest.insert(random.randint(0, len(rest)), marker)
        shuffled.append(rest)

    assert facts_of_tree(merge(stack)) == facts_of_tree(merge(shuffled))


@given(stacks())
def test_a_stack_and_its_flattened_layer_are_one_tree(stack: list[list[Change]]) -> None:
    tree = merge(stack)

    assert facts_of_tree(tree) == facts_of_tree(merge([walk(tree)]))
