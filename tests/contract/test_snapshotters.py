# SPDX-License-Identifier: Apache-2.0
"""Contracts of the snapshotters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.changes.apply import apply
from lamella.host.mounting import mount_points, unmount
from lamella.store.snapshots.driver import UnpackingSnapshotter
from lamella.store.snapshots.snapshotter import LocalSnapshots, open_snapshotter
from lamella.store.store import Store
from lamella.testing import snapshotter_suite
from lamella.testing.builders import file

pytestmark = [pytest.mark.root, pytest.mark.interop]


@pytest.fixture(autouse=True)
def nothing_stays_mounted(tmp_path: Path) -> Iterator[None]:
    yield
    for point in reversed(mount_points(str(tmp_path))):
        unmount(point, lazy=True)


def snapshots(kind: str, tmp_path: Path) -> LocalSnapshots:
    return open_snapshotter(kind, Store.open(tmp_path / "store").namespace("tests").context)


def readonly(kind: str, tmp_path: Path) -> LocalSnapshots:
    with Store.open(tmp_path / "store") as store:
        writable = open_snapshotter(kind, store.namespace("tests").context)
        writable.prepare("key")
        apply([file("f")], writable.sink("key"))
        writable.commit("base", "key")
        writable.view("view", "base")
    return open_snapshotter(kind, Store.open(tmp_path / "store", readonly=True).namespace("tests").context)


class TestOverlay(snapshotter_suite.SnapshotterTests):
    def make(self, tmp_path: Path) -> UnpackingSnapshotter:
        return snapshots("overlay", tmp_path)


class TestDirectory(snapshotter_suite.SnapshotterTests):
    copies = True

    def make(self, tmp_path: Path) -> UnpackingSnapshotter:
        return snapshots("directory", tmp_path)


class TestErofs(snapshotter_suite.SnapshotterTests):
    def make(self, tmp_path: Path) -> UnpackingSnapshotter:
        return snapshots("erofs", tmp_path)


class TestReadOnlyOverlay(snapshotter_suite.ReadOnlySnapshotterTests):
    def make(self, tmp_path: Path) -> UnpackingSnapshotter:
        return readonly("overlay", tmp_path)


class TestReadOnlyDirectory(snapshotter_suite.ReadOnlySnapshotterTests):
    def make(self, tmp_path: Path) -> UnpackingSnapshotter:
        return readonly("directory", tmp_path)


class TestReadOnlyErofs(snapshotter_suite.ReadOnlySnapshotterTests):
    def make(self, tmp_path: Path) -> UnpackingSnapshotter:
        return readonly("erofs", tmp_path)
