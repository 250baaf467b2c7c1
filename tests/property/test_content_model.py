# SPDX-License-Identifier: Apache-2.0
"""The content of two namespaces behaves like two dictionaries, for any sequence of operations."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lamella.digests import Digest
from lamella.errors import AlreadyExists, Conflict, NotFound, Unavailable
from lamella.store.content.store import LocalContent
from lamella.store.contract import Ingest
from lamella.store.store import Store
from lamella.testing.reading import raises

NAMES = st.sampled_from(["one", "two"])
REFS = st.sampled_from(["r", "s"])
TEXTS = st.sampled_from([b"", b"a", b"b", b"ab"])
PARTS = st.sampled_from([b"", b"a", b"b", b"ab" * 5000])
KEYS = st.sampled_from(["k", "l.m/n"])
VALUES = st.sampled_from(["", "1", "2"])


@dataclass
class Model:
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    labels: dict[Digest, dict[str, str]] = field(default_factory=dict)
    ingests: dict[str, bytes] = field(default_factory=dict)
    open: dict[str, Ingest] = field(default_factory=dict)


class ContentMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        # On tmpfs if available: durability does not matter here.
        self.place = tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        self.store = Store.open(f"{self.place.name}/store")
        self.models = {"one": Model(), "two": Model()}

    def teardown(self) -> None:
        for model in self.models.values():
            for ingest in model.open.values():
                ingest.close()
        self.store.close()
        self.place.cleanup()

    def content(self, name: str) -> LocalContent:
        return self.store.namespace(name).content

    @rule(name=NAMES, ref=REFS, data=st.data())
    def open(self, name: str, ref: str, data: st.DataObject) -> None:
        model = self.models[name]
        known = sorted({digest for one in self.models.values() for digest in one.blobs})
        expected = data.draw(st.sampled_from([*known, Digest.of(b"a"), None]))
        if expected in model.blobs:
            with raises(AlreadyExists):
                self.content(name).ingest(ref, expected=expected)
            if ref not in model.open:
                model.ingests.pop(ref, None)
        elif ref in model.open:
            with raises(Unavailable):
                self.content(name).ingest(ref, expected=expected)
        else:
            before = self.content(name).status(ref).expected if ref in model.ingests else None
            ingest = model.open[ref] = self.content(name).ingest(ref, expected=expected)
            shared = [other.blobs.get(expected or before or Digest("")) for other in self.models.values()]
            text = next((one for one in shared if one is not None), model.ingests.get(ref, b""))
            assert ingest.status().offset == len(text)
            model.ingests[ref] = text

    @rule(name=NAMES, text=TEXTS, value=VALUES)
    def put(self, name: str, text: bytes, value: str) -> None:
        model, digest = self.models[name], Digest.of(text)
        with self.content(name).ingest("put") as ingest:
            ingest.write(text)
            if digest in model.blobs:
                with raises(AlreadyExists):
                    ingest.commit()
                return
            ingest.commit(labels={"k": value})
        model.blobs[digest] = text
        model.labels[digest] = {"k": value} if value else {}

    def an_open_one(self) -> bool:
        return any(model.open for model in self.models.values())

    @precondition(an_open_one)
    @rule(data=st.data(), part=PARTS)
    def write(self, data: st.DataObject, part: bytes) -> None:
        model, ref = self.pick(data)
        model.ingests[ref] += part
        assert model.open[ref].write(part) == len(model.ingests[ref])

    @precondition(an_open_one)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        model, ref = self.pick(data)
        offset = data.draw(st.integers(0, len(model.ingests[ref])))
        model.open[ref].truncate(offset)
        model.ingests[ref] = model.ingests[ref][:offset]

    @precondition(an_open_one)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        model, ref = self.pick(data)
        ingest = model.open.pop(ref)
        text = model.ingests[ref]
        if text and self.content(next(n for n, m in self.models.items() if m is model)).status(ref).offset == 0:
            model.ingests[ref] = b""  # shared and not yet copied, so no written bytes can be lost
        ingest.close()

    @precondition(an_open_one)
    @rule(data=st.data(), value=VALUES)
    def commit(self, data: st.DataObject, value: str) -> None:
        model, ref = self.pick(data)
        text, ingest = model.ingests[ref], model.open[ref]
        expected = ingest.status().expected
        digest = Digest.of(text)
        if expected is not None and expected != digest:
            with raises(Conflict):
                ingest.commit()
            return
        del model.ingests[ref], model.open[ref]
        if digest in model.blobs:
            with raises(AlreadyExists):
                ingest.commit()
            return
        record = ingest.commit(len(text), digest, {"k": value})
        model.blobs[digest] = text
        model.labels[digest] = dict(record.labels)
        assert model.labels[digest] == ({"k": value} if value else {})

    def pick(self, data: st.DataObject) -> tuple[Model, str]:
        model = data.draw(st.sampled_from([model for model in self.models.values() if model.open]))
        return model, data.draw(st.sampled_from(sorted(model.open)))

    def an_ingest(self) -> bool:
        return any(model.ingests for model in self.models.values())

    @precondition(an_ingest)
    @rule(name=NAMES, ref=REFS)
    def abort(self, name: str, ref: str) -> None:
        model = self.models[name]
        if ref in model.open:
            with raises(Unavailable):
                self.content(name).abort(ref)
        elif ref in model.ingests:
            self.content(name).abort(ref)
            del model.ingests[ref]
        else:
            with raises(NotFound):
                self.content(name).abort(ref)

    def a_blob(self) -> bool:
        return any(model.blobs for model in self.models.values())

    @precondition(a_blob)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name, digest = self.pick_blob(data)
        del self.models[name].blobs[digest], self.models[name].labels[digest]
        self.content(name).delete(digest)
        with raises(NotFound):
            self.content(name).delete(digest)

    def pick_blob(self, data: st.DataObject) -> tuple[str, Digest]:
        name = data.draw(st.sampled_from([name for name, model in self.models.items() if model.blobs]))
        return name, data.draw(st.sampled_from(sorted(self.models[name].blobs)))

    @precondition(a_blob)
    @rule(data=st.data(), key=KEYS, value=VALUES, masked=st.booleans())
    def label(self, data: st.DataObject, key: str, value: str, masked: bool) -> None:
        name, digest = self.pick_blob(data)
        model = self.models[name]
        labels = {**model.labels[digest], key: value} if masked else {key: value}
        model.labels[digest] = {one: text for one, text in labels.items() if text}
        record = self.content(name).update(digest, {key: value}, [f"labels.{key}"] if masked else [])
        assert record.labels == model.labels[digest]

    @precondition(a_blob)
    @rule()
    def sweep(self) -> None:
        assert self.content("one").sweep().files == 0

    @invariant()
    def the_store_holds_what_the_model_does(self) -> None:
        for name, model in self.models.items():
            content = self.content(name)
            assert {record.digest: record.labels for record in content.walk()} == model.labels
            for digest, text in model.blobs.items():
                with content.open(digest) as file:
                    assert file.read() == text
            assert [status.ref for status in content.statuses()] == sorted(model.ingests)
            for ref, ingest in model.open.items():
                assert ingest.status().offset == len(model.ingests[ref])
                assert ingest.digest() == Digest.of(model.ingests[ref])
        digests = {digest for model in self.models.values() for digest in model.blobs}
        files = {f"{path.parent.name}:{path.name}" for path in (self.store.root / "blobs").glob("*/*")}
        assert files == digests


TestContent = ContentMachine.TestCase
TestContent.settings = settings(max_examples=40, stateful_step_count=30)
