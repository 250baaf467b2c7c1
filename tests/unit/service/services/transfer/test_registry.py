# SPDX-License-Identifier: Apache-2.0
"""Images between registries and a namespace, beside a registry that does as the test says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.registry.hostile import Registry
from tests.registry.misbehaviour import redirect

from lamella.digests import Digest
from lamella.errors import Denied
from lamella.oci.descriptor import Descriptor
from lamella.progress import Cancellation
from lamella.protocol.proto import transfers_pb2 as pb
from lamella.service.grpc.status import RefusedByPeer
from lamella.service.services.streaming import Exchange
from lamella.service.services.transfer.registry import SOURCE, pull
from lamella.store.metadata.labels import MAX_LABEL
from lamella.store.metadata.leases import under_lease
from lamella.store.store import LocalNamespace, Store
from lamella.testing.images import small_image

IMAGE = small_image({"a": b"one"})
LAYER = Digest(IMAGE.manifest["layers"][0]["digest"])
KEY = f"{SOURCE}127.0.0.1"


@pytest.fixture
def space(tmp_path: Path) -> Iterator[LocalNamespace]:
    with Store.open(tmp_path / "root") as store, under_lease(store.namespace("default")) as held:
        yield held


@pytest.fixture
def registry() -> Iterator[Registry]:
    """Return one that has the image."""
    with Registry() as server:
        server.add("app", "v1", IMAGE)
        yield server


def pulled(space: LocalNamespace, registry: Registry) -> Descriptor:
    source = pb.OCIRegistry(reference=f"{registry.host}/app:v1")
    return pull(space, source, pb.ImageStore(name="app"), nobody, report=nothing, cancel=Cancellation())


def nobody(name: str) -> Exchange:
    raise AssertionError(name)


def nothing(**facts: Any) -> None:
    pass


def test_a_blob_is_labelled_with_the_repositories_that_it_has_come_from(
    space: LocalNamespace, registry: Registry
) -> None:
    pulled(space, registry)
    assert space.content.info(LAYER).labels[KEY] == "app"
    space.content.update(LAYER, {KEY: "other,there"}, [f"labels.{KEY}"])
    pulled(space, registry)
    assert space.content.info(LAYER).labels[KEY] == "app,other,there"


def test_a_blob_that_has_come_from_more_repositories_than_a_label_names_is_pulled_all_the_same(
    space: LocalNamespace, registry: Registry
) -> None:
    pulled(space, registry)
    many = "x" * (MAX_LABEL - len(KEY))
    space.content.update(LAYER, {KEY: many}, [f"labels.{KEY}"])
    assert pulled(space, registry).digest == IMAGE.descriptor["digest"]
    assert space.content.info(LAYER).labels[KEY] == many


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_a_client_whom_the_registry_refuses_is_told_what_helps(
    space: LocalNamespace, registry: Registry, auth: str
) -> None:
    registry.auth = auth
    with pytest.raises(RefusedByPeer) as caught:
        pulled(space, registry)
    assert caught.value.hint == "give the server a login for the registry"


def test_what_the_server_itself_refuses_is_not_taken_for_the_registrys_word(
    space: LocalNamespace, registry: Registry
) -> None:
    registry.misbehave("GET", f"/blobs/{LAYER}", redirect("http://169.254.169.254/"))
    with pytest.raises(Denied, match="refused to connect to") as caught:
        pulled(space, registry)
    assert (type(caught.value), caught.value.hint) == (Denied, None)
