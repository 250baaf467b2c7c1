# SPDX-License-Identifier: Apache-2.0
"""The content of a store on disk keeps the contract."""

from __future__ import annotations

from pathlib import Path

from lamella.store.contract import ContentStore
from lamella.store.store import Store
from lamella.testing.content_suite import ContentStoreTests, IsolatedContentTests, SharedContentTests
from lamella.testing.ingest_suite import Contents


class _OnDisk:
    isolated = False

    def make(self, tmp_path: Path) -> Contents:
        self.store = Store.open(tmp_path / "store", isolated=self.isolated)
        return self.content

    def content(self, namespace: str) -> ContentStore:
        return self.store.namespace(namespace).content

    def teardown_method(self) -> None:
        self.store.close()


class TestSharedContent(_OnDisk, ContentStoreTests, SharedContentTests):
    """As stores are unless told otherwise."""


class TestIsolatedContent(_OnDisk, ContentStoreTests, IsolatedContentTests):
    isolated = True


class TestShareableContent(_OnDisk, SharedContentTests):
    """A namespace may be shared from although the store isolates them."""

    isolated = True

    def make(self, tmp_path: Path) -> Contents:
        contents = super().make(tmp_path)
        self.store.namespaces.create("one", {"containerd.io/namespace.shareable": "true"})
        return contents
