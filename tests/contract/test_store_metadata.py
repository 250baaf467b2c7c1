# SPDX-License-Identifier: Apache-2.0
"""Contracts of images and leases in the database of the store."""

from __future__ import annotations

from pathlib import Path

from lamella.store.metadata.images import LocalImages
from lamella.store.metadata.leases import LocalLeases
from lamella.store.store import LocalNamespace, Store
from lamella.testing.metadata_suite import ImageStoreTests, LeaseTests


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
