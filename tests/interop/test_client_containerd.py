# SPDX-License-Identifier: Apache-2.0
"""A real containerd's blobs, images, leases and snapshots, as the store's contracts have them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.interop.daemons import FIRST, Ctr, Release, containerd_running, folder

from lamella.client.remote import RemoteNamespace, RemoteStore
from lamella.errors import AlreadyExists, LamellaError
from lamella.host.mounting import mount_points, unmount
from lamella.store.contract import ContentStore, ImageStore, LeaseStore
from lamella.store.snapshots.driver import UnpackingSnapshotter
from lamella.testing.content_suite import Contents, ContentStoreTests, SharedContentTests
from lamella.testing.metadata_suite import ImageStoreTests, LeaseTests
from lamella.testing.snapshotter_suite import MountedSnapshots, SnapshotterTests

pytestmark = [pytest.mark.interop, pytest.mark.root]


_CUT = "the protocol has no message that cuts an ingest to something"
_LATER = "later releases can"
DIFFERENT = {
    "test_an_ingest_can_be_truncated": _CUT,
    "test_a_shared_ingest_can_be_written_and_truncated": _CUT,
    "test_an_expected_digest_chooses_the_algorithm": _LATER,
    "test_a_lease_holds_every_kind_of_resource_once": _LATER,
    "test_a_removed_resource_is_no_longer_leased": _LATER,
    "test_labels_that_are_too_long_and_other_fields_are_refused": "an empty key is refused as an unknown failure",
    "test_malformed_labels_are_refused": "labels of leases are not looked at",
    "test_other_fields_cannot_be_changed": "some malformed fields are passed over",
    "test_a_malformed_resource_cannot_be_leased": "a snapshot without a name is refused as an unknown failure",
    "test_an_open_ingest_cannot_be_opened_or_aborted_elsewhere": "an ingest that is open can be dropped",
    "test_status_reports_the_progress_of_an_ingest": "a status does not tell the digest that is expected",
    "test_a_resumed_ingest_keeps_the_bytes_written": "the total is forgotten",
    "test_an_ingest_resumed_with_another_total_starts_over": "what it began with stays on the disk",
    "test_keys_are_arbitrary_text": "an empty key is refused as an unknown failure",
    "test_labels_are_replaced_together_or_one_by_one": "some malformed fields are passed over",
    "test_filters_choose_by_name_parent_kind_and_labels": "a malformed filter is refused as an unknown failure",
    "test_prepare_for_an_existing_layer_raises_already_exists": "one that is not committed yet is there already",
    "test_commit_accepts_a_parent_if_the_snapshotter_can_rebase": _LATER,
    "test_the_root_of_a_child_has_the_metadata_of_its_parent": "its mode is not",
    "test_all_metadata_is_kept": "the times of the root are not",
}
"""What this client or containerd does otherwise than a store of ours: the one list of it."""

ONLY_FIRST = {"test_a_lease_holds_every_kind_of_resource_once", "test_a_removed_resource_is_no_longer_leased"}
"""What of it holds for containerd 1.7 alone."""


@pytest.fixture(scope="module")
def ctr(release: Release) -> Iterator[Ctr]:
    with folder() as where, containerd_running(where / "containerd", release=release) as ctr:
        yield ctr


class _Containerd:
    @pytest.fixture(autouse=True)
    def _connected(self, ctr: Ctr, request: pytest.FixtureRequest) -> Iterator[None]:
        name = request.node.originalname
        if name in DIFFERENT and not (name in ONLY_FIRST and ctr.release is not FIRST):
            # Strict: what turns out not to differ has no place in the list.
            known = pytest.mark.xfail(reason=DIFFERENT[name], raises=(AssertionError, LamellaError), strict=True)
            request.applymarker(known)
        with RemoteStore(ctr.address) as self.remote:
            self.remote.__dict__["blobs"] = None  # as if they were on another machine
            self.prefix = secrets.token_hex(6)
            yield

    def space(self, name: str = "one") -> RemoteNamespace:
        """A namespace of this test alone."""
        return self.remote.namespace(f"{self.prefix}-{name}")


class TestContent(_Containerd, ContentStoreTests, SharedContentTests):
    def make(self, tmp_path: Path) -> Contents:
        return self.content

    def content(self, namespace: str) -> ContentStore:
        """The blobs of a namespace of this test, under a lease; a malformed name stays so."""
        if namespace not in ("one", "two"):
            return self.remote.namespace(namespace).content
        space = self.space(namespace)
        with suppress(AlreadyExists):
            space.leases.create("held")
        return self.remote.namespace(space.name, "held").content


class TestImages(_Containerd, ImageStoreTests):
    def make(self, tmp_path: Path) -> ImageStore:
        return self.space().images


class TestLeases(_Containerd, LeaseTests):
    def make(self, tmp_path: Path) -> LeaseStore:
        return self.space().leases


class TestOverlayfs(_Containerd, SnapshotterTests):
    @pytest.fixture(autouse=True)
    def nothing_stays_mounted(self, tmp_path: Path) -> Iterator[None]:
        yield
        for point in reversed(mount_points(str(tmp_path))):
            unmount(point, lazy=True)

    def make(self, tmp_path: Path) -> UnpackingSnapshotter:
        space = self.space()
        return MountedSnapshots(space.under(space.leases.create().id).snapshots("overlayfs"))
