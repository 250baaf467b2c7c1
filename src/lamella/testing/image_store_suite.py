# SPDX-License-Identifier: Apache-2.0
"""What every image store promises, that of a server included."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from lamella.digests import Digest
from lamella.errors import AlreadyExists, InvalidInput, NotFound
from lamella.oci.descriptor import Descriptor
from lamella.oci.mediatypes import OCI_INDEX, OCI_MANIFEST
from lamella.store.contract import ImageRecord, ImageStore
from lamella.testing.reading import raises

FIRST: Final = Descriptor(
    media_type=OCI_MANIFEST, digest=Digest.of(b"first"), size=5, annotations={"a.b/c": "1", "kept": "2"}
)
SECOND: Final = Descriptor(media_type=OCI_INDEX, digest=Digest.of(b"second"), size=6, annotations={"d": "4"})


def image(name: str = "docker.io/library/one:1", target: Descriptor = FIRST, **labels: str) -> ImageRecord:
    """An image; a label's underscores stand for dots."""
    return ImageRecord(name, target, {key.replace("_", "."): value for key, value in labels.items()})


class ImageStoreTests:
    """Bind with ``make``, which gives a store without images. What the images name need not be there."""

    def make(self, tmp_path: Path) -> ImageStore:
        """An image store without images; ``tmp_path`` is an empty directory for it."""
        raise NotImplementedError

    def test_what_was_created_is_there(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        made = images.create(image(a_b="1"))
        assert (image().name, FIRST, {"a.b": "1"}) == (made.name, made.target, dict(made.labels))
        assert made.created_at == made.updated_at > 0
        assert made == images.get(made.name)
        assert [made] == images.list()

    def test_times_are_the_stores_own(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        made = images.create(replace(image(), created_at=-62135596800_000_000_000, updated_at=5))
        assert made.created_at > 5
        changed = images.update(replace(made, created_at=7, updated_at=7))
        assert made.created_at == changed.created_at
        assert changed.updated_at > made.updated_at

    def test_a_name_is_created_once(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        made = images.create(image())
        with raises(AlreadyExists):
            images.create(image(target=SECOND))
        assert made == images.get(made.name)

    def test_an_image_that_is_not_there(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        with raises(NotFound):
            images.get("nobody")
        with raises(NotFound):
            images.update(image("nobody"))
        with raises(NotFound):
            images.delete("nobody")
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
        assert [good] == images.list()

    def test_the_longest_label_is_taken(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        assert dict(images.create(image(long="x" * 4092)).labels) == {"long": "x" * 4092}

    def test_labels_without_a_value_are_not_set(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        assert dict(images.create(image(a="", b="1")).labels) == {"b": "1"}
        assert dict(images.update(image(b="", c="2")).labels) == {"c": "2"}
        assert dict(images.update(image(c=""), ["labels.c"]).labels) == {}

    def test_an_update_without_fields_replaces_all_but_the_name(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        images.create(image(a="1", b="2"))
        changed = images.update(image(target=SECOND, c="3"))
        assert (changed.target, dict(changed.labels)) == (SECOND, {"c": "3"})
        assert changed == images.get(changed.name)

    def test_an_update_changes_the_fields_that_are_named(self, tmp_path: Path) -> None:
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
            assert (target, labels) == (changed.target, dict(changed.labels)), fields
            assert changed == images.get("x")
            images.delete("x")

    def test_other_fields_cannot_be_changed(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        made = images.create(image())
        for field in ("name", "target.digest", "created_at", "label", "labels.", "annotations.", "annotation", ""):
            with raises(InvalidInput):
                images.update(image(target=SECOND), ["labels", field])
        assert made == images.get(made.name)

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
            assert names.split() == [one.name for one in images.list(filters)], filters

    def test_a_malformed_filter_is_refused(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        with raises(InvalidInput):
            images.list(["name=one"])

    def test_a_deleted_image_is_gone_and_its_name_free(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        images.create(image("one"))
        other = images.create(image("two"))
        images.delete("one")
        assert [other] == images.list()
        assert images.create(image("one", SECOND)).target == SECOND

    def test_an_image_is_deleted_if_it_has_the_target_still(self, tmp_path: Path) -> None:
        images = self.make(tmp_path)
        images.create(image("one"))
        with raises(NotFound):
            images.delete("one", SECOND.digest)
        assert images.get("one").target == FIRST
        images.delete("one", FIRST.digest)
        assert images.list() == []
