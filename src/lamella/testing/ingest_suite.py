# SPDX-License-Identifier: Apache-2.0
"""What every content store promises of blobs in the making."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from lamella.digests import Digest
from lamella.errors import AlreadyExists, Conflict, InvalidInput, Unavailable
from lamella.store.contract import NO_LABELS, ContentRecord, ContentStore, Ingest, Labels
from lamella.testing.reading import raises

Contents: TypeAlias = Callable[[str], ContentStore]
"""Gives the content store of a namespace; each call a view of its own."""

NOTHING = Digest.of(b"")
BIG = random.Random(1).randbytes((3 << 20) + 17)  # noqa: S311 any bytes will do


def put(store: ContentStore, content: bytes, labels: Labels = NO_LABELS, *, ref: str = "put") -> ContentRecord:
    """Make ``content`` a blob."""
    with store.ingest(ref) as ingest:
        ingest.write(content)
        return ingest.commit(len(content), labels=labels)


def read(store: ContentStore, digest: Digest) -> bytes:
    """All of a blob."""
    with store.open(digest) as file:
        return file.read()


def resume(store: ContentStore, ref: str, *, total: int = 0, expected: Digest | None = None) -> Ingest:
    """Open an ingest, which another end may take a moment to let go of."""
    for _ in range(100):
        try:
            return store.ingest(ref, total=total, expected=expected)
        except Unavailable:
            time.sleep(0.02)
    return store.ingest(ref, total=total, expected=expected)


def digests(records: Sequence[ContentRecord]) -> list[Digest]:
    """Of these, in their order."""
    return [record.digest for record in records]


class ContentSuite:
    """What the suites of content stores have in common."""

    def make(self, tmp_path: Path) -> Contents:
        """An empty store; ``tmp_path`` is an empty directory for it."""
        raise NotImplementedError


class IngestTests(ContentSuite):
    """Bind with ``make``, which gives an empty store."""

    def test_an_ingest_tells_where_it_stands(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        expected = Digest.of(b"text")
        with store.ingest("some/ref: 1", total=4, expected=expected) as ingest:
            first = ingest.status()
            assert (first.ref, first.offset, first.total, first.expected) == ("some/ref: 1", 0, 4, expected)
            assert ingest.digest() == NOTHING
            assert ingest.write(b"te") == 2
            assert ingest.digest() == Digest.of(b"te")
            assert ingest.write(b"") == 2
            assert ingest.write(memoryview(bytearray(b"xt"))) == 4
            second = ingest.status()
            assert (second.offset, second.total, second.started_at) == (4, 4, first.started_at)
            assert second.updated_at >= second.started_at > 0

            seen = store.status("some/ref: 1")
            assert (seen.ref, seen.offset, seen.total, seen.expected) == ("some/ref: 1", 4, 4, expected)
            assert [status.ref for status in store.statuses()] == ["some/ref: 1"]

    def test_ingests_are_listed_by_reference(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        for ref in ("b", "a", "c/d"):
            store.ingest(ref).close()
        assert [status.ref for status in store.statuses()] == ["a", "b", "c/d"]
        assert [status.ref for status in store.statuses([""])] == ["a", "b", "c/d"]
        assert [status.ref for status in store.statuses(["ref~=/c/", "ref==a"])] == ["a", "c/d"]
        with raises(InvalidInput):
            store.statuses(["=="])

    def test_what_was_written_is_there_when_the_ingest_is_resumed(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        half = len(BIG) // 2
        with store.ingest("a", total=len(BIG)) as ingest:
            ingest.write(BIG[:half])
            started = ingest.status().started_at
        with resume(store, "a") as ingest:
            status = ingest.status()
            assert (status.offset, status.total, status.started_at) == (half, len(BIG), started)
            assert ingest.digest() == Digest.of(BIG[:half])
            ingest.write(BIG[half:])
            assert ingest.commit(len(BIG), Digest.of(BIG)).size == len(BIG)
        assert read(store, Digest.of(BIG)) == BIG

    def test_an_ingest_that_is_to_have_another_size_starts_over(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        with store.ingest("a", total=10) as ingest:
            ingest.write(b"12345")
        with resume(store, "a", total=4) as ingest:
            assert (ingest.status().offset, ingest.status().total) == (0, 4)
            ingest.write(b"text")
            assert ingest.commit().digest == Digest.of(b"text")

    def test_an_ingest_can_be_cut(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        with store.ingest("a") as ingest:
            ingest.write(b"some text")
            for wrong in (10, -1):
                with raises(InvalidInput):
                    ingest.truncate(wrong)
            ingest.truncate(9)
            ingest.truncate(5)
            assert (ingest.status().offset, ingest.digest()) == (5, Digest.of(b"some "))
            ingest.truncate()
            assert (ingest.status().offset, ingest.digest()) == (0, NOTHING)
            ingest.write(b"other")
            assert ingest.commit().digest == Digest.of(b"other")
        assert read(store, Digest.of(b"other")) == b"other"

    def test_nobody_else_can_open_a_reference_that_is_open(self, tmp_path: Path) -> None:
        contents = self.make(tmp_path)
        store = contents("one")
        with store.ingest("a") as ingest:
            ingest.write(b"1")
            for other in (store, contents("one")):
                with raises(Unavailable):
                    other.ingest("a")
                with raises(Unavailable):
                    other.abort("a")
            contents("two").ingest("a").close()
            store.ingest("b").close()
            ingest.write(b"2")
            ingest.commit()
        resume(store, "a").close()

    def test_a_wrong_size_or_digest_is_no_blob_and_can_be_put_right(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        digest = Digest.of(b"text")
        ingest = store.ingest("a")
        ingest.write(b"text")
        for total, expected in ((3, None), (5, None), (0, NOTHING), (4, NOTHING), (5, digest)):
            with raises(Conflict):
                ingest.commit(total, expected)
            ingest.close()
            assert list(store.walk()) == []
            assert store.status("a").offset == 4
            ingest = resume(store, "a")
            assert ingest.digest() == digest
        assert ingest.commit(4, digest).digest == digest
        ingest.close()

    def test_what_was_expected_at_the_start_is_checked_at_the_end(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        with store.ingest("a", total=4, expected=Digest.of(b"text")) as ingest:
            ingest.write(b"test")
            with raises(Conflict):
                ingest.commit(4, Digest.of(b"text"))
        assert list(store.walk()) == []

    def test_an_expected_digest_chooses_the_algorithm(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        for number, algorithm in enumerate(("sha512", "sha384")):
            content = b"text %d" % number
            digest = Digest.of(content, algorithm)
            with store.ingest("a", expected=digest) as ingest:
                ingest.write(content)
                assert ingest.commit(expected=digest).digest == digest
            assert read(store, digest) == content
        digest = Digest.of(b"late", "sha512")
        with store.ingest("b") as ingest:
            ingest.write(b"late")
            assert ingest.commit(expected=digest).digest == digest
        assert read(store, digest) == b"late"

    def test_a_blob_that_is_there_need_not_be_sent(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        digest = put(store, b"text", {"a": "b"}).digest
        with raises(AlreadyExists):
            store.ingest("again", expected=digest)
        assert list(store.statuses()) == []

    def test_a_blob_that_is_there_already_ends_the_ingest(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        record = put(store, b"text", {"a": "b"})
        with store.ingest("again") as ingest:
            ingest.write(b"text")
            with raises(AlreadyExists):
                ingest.commit(labels={"c": "d"})
        assert list(store.statuses()) == []
        assert store.info(record.digest) == record
        assert read(store, record.digest) == b"text"

    def test_an_aborted_ingest_is_gone(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        with store.ingest("a", total=9) as ingest:
            ingest.write(b"text")
        for _ in range(100):
            try:
                store.abort("a")
                break
            except Unavailable:
                time.sleep(0.02)
        assert list(store.statuses()) == []
        with store.ingest("a") as ingest:
            assert (ingest.status().offset, ingest.status().total) == (0, 0)

    def test_an_ingest_is_committed_once(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        with store.ingest("a") as ingest:
            ingest.write(b"text")
            ingest.commit()
            with raises(Conflict, AlreadyExists):
                ingest.commit()
            ingest.close()
        assert len(list(store.walk())) == 1

    def test_an_ingest_without_a_reference_is_refused(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        with raises(InvalidInput):
            store.ingest("")
        with raises(InvalidInput):
            store.ingest("a", total=-1)
