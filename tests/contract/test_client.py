# SPDX-License-Identifier: Apache-2.0
"""Contracts of the remote store, against Lamella's own server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.unit.service.serving import serving

from lamella.client.remote import RemoteStore
from lamella.digests import Digest
from lamella.errors import Unsupported
from lamella.host.mounting import mount_points, unmount
from lamella.store.contract import ContentStore, ImageStore, LeaseStore
from lamella.store.snapshots.driver import UnpackingSnapshotter
from lamella.testing.content_suite import BIG, Contents, ContentStoreTests, SharedContentTests, put
from lamella.testing.metadata_suite import ImageStoreTests, LeaseTests
from lamella.testing.snapshotter_suite import MountedSnapshots, SnapshotterTests


class _Served:
    """The suites hold no leases, so garbage collection must not run."""

    def remote(self, tmp_path: Path) -> RemoteStore:
        served = self.stack.enter_context(serving(tmp_path, pause=3600))
        return self.stack.enter_context(RemoteStore(served.address))

    def setup_method(self) -> None:
        self.stack = ExitStack()

    def teardown_method(self) -> None:
        self.stack.close()


class TestContent(_Served, ContentStoreTests, SharedContentTests):
    """Blobs are read over the socket, as from a server whose files the client cannot open."""

    def remote(self, tmp_path: Path) -> RemoteStore:
        remote = super().remote(tmp_path)
        remote.__dict__["blobs"] = None
        return remote

    def make(self, tmp_path: Path) -> Contents:
        remote = self.remote(tmp_path)

        def content(namespace: str) -> ContentStore:
            return remote.namespace(namespace).content

        return content

    def test_an_ingest_can_be_truncated(self, tmp_path: Path) -> None:
        """Only to offset 0: the protocol has no message for other offsets."""
        store = self.make(tmp_path)("one")
        with store.ingest("a") as ingest:
            ingest.write(b"some text")
            ingest.truncate(9)
            with pytest.raises(Unsupported):
                ingest.truncate(5)
            ingest.truncate()
            assert ingest.status().offset == 0
            ingest.write(b"other")
            assert ingest.commit().size == 5

    def test_a_shared_ingest_can_be_written_and_truncated(self, tmp_path: Path) -> None:
        contents = self.make(tmp_path)
        one, two = contents("one"), contents("two")
        digest = put(one, BIG).digest
        with two.ingest("longer", expected=digest) as ingest:
            assert ingest.write(b"more") == len(BIG) + 4
            assert ingest.commit(expected=Digest.of(BIG + b"more")).size == len(BIG) + 4


class TestContentInReach(TestContent):
    """Blobs are read directly from the files of the server."""

    def remote(self, tmp_path: Path) -> RemoteStore:
        remote = _Served.remote(self, tmp_path)
        assert remote.blobs == tmp_path / "root/blobs"
        return remote


class TestImages(_Served, ImageStoreTests):
    def make(self, tmp_path: Path) -> ImageStore:
        return self.remote(tmp_path).namespace("default").images


class TestLeases(_Served, LeaseTests):
    def make(self, tmp_path: Path) -> LeaseStore:
        return self.remote(tmp_path).namespace("default").leases


@pytest.mark.root
@pytest.mark.interop
class _Snapshots(_Served, SnapshotterTests):
    @pytest.fixture(autouse=True)
    def nothing_stays_mounted(self, tmp_path: Path) -> Iterator[None]:
        yield
        for point in reversed(mount_points(str(tmp_path))):
            unmount(point, lazy=True)


class TestOverlayfs(_Snapshots):
    def make(self, tmp_path: Path) -> UnpackingSnapshotter:
        return MountedSnapshots(self.remote(tmp_path).namespace("default").snapshots("overlayfs"))


class TestNative(_Snapshots):
    copies = True
    depth = 16

    def make(self, tmp_path: Path) -> UnpackingSnapshotter:
        return MountedSnapshots(self.remote(tmp_path).namespace("default").snapshots("native"), whole=True)
