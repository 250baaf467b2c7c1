# SPDX-License-Identifier: Apache-2.0
"""A snapshotter agrees with a plain model, for any sequence of operations."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lamella.changes.apply import apply
from lamella.errors import AlreadyExists, Conflict, InvalidInput, LamellaError, NotFound
from lamella.store.contract import SnapshotKind
from lamella.store.snapshots.snapshotter import open_snapshotter
from lamella.store.store import Store
from lamella.testing.builders import file
from lamella.testing.reading import outline

KEYS = st.sampled_from(["a", "b", "c", "d", "e/ f"])
PARENTS = st.one_of(st.just(""), KEYS)


@dataclass
class Expected:
    parent: str
    kind: SnapshotKind
    files: dict[str, str]
    written: bool = False


class _Snapshots(RuleBasedStateMachine):
    kind = ""

    def __init__(self) -> None:
        super().__init__()
        self.where = tempfile.TemporaryDirectory()
        self.store = Store.open(Path(self.where.name, "store"))
        self.snapshots = open_snapshotter(self.kind, self.store.namespace("tests").context)
        self.model: dict[str, Expected] = {}
        self.count = 0

    def teardown(self) -> None:
        self.store.close()
        self.where.cleanup()

    def refused(self, with_: type[LamellaError] | None, work: Callable[[], object]) -> bool:
        if with_ is None:
            work()
            return False
        with pytest.raises(with_):
            work()
        return True

    def wrong_parent(self, parent: str) -> type[LamellaError] | None:
        if not parent:
            return None
        if parent not in self.model:
            return NotFound
        return None if self.model[parent].kind is SnapshotKind.COMMITTED else InvalidInput

    @rule(key=KEYS, parent=PARENTS, active=st.booleans())
    def make(self, key: str, parent: str, active: bool) -> None:
        work = self.snapshots.prepare if active else self.snapshots.view
        expected = AlreadyExists if key in self.model else self.wrong_parent(parent)
        if not self.refused(expected, lambda: work(key, parent)):
            files = dict(self.model[parent].files) if parent else {}
            self.model[key] = Expected(parent, SnapshotKind.ACTIVE if active else SnapshotKind.VIEW, files)

    @rule(key=KEYS)
    def write(self, key: str) -> None:
        found = self.model.get(key)
        expected: type[LamellaError] | None = None
        if found is None:
            expected = NotFound
        elif found.kind is not SnapshotKind.ACTIVE:
            expected = Conflict
        elif found.written:
            return
        self.count += 1
        name = f"f{self.count}"
        if not self.refused(expected, lambda: apply([file(name, name.encode())], self.snapshots.sink(key))):
            assert found is not None
            found.files[name] = f"file {name}"
            found.written = True

    @rule(key=KEYS, name=KEYS)
    def commit(self, key: str, name: str) -> None:
        expected: type[LamellaError] | None = None
        if key not in self.model:
            expected = NotFound
        elif self.model[key].kind is not SnapshotKind.ACTIVE:
            expected = Conflict
        elif name in self.model:
            expected = AlreadyExists
        if not self.refused(expected, lambda: self.snapshots.commit(name, key)):
            self.model[name] = self.model.pop(key)
            self.model[name].kind = SnapshotKind.COMMITTED

    @rule(key=KEYS)
    def remove(self, key: str) -> None:
        expected: type[LamellaError] | None = None
        if key not in self.model:
            expected = NotFound
        elif any(one.parent == key for one in self.model.values()):
            expected = Conflict
        if not self.refused(expected, lambda: self.snapshots.remove(key)):
            del self.model[key]

    @rule()
    def clean_up(self) -> None:
        self.snapshots.cleanup()

    @rule()
    def open_again(self) -> None:
        self.store.close()
        self.store = Store.open(Path(self.where.name, "store"))
        self.snapshots = open_snapshotter(self.kind, self.store.namespace("tests").context)

    @invariant()
    def all_is_as_expected(self) -> None:
        found = {one.name: (one.parent, one.kind) for one in self.snapshots.list()}
        assert {name: (one.parent, one.kind) for name, one in self.model.items()} == found
        for name, expected in self.model.items():
            with self.snapshots.tree(name) as tree:
                assert expected.files == outline(tree)
        home = self.store.root / "snapshots" / self.snapshots.name
        assert len(self.model) == (len(os.listdir(home)) if home.exists() else 0)
        assert os.listdir(self.store.root / "trash") == []


class _Overlays(_Snapshots):
    kind = "overlay"


class _Copies(_Snapshots):
    kind = "directory"


TestOverlays = _Overlays.TestCase
TestOverlays.settings = settings(max_examples=15, stateful_step_count=25)
TestCopies = _Copies.TestCase
TestCopies.settings = settings(max_examples=15, stateful_step_count=25)
