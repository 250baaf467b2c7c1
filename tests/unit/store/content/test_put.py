# SPDX-License-Identifier: Apache-2.0
"""Blobs are brought into a store once, whole, and by whoever comes first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamella.digests import Digest
from lamella.errors import DigestMismatch, InvalidInput, SizeMismatch, Unavailable
from lamella.oci.descriptor import Descriptor
from lamella.oci.mediatypes import oci_layer
from lamella.store.content.put import put_blob
from lamella.store.content.store import LocalContent
from lamella.store.store import Store

TEXT = b"some text that is a blob"


def describing(content: bytes) -> Descriptor:
    return Descriptor(media_type=oci_layer("gzip"), digest=Digest.of(content), size=len(content))


@pytest.fixture
def content(tmp_path: Path) -> Iterator[LocalContent]:
    with Store.open(tmp_path / "store") as store:
        yield store.namespace("one").content


def giving(text: bytes, asked: list[int]) -> Callable[[int], Iterator[bytes]]:
    def chunks(offset: int) -> Iterator[bytes]:
        asked.append(offset)
        for at in range(offset, len(text), 5):
            yield text[at : at + 5]

    return chunks


def nothing(offset: int) -> Iterator[bytes]:
    raise AssertionError("what is there is not to be read")


def test_a_blob_is_stored_once(content: LocalContent) -> None:
    asked: list[int] = []
    record = put_blob(content, describing(TEXT), giving(TEXT, asked), labels={"a": "1"})
    assert (record.digest, record.size, record.labels) == (Digest.of(TEXT), len(TEXT), {"a": "1"})
    assert put_blob(content, describing(TEXT), nothing) == record
    assert asked == [0]
    assert content.statuses() == []


def test_labels_are_added_to_an_existing_blob(content: LocalContent) -> None:
    put_blob(content, describing(TEXT), giving(TEXT, []), labels={"a": "1", "b": "2"})
    record = put_blob(content, describing(TEXT), nothing, labels={"b": "3", "c.d/e": "4"})
    assert record.labels == {"a": "1", "b": "3", "c.d/e": "4"}
    assert content.info(record.digest) == record
    assert put_blob(content, describing(TEXT), nothing, labels={"a": "1"}) == record


def test_an_empty_blob_needs_no_bytes(content: LocalContent) -> None:
    assert put_blob(content, describing(b""), nothing).size == 0


def test_an_interrupted_attempt_is_resumed(content: LocalContent) -> None:
    asked: list[int] = []

    def breaking(offset: int) -> Iterator[bytes]:
        yield TEXT[:10]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        put_blob(content, describing(TEXT), breaking)
    put_blob(content, describing(TEXT), giving(TEXT, asked))
    assert asked == [10]


def test_an_attempt_with_wrong_bytes_is_read_again_from_the_start(content: LocalContent) -> None:
    asked: list[int] = []
    with content.ingest("ref") as ingest:
        ingest.write(b"wrong")
    put_blob(content, describing(TEXT), giving(TEXT, asked), ref="ref")
    assert asked == [5, 0]
    with content.ingest("other") as ingest:
        ingest.write(b"longer than it is to be")
    put_blob(content, describing(b"short"), giving(b"short", asked), ref="other")
    assert asked == [5, 0, 0]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (TEXT[:-1], SizeMismatch),
        (TEXT + b"!", SizeMismatch),
        (TEXT[:-1] + b"!", DigestMismatch),
        (b"", SizeMismatch),
    ],
)
def test_wrong_bytes_are_refused_and_dropped(content: LocalContent, given: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        put_blob(content, describing(TEXT), giving(given, []))
    assert list(content.walk()) == []
    assert [status.offset for status in content.statuses()] == [0]
    put_blob(content, describing(TEXT), giving(TEXT, []))


def test_wrong_labels_are_refused(content: LocalContent) -> None:
    with pytest.raises(InvalidInput):
        put_blob(content, describing(TEXT), giving(TEXT, []), labels={"": "x"})


def test_a_second_writer_waits_for_the_first(content: LocalContent) -> None:
    going = threading.Event()

    def slow(offset: int) -> Iterator[bytes]:
        going.set()
        time.sleep(0.1)
        yield TEXT

    first = threading.Thread(target=put_blob, args=(content, describing(TEXT), slow))
    first.start()
    assert going.wait(10)
    with pytest.raises(Unavailable):
        put_blob(content, describing(TEXT), nothing, patience=0)
    assert put_blob(content, describing(TEXT), nothing).size == len(TEXT)
    first.join()
