# SPDX-License-Identifier: Apache-2.0
"""Images of the store read and written as those of any other place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.digests import Digest, parse_digest
from lamella.errors import AlreadyExists, Conflict, DigestMismatch, InvalidInput, NotFound, SizeMismatch
from lamella.images.resolve import open_platform_image
from lamella.images.transports import open_reader, open_writer, parse_image_name
from lamella.oci.descriptor import Descriptor
from lamella.operations.copy import copy
from lamella.operations.store.transfer import ImportOptions, export_image, import_image
from lamella.operations.surgery.flatten import flatten
from lamella.store.check.check import check
from lamella.store.contract import ImageRecord
from lamella.store.gc.collect import collect
from lamella.store.image_reader import StoreReader
from lamella.store.image_writer import StoreWriter
from lamella.store.store import LocalNamespace, Store
from lamella.testing.images import (
    compact,
    descriptor_of,
    digest,
    index_of,
    put_image,
    small_image,
    tagged,
    tar_of,
    write_layout,
)

ONE = small_image({"a": b"1"}, {"b": b"2"})
OTHER = small_image({"a": b"1"}, {"c": b"3"})
NAME = "docker.io/library/one:latest"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("LAMELLA_ROOT", str(tmp_path / "store"))
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def namespace(store: Store) -> LocalNamespace:
    return store.namespace("default")


@pytest.fixture
def layout(tmp_path: Path) -> str:
    """A layout with two images; the second has a full name."""
    entries = [tagged(ONE.descriptor, "one"), tagged(OTHER.descriptor, "example.org/other:2")]
    return write_layout(str(tmp_path / "layout"), entries, {**ONE.blobs, **OTHER.blobs})


def blobs(namespace: LocalNamespace) -> set[str]:
    return {record.digest for record in namespace.content.walk()}


def images(namespace: LocalNamespace) -> dict[str, str]:
    return {image.name: image.target.digest for image in namespace.images.list()}


def test_an_image_goes_in_and_comes_out_byte_for_byte(
    store: Store, namespace: LocalNamespace, layout: str, tmp_path: Path
) -> None:
    assert copy(f"oci:{layout}:one", "store:one").entry.digest == ONE.descriptor["digest"]
    assert images(namespace) == {NAME: ONE.descriptor["digest"]}
    assert set(ONE.blobs) == blobs(namespace)
    assert copy("store:one", f"oci:{tmp_path}/out:x").entry.digest == ONE.descriptor["digest"]
    for name, raw in ONE.blobs.items():
        assert raw == (tmp_path / "out" / "blobs" / name.replace(":", "/")).read_bytes()
    assert check(store).sound
    assert namespace.leases.list() == []


def test_labels_keep_the_parts_of_an_image_from_collection(
    store: Store, namespace: LocalNamespace, layout: str
) -> None:
    copy(f"oci:{layout}:one", "store:one")
    labels = namespace.content.info(parse_digest(ONE.descriptor["digest"])).labels
    assert {
        "containerd.io/gc.ref.content.config": ONE.manifest["config"]["digest"],
        "containerd.io/gc.ref.content.l.0": ONE.manifest["layers"][0]["digest"],
        "containerd.io/gc.ref.content.l.1": ONE.manifest["layers"][1]["digest"],
    } == labels
    collect(store)
    assert set(ONE.blobs) == blobs(namespace)
    namespace.images.delete(NAME)
    collect(store)
    assert set() == blobs(namespace)


def test_an_index_is_labelled_with_its_manifests(namespace: LocalNamespace, store: Store, tmp_path: Path) -> None:
    arm = small_image({"a": b"arm"}, platform="linux/arm64")
    descriptor, raw = index_of(ONE, arm)
    place = write_layout(
        str(tmp_path / "many"), [tagged(descriptor, "many")], {**ONE.blobs, **arm.blobs, descriptor["digest"]: raw}
    )
    copy(f"oci:{place}:many", "store:many", all_platforms=True)
    labels = namespace.content.info(parse_digest(descriptor["digest"])).labels
    assert [labels[f"containerd.io/gc.ref.content.m.{number}"] for number in range(2)] == [
        ONE.descriptor["digest"],
        arm.descriptor["digest"],
    ]
    collect(store)
    assert blobs(namespace) == {descriptor["digest"], *ONE.blobs, *arm.blobs}


def test_a_name_of_another_image_is_only_replaced_on_request(namespace: LocalNamespace, layout: str) -> None:
    copy(f"oci:{layout}:one", "store:one")
    copy(f"oci:{layout}:one", "store:one")  # the same is no harm
    with pytest.raises(AlreadyExists, match="another image"):
        copy(f"oci:{layout}:@1", "store:one")
    assert images(namespace) == {NAME: ONE.descriptor["digest"]}
    copy(f"oci:{layout}:@1", "store:one", replace=True)
    assert images(namespace) == {NAME: OTHER.descriptor["digest"]}


def test_blobs_of_an_unfinished_writer_are_not_collected(store: Store, namespace: LocalNamespace) -> None:
    with StoreWriter(namespace, parse_image_name("store:one")) as writer:
        for name, raw in ONE.blobs.items():
            writer.put_blob(Descriptor(media_type="", digest=parse_digest(name), size=len(raw)), [raw])
            collect(store)
        writer.commit("latest", descriptor_of(ONE))
    assert set(ONE.blobs) == blobs(namespace)


def test_blobs_that_a_writer_found_are_not_collected(store: Store, namespace: LocalNamespace) -> None:
    put_image(namespace, ONE, "one")
    with StoreWriter(namespace) as writer:
        manifest = descriptor_of(ONE)
        assert writer.has_blob(manifest)
        namespace.images.delete("one")
        collect(store)
        assert writer.has_blob(manifest)
        assert set(ONE.blobs) == blobs(namespace)  # all that the manifest needs
        writer.give_name("two", manifest)
    collect(store)
    assert set(ONE.blobs) == blobs(namespace)


def test_the_blobs_of_an_aborted_writer_are_collected(store: Store, namespace: LocalNamespace) -> None:
    with StoreWriter(namespace, parse_image_name("store:one")) as writer:
        raw = b"blob"
        writer.put_blob(Descriptor(media_type="", digest=Digest.of(raw), size=4), [raw])
    assert namespace.leases.list() == []
    collect(store)
    assert set() == blobs(namespace)


@pytest.mark.parametrize(
    ("raw", "size", "error"), [(b"blub", 4, DigestMismatch), (b"bl", 4, SizeMismatch), (b"blobb", 4, SizeMismatch)]
)
def test_a_blob_with_another_digest_or_size_is_refused(
    namespace: LocalNamespace, raw: bytes, size: int, error: type[Exception]
) -> None:
    blob = Descriptor(media_type="", digest=Digest.of(b"blob"), size=size)
    with StoreWriter(namespace) as writer:
        with pytest.raises(error):
            writer.put_blob(blob, [raw])
        assert not writer.has_blob(blob)
        writer.put_blob(blob, iter([b"bl", b"ob"]))
        assert writer.has_blob(blob)


def test_an_incomplete_image_gets_no_name(namespace: LocalNamespace) -> None:
    with StoreWriter(namespace, parse_image_name("store:one")) as writer:
        manifest = descriptor_of(ONE)
        with pytest.raises(Conflict, match="was not put"):
            writer.give_name(NAME, manifest)
        writer.put_blob(manifest, [ONE.blobs[manifest.digest]])
        with pytest.raises(Conflict, match="was not put"):
            writer.commit("latest", manifest)
    assert images(namespace) == {}


def test_a_digest_in_the_name_must_be_that_of_the_image(namespace: LocalNamespace, layout: str) -> None:
    right, wrong = ONE.descriptor["digest"], OTHER.descriptor["digest"]
    with pytest.raises(Conflict):
        copy(f"oci:{layout}:one", f"store:one@{wrong}")
    copy(f"oci:{layout}:one", f"store:one@{right}")
    assert images(namespace) == {f"docker.io/library/one@{right}": right}
    with open_platform_image(f"store:one@{right}") as image:
        assert right == image.descriptor.digest
    with pytest.raises(NotFound):
        open_reader(parse_image_name(f"store:one@{wrong}")).images()
    copy(f"oci:{layout}:one", "store:one")
    with pytest.raises(Conflict):
        open_reader(parse_image_name(f"store:one:latest@{wrong}")).images()


@pytest.mark.usefixtures("store")
def test_a_missing_name_is_not_found() -> None:
    with pytest.raises(NotFound, match="no such image"):
        open_platform_image("store:nothing")


def test_another_namespace_shares_blobs_without_their_bytes(store: Store, namespace: LocalNamespace) -> None:
    put_image(namespace, ONE, "one")
    there = store.namespace("there")
    with StoreReader(namespace) as reader, StoreWriter(there) as writer:
        for name, raw in ONE.blobs.items():
            blob = Descriptor(media_type="", digest=parse_digest(name), size=len(raw))
            assert writer.adopt(blob, reader)
        writer.give_name("one", descriptor_of(ONE))
    assert blobs(namespace) == blobs(there)


def test_a_staged_blob_exists_once_it_is_kept(namespace: LocalNamespace) -> None:
    with StoreWriter(namespace) as writer:
        with writer.stage() as staged:
            staged.file.write(b"blo")
            staged.file.write(b"b")
            staged.keep(Digest.of(b"blob"), 4)
        assert writer.has_blob(Descriptor(media_type="", digest=Digest.of(b"blob"), size=4))
        with writer.stage() as staged:
            staged.file.write(b"other")
    assert blobs(namespace) == {Digest.of(b"blob")}
    assert namespace.content.statuses() == []


def test_an_image_is_flattened_within_the_store(namespace: LocalNamespace, layout: str) -> None:
    copy(f"oci:{layout}:one", "store:one")
    flatten("store:one", "store:flat")
    with open_platform_image("store:flat") as image:
        assert len(image.layers) == 1


def test_all_images_of_an_archive_keep_their_names(namespace: LocalNamespace, tmp_path: Path) -> None:
    layer = tar_of({"a": b"1"})
    config = compact(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest(layer)]}}
    )
    saved = [
        {"Config": "c.json", "RepoTags": ["busybox:1", "example.org/b:2"], "Layers": ["l.tar"]},
    ]
    (tmp_path / "a.tar").write_bytes(tar_of({"manifest.json": compact(saved), "c.json": config, "l.tar": layer}))
    done = import_image(namespace, f"docker-archive:{tmp_path}/a.tar")
    assert [image.name for image in done.images] == ["docker.io/library/busybox:1", "example.org/b:2"]
    assert set(images(namespace)) == {image.name for image in done.images}


def test_only_images_with_full_names_are_imported_from_a_layout(namespace: LocalNamespace, layout: str) -> None:
    assert [image.name for image in import_image(namespace, f"oci:{layout}").images] == ["example.org/other:2"]
    with pytest.raises(InvalidInput, match="no full name"):
        import_image(namespace, f"oci:{layout}:one")
    assert [image.name for image in import_image(namespace, f"oci:{layout}:one", ImportOptions(name="one")).images] == [
        NAME
    ]


def test_an_import_from_an_archive_does_not_replace_a_name(namespace: LocalNamespace, layout: str) -> None:
    put_image(namespace, ONE, "example.org/other:2")
    with pytest.raises(AlreadyExists, match="another image"):
        import_image(namespace, f"oci:{layout}")
    assert set(ONE.blobs) == blobs(namespace)  # it was seen before anything was copied
    import_image(namespace, f"oci:{layout}", ImportOptions(replace=True))
    assert images(namespace) == {"example.org/other:2": OTHER.descriptor["digest"]}


def test_two_images_of_one_name_are_refused(namespace: LocalNamespace, tmp_path: Path) -> None:
    name = "example.org/a:1"
    place = write_layout(
        str(tmp_path / "twice"),
        [tagged(ONE.descriptor, name), tagged(OTHER.descriptor, name)],
        {**ONE.blobs, **OTHER.blobs},
    )
    with pytest.raises(InvalidInput, match="two images"):
        import_image(namespace, f"oci:{place}")
    assert images(namespace) == {}


@pytest.mark.root
def test_an_import_may_unpack_too(store: Store, namespace: LocalNamespace, layout: str) -> None:
    (image,) = import_image(namespace, f"oci:{layout}:one", ImportOptions(name="one", unpack=True)).images
    assert image.unpacked is not None
    assert len(namespace.snapshots("overlayfs").list()) == 2
    collect(store)
    assert image.unpacked.snapshot == namespace.snapshots("overlayfs").stat(image.unpacked.snapshot).name


def test_an_exported_image_can_be_imported_with_its_name(
    store: Store, namespace: LocalNamespace, tmp_path: Path
) -> None:
    put_image(namespace, ONE, NAME)
    for form in ("oci-archive", "docker-archive", "oci"):
        export_image(namespace, "one", f"{form}:{tmp_path}/{form}")
        other = store.namespace(form)
        assert [image.name for image in import_image(other, f"{form}:{tmp_path}/{form}").images] == [NAME]
    assert namespace.leases.list() == []


def test_a_readonly_store_can_be_exported_from(store: Store, namespace: LocalNamespace, tmp_path: Path) -> None:
    put_image(namespace, ONE, NAME)
    with Store.open(store.root, readonly=True) as readonly:
        export_image(readonly.namespace("default"), "one", f"oci:{tmp_path}/out")
    assert (tmp_path / "out" / "index.json").exists()


def test_a_writer_resumes_an_interrupted_one(namespace: LocalNamespace) -> None:
    blob = Descriptor(media_type="", digest=Digest.of(b"0123456789"), size=10)
    with namespace.content.ingest(f"unknown-{blob.digest}", total=10, expected=blob.digest) as ingest:
        ingest.write(b"01234")
    with StoreWriter(namespace) as writer:
        writer.put_blob(blob, [b"012", b"3456", b"789"])
        assert writer.has_blob(blob)


def test_the_transport_opens_a_writer_of_a_store(namespace: LocalNamespace) -> None:
    with open_writer(parse_image_name("store:one")) as writer:
        assert writer.where == "store:docker.io/library/one:latest"
    assert images(namespace) == {}


def test_a_short_name_that_another_program_stored_is_found(namespace: LocalNamespace, layout: str) -> None:
    copy(f"oci:{layout}:one", "store:one")
    target = namespace.images.get(NAME).target
    for kept, asked in (("bare", "bare"), ("bare:two", "bare:two"), ("group/x:1", "group/x:1")):
        namespace.images.create(ImageRecord(kept, target))
        with open_platform_image(f"store:{asked}") as image:
            assert image.descriptor.digest == target.digest
