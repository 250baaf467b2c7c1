# SPDX-License-Identifier: Apache-2.0
"""Contracts of the local content store."""

from __future__ import annotations

from pathlib import Path

from lamella.store.contract import ContentStore
from lamella.store.store import Store
from lamella.testing.content_suite import Contents, ContentStoreTests, IsolatedContentTests, SharedContentTests


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
    """The default policy."""


class TestIsolatedContent(_OnDisk, ContentStoreTests, IsolatedContentTests):
    isolated = True


class TestShareableContent(_OnDisk, SharedContentTests):
    """A namespace can allow sharing in a store that isolates namespaces."""

    isolated = True

    def make(self, tmp_path: Path) -> Contents:
        contents = super().make(tmp_path)
        self.store.namespaces.create("one", {"containerd.io/namespace.shareable": "true"})
        return contents
