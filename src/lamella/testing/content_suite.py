# SPDX-License-Identifier: Apache-2.0
"""What every content store promises, whoever keeps it."""

from __future__ import annotations

from pathlib import Path

from lamella.digests import Digest
from lamella.errors import Conflict, InvalidInput, NotFound
from lamella.testing.ingest_suite import BIG, NOTHING, ContentSuite, IngestTests, digests, put, read, resume
from lamella.testing.reading import raises


class ContentStoreTests(IngestTests):
    """Bind with ``make``, which gives an empty store."""

    # Blobs

    def test_a_blob_is_there_once_it_is_committed(self, tmp_path: Path) -> None:
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

    def test_an_empty_blob_is_one(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        with store.ingest("a", expected=NOTHING) as ingest:
            assert ingest.digest() == NOTHING
            assert ingest.commit(expected=NOTHING).size == 0
        assert read(store, NOTHING) == b""

    def test_a_blob_is_read_from_anywhere(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        digest = put(store, BIG).digest
        with store.open(digest) as file:
            for at, size in ((5, 10), (len(BIG) - 3, 10), (0, 1), (1 << 20, 70_000), (len(BIG), 4), (len(BIG) + 9, 4)):
                file.seek(at)
                assert file.read(size) == BIG[at : at + size]

    def test_what_is_open_can_be_read_after_the_blob_is_deleted(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        digest = put(store, BIG).digest
        with store.open(digest) as file:
            store.delete(digest)
            with raises(NotFound):
                store.open(digest)
            assert file.read() == BIG

    def test_what_is_not_there_is_not_found(self, tmp_path: Path) -> None:
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

    def test_a_deleted_blob_can_be_put_again(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)("one")
        digest = put(store, b"text", {"a": "b"}).digest
        store.delete(digest)
        assert list(store.walk()) == []
        assert dict(put(store, b"text").labels) == {}
        assert read(store, digest) == b"text"

    def test_walking_goes_by_digest_and_heeds_filters(self, tmp_path: Path) -> None:
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

    def test_labels_are_replaced_or_changed_one_by_one(self, tmp_path: Path) -> None:
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

    def test_namespaces_do_not_see_each_other(self, tmp_path: Path) -> None:
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
    """For a store whose namespaces share what one of them has, for whoever knows the digest."""

    def test_an_ingest_of_what_another_namespace_has_is_whole_at_once(self, tmp_path: Path) -> None:
        contents = self.make(tmp_path)
        one, two = contents("one"), contents("two")
        digest = put(one, BIG, {"a": "b"}).digest
        with two.ingest("a", expected=digest) as ingest:
            assert (ingest.status().offset, ingest.digest()) == (len(BIG), digest)
            record = ingest.commit(len(BIG), digest, {"c": "d"})
        assert (record.size, dict(record.labels)) == (len(BIG), {"c": "d"})
        one.delete(digest)
        assert read(two, digest) == BIG

    def test_it_can_be_closed_and_resumed(self, tmp_path: Path) -> None:
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

    def test_it_can_be_written_to_and_cut(self, tmp_path: Path) -> None:
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

    def test_it_outlives_the_blob_of_the_other_namespace(self, tmp_path: Path) -> None:
        contents = self.make(tmp_path)
        one, two = contents("one"), contents("two")
        digest = put(one, BIG).digest
        with two.ingest("a", expected=digest) as ingest:
            one.delete(digest)
            ingest.commit()
        assert read(two, digest) == BIG


class IsolatedContentTests(ContentSuite):
    """For a store whose namespaces must be sent the bytes."""

    def test_an_ingest_of_what_another_namespace_has_starts_empty(self, tmp_path: Path) -> None:
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
