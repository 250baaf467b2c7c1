# SPDX-License-Identifier: Apache-2.0
"""Contract suites of image stores and lease stores, local or behind a server."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from lamella.digests import Digest
from lamella.errors import AlreadyExists, InvalidInput, NotFound, Unsupported
from lamella.oci.descriptor import Descriptor
from lamella.oci.mediatypes import OCI_INDEX, OCI_MANIFEST
from lamella.store.contract import ImageRecord, ImageStore, LeaseStore, Resource
from lamella.testing.reading import raises

FIRST: Final = Descriptor(
    media_type=OCI_MANIFEST, digest=Digest.of(b"first"), size=5, annotations={"a.b/c": "1", "kept": "2"}
)
SECOND: Final = Descriptor(media_type=OCI_INDEX, digest=Digest.of(b"second"), size=6, annotations={"d": "4"})


def image(name: str = "docker.io/library/one:1", target: Descriptor = FIRST, **labels: str) -> ImageRecord:
    """Return an image record; underscores in the names of ``labels`` become dots."""
    return ImageRecord(name, target, {key.replace("_", "."): value for key, value in labels.items()})


class ImageStoreTests:
    """Contract of image stores. A binding defines ``make``; the targets of images need not exist."""

    def make(self, tmp_path: Path) -> ImageStore:
        """Return an empty image store; ``tmp_path`` is an empty directory for it."""
        raise NotImplementedError

    def test_a_created_image_is_returned_and_listed(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        made = images.create(image(a_b="1"))
        assert (made.name, made.target, dict(made.labels)) == (image().name, FIRST, {"a.b": "1"})
        assert made.created_at == made.updated_at > 0
        assert images.get(made.name) == made
        assert images.list() == [made]

    def test_the_store_sets_the_times(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        made = images.create(replace(image(), created_at=-62135596800_000_000_000, updated_at=5))
        assert made.created_at > 5
        changed = images.update(replace(made, created_at=7, updated_at=7))
        assert changed.created_at == made.created_at
        assert changed.updated_at > made.updated_at

    def test_a_name_is_created_once(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        made = images.create(image())
        with raises(AlreadyExists):
            images.create(image(target=SECOND))
        assert images.get(made.name) == made

    def test_a_missing_image_is_not_found(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        with raises(NotFound):
            images.get("missing")
        with raises(NotFound):
            images.update(image("missing"))
        with raises(NotFound):
            images.delete("missing")
        assert images.list() == []

    def test_malformed_images_are_refused(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        good = images.create(image())
        for wrong in (
            image(""),
            image(target=msgspec.structs.replace(FIRST, digest=Digest("sha256:1"))),
            image(target=msgspec.structs.replace(FIRST, digest=Digest(""))),
            image(target=msgspec.structs.replace(FIRST, size=0)),
            image(target=msgspec.structs.replace(FIRST, size=-1)),
            image(target=msgspec.structs.replace(FIRST, media_type="")),
            image(long="x" * 4096),
        ):
            with raises(InvalidInput):
                images.create(replace(wrong, name=wrong.name and "other"))
            with raises(InvalidInput):
                images.update(wrong)
        assert images.list() == [good]

    def test_the_longest_allowed_label_is_accepted(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        assert dict(images.create(image(long="x" * 4092)).labels) == {"long": "x" * 4092}

    def test_labels_with_an_empty_value_are_not_stored(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        assert dict(images.create(image(a="", b="1")).labels) == {"b": "1"}
        assert dict(images.update(image(b="", c="2")).labels) == {"c": "2"}
        assert dict(images.update(image(c=""), ["labels.c"]).labels) == {}

    def test_an_update_without_fields_replaces_all_but_the_name(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        images.create(image(a="1", b="2"))
        changed = images.update(image(target=SECOND, c="3"))
        assert (changed.target, dict(changed.labels)) == (SECOND, {"c": "3"})
        assert images.get(changed.name) == changed

    def test_an_update_changes_only_the_named_fields(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        for fields, target, labels in (
            (["target"], SECOND, {"a.b/c": "1", "kept": "2"}),
            (["labels"], FIRST, {"a.b/c": "9", "new": "3"}),
            (["labels.a.b/c"], FIRST, {"a.b/c": "9", "kept": "2"}),
            (["labels.kept"], FIRST, {"a.b/c": "1"}),
            (["labels.new", "target"], SECOND, {"a.b/c": "1", "kept": "2", "new": "3"}),
            (["annotations"], {"d": "4"}, {"a.b/c": "1", "kept": "2"}),
            (["annotations.d"], {"a.b/c": "1", "kept": "2", "d": "4"}, {"a.b/c": "1", "kept": "2"}),
            (["annotations.a.b/c"], {"kept": "2"}, {"a.b/c": "1", "kept": "2"}),
        ):
            images.create(ImageRecord("x", FIRST, {"a.b/c": "1", "kept": "2"}))
            changed = images.update(ImageRecord("x", SECOND, {"a.b/c": "9", "new": "3"}), fields)
            if isinstance(target, dict):
                target = msgspec.structs.replace(FIRST, annotations=target)
            assert (changed.target, dict(changed.labels)) == (target, labels), fields
            assert images.get("x") == changed
            images.delete("x")

    def test_other_fields_cannot_be_changed(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        made = images.create(image())
        for field in ("name", "target.digest", "created_at", "label", "labels.", "annotations.", "annotation", ""):
            with raises(InvalidInput):
                images.update(image(target=SECOND), ["labels", field])
        assert images.get(made.name) == made

    def test_images_are_listed_by_name(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        for name in ("b", "a/c", "é", "a", "B"):
            images.create(image(name))
        assert [one.name for one in images.list()] == ["B", "a", "a/c", "b", "é"]

    def test_filters_choose_by_every_field(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        images.create(ImageRecord("one", FIRST, {"tier": "base", "a.b/c": "x"}))
        images.create(ImageRecord("two", SECOND, {"tier": "app"}))
        for filters, names in (
            ([], "one two"),
            ([""], "one two"),
            (["name==one"], "one"),
            (["name~=^t"], "two"),
            (["name==one", "name==two"], "one two"),
            (["name==one,labels.tier==app"], ""),
            ([f"target.digest=={SECOND.digest}"], "two"),
            (["target.mediatype~=manifest"], "one"),
            (["labels.tier!=base"], "two"),
            (['labels."a.b/c"'], "one"),
            (['annotations."a.b/c"==1'], "one"),
            (["annotations.d"], "two"),
            (["target"], ""),
            (["size==5"], ""),
        ):
            assert [one.name for one in images.list(filters)] == names.split(), filters

    def test_a_malformed_filter_is_refused(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        with raises(InvalidInput):
            images.list(["name=one"])

    def test_the_name_of_a_deleted_image_can_be_used_again(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        images.create(image("one"))
        other = images.create(image("two"))
        images.delete("one")
        assert images.list() == [other]
        assert images.create(image("one", SECOND)).target == SECOND

    def test_delete_with_a_digest_requires_that_target(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        images.create(image("one"))
        with raises(NotFound):
            images.delete("one", SECOND.digest)
        assert images.get("one").target == FIRST
        images.delete("one", FIRST.digest)
        assert images.list() == []


BLOB = Resource("content", Digest.of(b"anything"))
RESOURCES = (
    BLOB,
    Resource("images", "docker.io/library/one:1"),
    Resource("ingests", "layer-1 of/some:thing"),
    Resource("snapshots/native", "key with spaces"),
    Resource("snapshots/overlayfs", "sha256:1"),
)


class LeaseTests:
    """Contract of lease stores. A binding defines ``make``; leased resources need not exist."""

    def make(self, tmp_path: Path) -> LeaseStore:
        """Return an empty lease store; ``tmp_path`` is an empty directory for it."""
        raise NotImplementedError

    def test_a_created_lease_is_listed(self, tmp_path: Path) -> None:
        leases = self.make(tmp_path)
        made = leases.create("/mnt/some where", {"containerd.io/gc.flat": "true", "empty": ""})
        assert (made.id, dict(made.labels)) == ("/mnt/some where", {"containerd.io/gc.flat": "true"})
        assert made.created_at > 0
        assert list(leases.list()) == [made]
        assert list(leases.resources(made.id)) == []

    def test_the_store_chooses_an_id_if_none_is_given(self, tmp_path: Path) -> None:
        leases = self.make(tmp_path)
        made = {leases.create().id for _ in range(20)}
        assert len(made) == 20
        assert "" not in made
        assert [one.id for one in leases.list()] == sorted(made)

    def test_a_lease_id_is_created_once(self, tmp_path: Path) -> None:
        leases = self.make(tmp_path)
        made = leases.create("one")
        with raises(AlreadyExists):
            leases.create("one", {"a": "1"})
        assert list(leases.list()) == [made]

    def test_malformed_labels_are_refused(self, tmp_path: Path) -> None:
        leases = self.make(tmp_path)
        with raises(InvalidInput):
            leases.create("one", {"long": "x" * 4096})
        assert list(leases.list()) == []

    def test_a_missing_lease_is_not_found(self, tmp_path: Path) -> None:
        leases = self.make(tmp_path)
        with raises(NotFound):
            leases.delete("missing")
        with raises(NotFound):
            leases.resources("missing")
        with raises(NotFound):
            leases.add("missing", BLOB)
        with raises(NotFound):
            leases.remove("missing", BLOB)

    def test_filters_choose_by_every_field(self, tmp_path: Path) -> None:
        leases = self.make(tmp_path)
        leases.create("b", {"a.b/c": "1"})
        leases.create("a", {"tier": "x"})
        for filters, ids in (
            ([], "a b"),
            (["id==b"], "b"),
            (["id==b", "labels.tier==x"], "a b"),
            (['labels."a.b/c"'], "b"),
            (["name"], ""),
        ):
            assert [one.id for one in leases.list(filters)] == ids.split(), filters
        with raises(InvalidInput):
            leases.list(["id="])

    def test_a_lease_holds_every_kind_of_resource_once(self, tmp_path: Path) -> None:
        leases = self.make(tmp_path)
        leases.create("one")
        leases.create("two")
        for resource in (*reversed(RESOURCES), BLOB):
            leases.add("one", resource)
        leases.add("two", BLOB)
        assert list(leases.resources("one")) == sorted(RESOURCES)
        assert list(leases.resources("two")) == [BLOB]

    def test_other_kinds_of_resources_cannot_be_leased(self, tmp_path: Path) -> None:
        leases = self.make(tmp_path)
        leases.create("one")
        for kind in ("", "contents", "leases", "Content", "containers"):
            with raises(Unsupported):
                leases.add("one", Resource(kind, "x"))
            with raises(Unsupported):
                leases.remove("one", Resource(kind, "x"))
        assert list(leases.resources("one")) == []

    def test_a_malformed_resource_cannot_be_leased(self, tmp_path: Path) -> None:
        leases = self.make(tmp_path)
        leases.create("one")
        kinds = ("snapshots", "snapshots/", "snapshots/a/b", "content/a", "ingests/a", "images/a")
        for resource in (*(Resource(kind, "x") for kind in kinds), Resource("content", "sha256:short")):
            with raises(InvalidInput):
                leases.add("one", resource)
            with raises(InvalidInput):
                leases.remove("one", resource)
        assert list(leases.resources("one")) == []

    def test_a_removed_resource_is_no_longer_leased(self, tmp_path: Path) -> None:
        leases = self.make(tmp_path)
        leases.create("one")
        for resource in RESOURCES:
            leases.add("one", resource)
        leases.remove("one", BLOB)
        leases.remove("one", BLOB)
        leases.remove("one", Resource("content", f"sha256:{0:064}"))
        assert list(leases.resources("one")) == sorted(set(RESOURCES) - {BLOB})

    def test_deleting_a_lease_drops_its_resources(self, tmp_path: Path) -> None:
        leases = self.make(tmp_path)
        leases.create("one")
        leases.add("one", BLOB)
        leases.delete("one")
        assert list(leases.list()) == []
        leases.create("one")
        assert list(leases.resources("one")) == []
