# SPDX-License-Identifier: Apache-2.0
"""Contract suites of content stores: blobs, ingests, labels and namespaces."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from lamella.digests import Digest
from lamella.errors import AlreadyExists, Conflict, InvalidInput, NotFound, Unavailable
from lamella.store.contract import NO_LABELS, ContentRecord, ContentStore, Ingest, Labels
from lamella.testing.reading import raises

Contents: TypeAlias = Callable[[str], ContentStore]
"""Returns the content store of a namespace; every call returns a new object."""

NOTHING = Digest.of(b"")
BIG = random.Random(1).randbytes((3 << 20) + 17)  # noqa: S311 any bytes will do


def put(store: ContentStore, content: bytes, labels: Labels = NO_LABELS, *, ref: str = "put") -> ContentRecord:
    """Store ``content`` as a blob."""
    with store.ingest(ref) as ingest:
        ingest.write(content)
        return ingest.commit(len(content), labels=labels)


def read(store: ContentStore, digest: Digest) -> bytes:
    """Return the bytes of a blob."""
    with store.open(digest) as file:
        return file.read()


def resume(store: ContentStore, ref: str, *, total: int = 0, expected: Digest | None = None) -> Ingest:
    """Open an ingest; retry while the previous writer still holds it."""
    for _ in range(100):
        try:
            return store.ingest(ref, total=total, expected=expected)
        except Unavailable:
            time.sleep(0.02)
    return store.ingest(ref, total=total, expected=expected)


def digests(records: Sequence[ContentRecord]) -> list[Digest]:
    """Return the digests of ``records``, in order."""
    return [record.digest for record in records]


class ContentSuite:
    """Base of the suites of content stores."""

    def make(self, tmp_path: Path) -> Contents:
        """Return an empty store; ``tmp_path`` is an empty directory for it."""
        raise NotImplementedError


class IngestTests(ContentSuite):
    """Contract of ingests."""

    def test_status_reports_the_progress_of_an_ingest(self, tmp_path: Path) -> None:
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

    def test_a_resumed_ingest_keeps_the_bytes_written(self, tmp_path: Path) -> None:
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

    def test_an_ingest_resumed_with_another_total_starts_over(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        with store.ingest("a", total=10) as ingest:
            ingest.write(b"12345")
        with resume(store, "a", total=4) as ingest:
            assert (ingest.status().offset, ingest.status().total) == (0, 4)
            ingest.write(b"text")
            assert ingest.commit().digest == Digest.of(b"text")

    def test_an_ingest_can_be_truncated(self, tmp_path: Path) -> None:
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

    def test_an_open_ingest_cannot_be_opened_or_aborted_elsewhere(self, tmp_path: Path) -> None:
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

    def test_a_commit_with_a_wrong_size_or_digest_can_be_retried(self, tmp_path: Path) -> None:
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

    def test_commit_checks_the_digest_expected_at_the_start(self, tmp_path: Path) -> None:
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

    def test_an_ingest_for_an_existing_blob_raises_already_exists(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        digest = put(store, b"text", {"a": "b"}).digest
        with raises(AlreadyExists):
            store.ingest("again", expected=digest)
        assert list(store.statuses()) == []

    def test_committing_an_existing_blob_ends_the_ingest(self, tmp_path: Path) -> None:
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


class ContentStoreTests(IngestTests):
    """Contract of content stores. A binding defines ``make``."""

    # Blobs

    def test_a_blob_exists_only_once_it_is_committed(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        digest = Digest.of(BIG)
        with store.ingest("a") as ingest:
            for at in range(0, len(BIG), 1 << 20):
                ingest.write(BIG[at : at + (1 << 20)])
                with raises(NotFound):
                    store.info(digest)
            assert list(store.walk()) == []
            record = ingest.commit(labels={"a": "b"})

        assert (record.digest, record.size, dict(record.labels)) == (digest, len(BIG), {"a": "b"})
        assert record.created_at == record.updated_at > 0
        assert store.info(digest) == record
        assert list(store.walk()) == [record]
        assert read(store, digest) == BIG
        with raises(NotFound):
            store.status("a")
        assert list(store.statuses()) == []

    def test_an_empty_blob_can_be_stored(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        with store.ingest("a", expected=NOTHING) as ingest:
            assert ingest.digest() == NOTHING
            assert ingest.commit(expected=NOTHING).size == 0
        assert read(store, NOTHING) == b""

    def test_a_blob_can_be_read_at_any_offset(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        digest = put(store, BIG).digest
        with store.open(digest) as file:
            for at, size in ((5, 10), (len(BIG) - 3, 10), (0, 1), (1 << 20, 70_000), (len(BIG), 4), (len(BIG) + 9, 4)):
                file.seek(at)
                assert file.read(size) == BIG[at : at + size]

    def test_an_open_blob_can_be_read_after_it_is_deleted(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        digest = put(store, BIG).digest
        with store.open(digest) as file:
            store.delete(digest)
            with raises(NotFound):
                store.open(digest)
            assert file.read() == BIG

    def test_missing_blobs_and_ingests_are_not_found(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        with raises(NotFound):
            store.info(NOTHING)
        with raises(NotFound):
            store.open(NOTHING)
        with raises(NotFound):
            store.update(NOTHING, {"a": "b"})
        with raises(NotFound):
            store.delete(NOTHING)
        with raises(NotFound):
            store.status("a")
        with raises(NotFound):
            store.abort("a")

    def test_a_deleted_blob_can_be_stored_again(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        digest = put(store, b"text", {"a": "b"}).digest
        store.delete(digest)
        assert list(store.walk()) == []
        assert dict(put(store, b"text").labels) == {}
        assert read(store, digest) == b"text"

    def test_walk_is_sorted_by_digest_and_filtered(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        records = [put(store, b"%d" % n, {"parity": "even"} if n % 2 == 0 else {}) for n in range(9)]
        records.sort(key=lambda record: record.digest)

        assert list(store.walk()) == records
        assert list(store.walk([""])) == records
        assert digests(list(store.walk(["labels.parity==even"]))) == [one.digest for one in records if one.labels]
        assert list(store.walk([f"digest=={records[3].digest}", f"digest=={records[1].digest}"])) == records[1:4:2]
        assert list(store.walk(["labels.none"])) == []
        with raises(InvalidInput):
            list(store.walk(["digest="]))

    def test_the_store_may_change_while_it_is_walked(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        for n in range(5):
            put(store, b"%d" % n)
        for record in store.walk():
            store.delete(record.digest)
        assert list(store.walk()) == []

    # Labels

    def test_labels_of_a_blob_are_replaced_together_or_one_by_one(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        made = put(store, b"text", {"a": "1", "b.c/d": "2", "none": ""})
        assert dict(made.labels) == {"a": "1", "b.c/d": "2"}

        changed = store.update(made.digest, {"b.c/d": "3", "x": "4"}, ["labels.b.c/d"])
        assert dict(changed.labels) == {"a": "1", "b.c/d": "3"}
        assert changed.created_at == made.created_at
        assert changed.updated_at > made.updated_at
        assert store.info(made.digest) == changed

        assert dict(store.update(made.digest, {}, ["labels.a"]).labels) == {"b.c/d": "3"}
        assert dict(store.update(made.digest, {"b.c/d": ""}, ["labels.b.c/d"]).labels) == {}
        assert dict(store.update(made.digest, {"p": "1", "q": ""}).labels) == {"p": "1"}
        assert dict(store.update(made.digest, {"r": "2"}, ["labels"]).labels) == {"r": "2"}

    def test_labels_that_are_too_long_and_other_fields_are_refused(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        digest = put(store, b"text", {"k" * 96: "v" * 4000}).digest
        for labels, fields in (({"k": "v" * 4096}, ()), ({"": "v"}, ()), ({}, ("size",)), ({}, ("labels", "digest"))):
            with raises(InvalidInput):
                store.update(digest, labels, fields)
        with store.ingest("a") as ingest:
            ingest.write(b"other")
            with raises(InvalidInput):
                ingest.commit(labels={"k": "\u00e9" * 2048})
        assert dict(store.info(digest).labels) == {"k" * 96: "v" * 4000}
        with raises(NotFound):
            store.info(Digest.of(b"other"))

    # Namespaces

    def test_namespaces_are_isolated(self, tmp_path: Path) -> None:
        contents = self.make(tmp_path)
        one, two = contents("one"), contents("two")
        digest = put(one, b"text", {"a": "b"}).digest
        one.ingest("a").close()
        with raises(NotFound):
            two.info(digest)
        with raises(NotFound):
            two.open(digest)
        with raises(NotFound):
            two.delete(digest)
        assert list(two.walk()) == []
        assert list(two.statuses()) == []

        assert dict(put(two, b"text", {"c": "d"}).labels) == {"c": "d"}
        assert dict(one.info(digest).labels) == {"a": "b"}
        one.delete(digest)
        assert read(two, digest) == b"text"

    def test_a_malformed_namespace_is_refused(self, tmp_path: Path) -> None:
        contents = self.make(tmp_path)
        for name in ("", "a/b", ".", "a..b", "-a", "a" * 77):
            with raises(InvalidInput, Conflict):
                list(contents(name).walk())


class SharedContentTests(ContentSuite):
    """For stores in which a client that knows the digest of a blob may reuse it in another namespace."""

    def test_an_ingest_of_a_blob_of_another_namespace_is_complete_at_once(self, tmp_path: Path) -> None:
        contents = self.make(tmp_path)
        one, two = contents("one"), contents("two")
        digest = put(one, BIG, {"a": "b"}).digest
        with two.ingest("a", expected=digest) as ingest:
            assert (ingest.status().offset, ingest.digest()) == (len(BIG), digest)
            record = ingest.commit(len(BIG), digest, {"c": "d"})
        assert (record.size, dict(record.labels)) == (len(BIG), {"c": "d"})
        one.delete(digest)
        assert read(two, digest) == BIG

    def test_a_shared_ingest_can_be_closed_and_resumed(self, tmp_path: Path) -> None:
        contents = self.make(tmp_path)
        one, two = contents("one"), contents("two")
        digest = put(one, BIG).digest
        two.ingest("a", expected=digest).close()
        with raises(NotFound):
            two.info(digest)
        with resume(two, "a", expected=digest) as ingest:
            assert ingest.status().offset == len(BIG)
            ingest.commit()
        assert read(two, digest) == BIG

    def test_a_shared_ingest_can_be_written_and_truncated(self, tmp_path: Path) -> None:
        contents = self.make(tmp_path)
        one, two = contents("one"), contents("two")
        digest = put(one, BIG).digest
        with two.ingest("longer", expected=digest) as ingest:
            assert ingest.write(b"more") == len(BIG) + 4
            assert ingest.commit(expected=Digest.of(BIG + b"more")).size == len(BIG) + 4
        with two.ingest("shorter", expected=digest) as ingest:
            ingest.truncate(1000)
            assert ingest.digest() == Digest.of(BIG[:1000])
            ingest.commit(1000, Digest.of(BIG[:1000]))
        with two.ingest("again", expected=digest) as ingest:
            ingest.truncate()
            ingest.write(BIG)
            ingest.commit(len(BIG), digest)
        assert read(one, digest) == read(two, digest) == BIG
        assert read(two, Digest.of(BIG + b"more")) == BIG + b"more"

    def test_a_shared_ingest_outlives_the_blob_of_the_other_namespace(self, tmp_path: Path) -> None:
        contents = self.make(tmp_path)
        one, two = contents("one"), contents("two")
        digest = put(one, BIG).digest
        with two.ingest("a", expected=digest) as ingest:
            one.delete(digest)
            ingest.commit()
        assert read(two, digest) == BIG


class IsolatedContentTests(ContentSuite):
    """For stores in which every namespace must receive the bytes of its blobs."""

    def test_an_ingest_of_a_blob_of_another_namespace_starts_empty(self, tmp_path: Path) -> None:
        contents = self.make(tmp_path)
        one, two = contents("one"), contents("two")
        digest = put(one, b"text").digest
        with two.ingest("a", expected=digest) as ingest:
            assert ingest.status().offset == 0
            with raises(Conflict):
                ingest.commit(expected=digest)
            ingest.write(b"text")
            ingest.commit(expected=digest)
        one.delete(digest)
        assert read(two, digest) == b"text"
