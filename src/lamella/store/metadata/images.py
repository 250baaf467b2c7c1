# SPDX-License-Identifier: Apache-2.0
"""The table of images: names, targets, labels."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from lamella.digests import Digest, parse_digest
from lamella.errors import AlreadyExists, Integrity, InvalidInput, LamellaError, NotFound
from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import decode as decode_document
from lamella.oci.documents import encode as encode_document
from lamella.store.contract import ImageRecord
from lamella.store.gc.labels import EXPIRE, IMAGES
from lamella.store.metadata.filters import label_at, parse_filters
from lamella.store.metadata.labels import check_key, decode_labels, encode_labels, merge_labels, normalize_labels
from lamella.store.metadata.leases import add_to_lease
from lamella.store.metadata.namespaces import ensure_namespace

if TYPE_CHECKING:
    from lamella.store.context import StoreContext

_COLUMNS: Final = "name, target, labels, created, updated"


class LocalImages:
    """The images of a namespace (`ImageStore`).

    Only images with an expiry are added to the lease; the others are roots of the collector themselves.
    """

    def __init__(self, context: StoreContext) -> None:
        self._database = context.database
        self._namespace = context.namespace
        self._lease = context.lease
        self._clock = context.clock

    def get(self, name: str) -> ImageRecord:
        with self._database.read() as connection:
            return self._get(connection, name)

    def list(self, filters: Sequence[str] = ()) -> list[ImageRecord]:
        """Return the images that pass any of ``filters``, by name. Raises InvalidInput.

        Filters know ``name``, ``target.digest``, ``target.mediatype``, ``labels.KEY`` and ``annotations.KEY``.
        """
        wanted = parse_filters(filters)
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM image WHERE namespace = ? ORDER BY name",  # noqa: S608 a constant
                (self._namespace,),
            ).fetchall()
        found = [_decode_row(row) for row in rows]
        return [image for image in found if wanted.matches(partial(_field_of, image))]

    def create(self, image: ImageRecord) -> ImageRecord:
        now = self._clock()
        made = replace(image, labels=normalize_labels(image.labels), created_at=now, updated_at=now)
        _check(made)
        with self._database.write() as connection:
            ensure_namespace(connection, self._namespace)
            if self._row(connection, made.name) is not None:
                raise AlreadyExists(f"image {made.name!r} exists already")
            connection.execute(
                f"INSERT INTO image (namespace, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608 a constant
                (self._namespace, made.name, _encode_target(made), encode_labels(made.labels), now, now),
            )
            self._add_to_lease(connection, made)
        return made

    def update(self, image: ImageRecord, fields: Sequence[str] = ()) -> ImageRecord:
        check_key(image.name, "the name of an image")
        with self._database.write() as connection:
            old = self._get(connection, image.name)
            made = replace(_apply_mask(old, image, fields), updated_at=self._clock())
            _check(made)
            connection.execute(
                "UPDATE image SET target = ?, labels = ?, updated = ? WHERE namespace = ? AND name = ?",
                (_encode_target(made), encode_labels(made.labels), made.updated_at, self._namespace, made.name),
            )
            self._add_to_lease(connection, made)
        return made

    def delete(self, name: str, target: Digest | None = None) -> None:
        with self._database.write(frees=True) as connection:
            found = self._get(connection, name)
            if target is not None and found.target.digest != target:
                raise NotFound(f"image {name!r} has target {found.target.digest} now, not {target}")
            connection.execute("DELETE FROM image WHERE namespace = ? AND name = ?", (self._namespace, name))

    def _get(self, connection: sqlite3.Connection, name: str) -> ImageRecord:
        row = self._row(connection, name)
        if row is None:
            raise NotFound(f"there is no image {name!r}")
        return _decode_row(row)

    def _row(self, connection: sqlite3.Connection, name: str) -> tuple[str, str, str, int, int] | None:
        row: tuple[str, str, str, int, int] | None = connection.execute(
            f"SELECT {_COLUMNS} FROM image WHERE namespace = ? AND name = ?",  # noqa: S608 a constant
            (self._namespace, name),
        ).fetchone()
        return row

    def _add_to_lease(self, connection: sqlite3.Connection, image: ImageRecord) -> None:
        if EXPIRE in image.labels:
            add_to_lease(connection, self._namespace, self._lease, IMAGES, image.name)


def _decode_row(row: tuple[str, str, str, int, int]) -> ImageRecord:
    name, target, labels, created, updated = row
    try:
        descriptor = decode_document(Descriptor, target.encode(), f"target of image {name!r}")
    except InvalidInput as problem:
        raise Integrity(f"the store's database holds a malformed target: {problem}") from problem
    return ImageRecord(name, descriptor, decode_labels(labels), created, updated)


def _encode_target(image: ImageRecord) -> str:
    return encode_document(image.target).decode()


def _apply_mask(old: ImageRecord, new: ImageRecord, fields: Sequence[str]) -> ImageRecord:
    if not fields:
        return replace(old, target=new.target, labels=normalize_labels(new.labels))
    target, labels = old.target, dict(old.labels)
    annotations = dict(target.annotations)
    for path in fields:
        field, _, key = path.partition(".")
        match field:
            case "target" if path == "target":
                target = new.target
                annotations = dict(target.annotations)
            case "labels":
                labels = merge_labels(labels, new.labels, [path])
            case "annotations" if key:
                given = new.target.annotations.get(key, "")
                annotations.pop(key, None)
                if given:
                    annotations[key] = given
            case "annotations" if path == "annotations":
                annotations = dict(new.target.annotations)
            case _:
                raise InvalidInput(f"{path[:200]!r} is not a field of an image that can be changed")
    if annotations != target.annotations:
        target = msgspec.structs.replace(target, annotations=annotations)
    return replace(old, target=target, labels=labels)


def _check(image: ImageRecord) -> None:
    check_key(image.name, "the name of an image")
    target = image.target
    try:
        parse_digest(target.digest)
    except LamellaError as problem:
        raise InvalidInput(f"target of image {image.name!r}: {problem}") from problem
    if target.size <= 0:
        raise InvalidInput(f"target of image {image.name!r}: expected a size above 0, got {target.size}")
    if not target.media_type:
        raise InvalidInput(f"target of image {image.name!r}: the media type is missing")


def _field_of(image: ImageRecord, path: tuple[str, ...]) -> str | None:
    match path:
        case ("name",):
            return image.name
        case ("target", "digest"):
            return image.target.digest
        case ("target", "mediatype"):
            return image.target.media_type
        case ("labels", *rest):
            return label_at(image.labels, tuple(rest))
        case ("annotations", *rest):
            return label_at(image.target.annotations, tuple(rest))
        case _:
            return None
