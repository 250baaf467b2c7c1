# SPDX-License-Identifier: Apache-2.0
"""Namespaces come with their first object and go when they are empty."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.errors import AlreadyExists, Conflict, InvalidInput, NotFound
from lamella.oci.descriptor import Descriptor
from lamella.oci.mediatypes import OCI_MANIFEST
from lamella.store.contract import ImageRecord, NamespaceRecord
from lamella.store.store import LocalNamespace, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


def put(namespace: LocalNamespace) -> None:
    with namespace.content.ingest("put") as ingest:
        ingest.write(b"text")
        ingest.commit()


def test_an_unknown_namespace_has_no_labels(store: Store) -> None:
    assert store.namespaces.get("a") == NamespaceRecord("a", {})
    assert store.namespaces.list() == []
    with pytest.raises(InvalidInput):
        store.namespaces.get("a/b")


def test_a_namespace_is_created_once(store: Store) -> None:
    assert store.namespaces.create("b", {"k": "v", "none": ""}) == NamespaceRecord("b", {"k": "v"})
    assert store.namespaces.create("a") == NamespaceRecord("a", {})
    with pytest.raises(AlreadyExists):
        store.namespaces.create("b")
    with pytest.raises(InvalidInput):
        store.namespaces.create("b..c")
    with pytest.raises(InvalidInput):
        store.namespaces.create("c", {"k": "v" * 5000})
    assert store.namespaces.list() == [NamespaceRecord("a", {}), NamespaceRecord("b", {"k": "v"})]


def test_updating_labels_creates_a_missing_namespace(store: Store) -> None:
    assert store.namespaces.update("a", {"x": "1", "y": "2"}, ["labels.x"]) == NamespaceRecord("a", {"x": "1"})
    assert store.namespaces.update("a", {"y": "2"}, ["labels.y"]) == NamespaceRecord("a", {"x": "1", "y": "2"})
    assert store.namespaces.update("a", {}, ["labels.x"]) == NamespaceRecord("a", {"y": "2"})
    assert store.namespaces.get("a") == NamespaceRecord("a", {"y": "2"})
    with pytest.raises(InvalidInput):
        store.namespaces.update("a", {}, ["name"])
    with pytest.raises(InvalidInput):
        store.namespaces.update("..", {})


def test_the_first_object_creates_its_namespace(store: Store) -> None:
    store.namespace("nothing yet".replace(" ", "-"))
    put(store.namespace("blob"))
    store.namespace("ingest").content.ingest("a").close()
    store.namespace("lease").leases.create("a")
    assert [one.name for one in store.namespaces.list()] == ["blob", "ingest", "lease"]
    assert store.namespaces.update("blob", {"k": "v"}).labels == {"k": "v"}


def test_only_an_empty_namespace_is_deleted(store: Store) -> None:
    with pytest.raises(NotFound):
        store.namespaces.delete("a")
    namespace = store.namespace("a")
    put(namespace)
    digest = next(namespace.content.walk()).digest
    namespace.images.create(ImageRecord("name", Descriptor(media_type=OCI_MANIFEST, digest=digest, size=4)))
    with pytest.raises(Conflict, match="images"):
        store.namespaces.delete("a")
    namespace.images.delete("name")
    with pytest.raises(Conflict, match="blobs"):
        store.namespaces.delete("a")
    namespace.content.delete(digest)
    store.namespaces.delete("a")
    assert store.namespaces.list() == []


def test_deleting_a_namespace_deletes_its_leases_and_ingests(store: Store) -> None:
    store.namespace("a").leases.create("lease")
    put(store.namespace("b"))
    with store.namespace("a", "lease").content.ingest("ref") as ingest:
        ingest.write(b"te")
    store.namespaces.delete("a")
    assert store.namespace("a").leases.list() == []
    assert store.namespace("a").content.statuses() == []
    assert store.namespace("b").content.sweep().size >= 2
    assert list((store.root / "ingest").iterdir()) == []
    assert [one.name for one in store.namespaces.list()] == ["b"]
