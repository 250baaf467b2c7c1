# SPDX-License-Identifier: Apache-2.0
"""Images of a containerd, whose part a server of Lamella's plays, and what keeps one from it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.service.serving import Served, serving

from lamella.digests import Digest
from lamella.errors import AlreadyExists, InvalidInput, Unavailable, Unsupported
from lamella.images.options import ContainerdOptions, containerd_options
from lamella.images.transports import open_reader, open_writer, parse_image_name
from lamella.operations.copy import copy
from lamella.store.gc.collect import collect
from lamella.testing.images import small_image, tagged, write_layout

IMAGE = small_image({"a": b"1"}, {"b": b"2"})
OTHER = small_image({"a": b"other"})
NAME = parse_image_name("containerd:one")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served, containerd_options(ContainerdOptions(str(served.address))):
        yield served


@pytest.fixture
def layout(tmp_path: Path) -> str:
    entries = [tagged(IMAGE.descriptor, "one"), tagged(OTHER.descriptor, "other")]
    return write_layout(str(tmp_path / "layout"), entries, {**IMAGE.blobs, **OTHER.blobs})


def test_what_is_written_is_held_by_a_lease_until_it_has_its_name(served: Served, layout: str) -> None:
    space = served.store.namespace("default")
    with open_writer(NAME) as writer:
        for name, raw in IMAGE.blobs.items():
            writer.put_document("application/octet-stream", raw)
            collect(served.store)
            assert space.content.info(Digest.of(raw)).digest == name
        (lease,) = space.leases.list()
        assert "containerd.io/gc.expire" in lease.labels
    collect(served.store)
    assert (list(space.content.walk()), space.leases.list(), space.images.list()) == ([], [], [])


def test_a_copy_has_the_labels_that_clients_set(served: Served, layout: str) -> None:
    copy(f"oci:{layout}:one", "containerd:one")
    space = served.store.namespace("default")
    labels = space.content.info(Digest(IMAGE.descriptor["digest"])).labels
    assert {
        "containerd.io/gc.ref.content.config": IMAGE.manifest["config"]["digest"],
        "containerd.io/gc.ref.content.l.0": IMAGE.manifest["layers"][0]["digest"],
        "containerd.io/gc.ref.content.l.1": IMAGE.manifest["layers"][1]["digest"],
    } == labels
    with pytest.raises(AlreadyExists, match="namespace 'default' of containerd at"):
        copy(f"oci:{layout}:other", "containerd:one")
    assert space.images.get("docker.io/library/one:latest").target.digest == IMAGE.descriptor["digest"]
    assert space.leases.list() == []


def test_options_of_the_call_come_before_those_of_the_block(served: Served, tmp_path: Path) -> None:
    away = ContainerdOptions(str(tmp_path / "nobody"))
    with pytest.raises(Unavailable, match="nobody"):
        open_writer(NAME, containerd=away)
    with open_reader(NAME, containerd=away) as reader, pytest.raises(Unavailable, match="does not answer"):
        reader.images()


@pytest.mark.parametrize("options", [ContainerdOptions(namespace="not/good"), ContainerdOptions("a\0b")])
def test_malformed_options_are_refused(options: ContainerdOptions) -> None:
    with pytest.raises(InvalidInput):
        open_reader(NAME, containerd=options)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("lamella.client")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(Unsupported, match="the package grpc is needed") as raised:
        open_reader(NAME)
    assert raised.value.hint == "pip install 'lamella[containerd]'"
