# SPDX-License-Identifier: Apache-2.0
"""Images and leases in the store's database keep the contracts."""

from __future__ import annotations

from pathlib import Path

from lamella.store.metadata.images import LocalImages
from lamella.store.metadata.leases import LocalLeases
from lamella.store.store import LocalNamespace, Store
from lamella.testing.image_store_suite import ImageStoreTests
from lamella.testing.lease_suite import LeaseTests


class _OnDisk:
    def namespace(self, tmp_path: Path) -> LocalNamespace:
        self.store = Store.open(tmp_path / "store")
        return self.store.namespace("default")

    def teardown_method(self) -> None:
        self.store.close()


class TestImages(_OnDisk, ImageStoreTests):
    def make(self, tmp_path: Path) -> LocalImages:
        return self.namespace(tmp_path).images


class TestLeases(_OnDisk, LeaseTests):
    def make(self, tmp_path: Path) -> LocalLeases:
        return self.namespace(tmp_path).leases
