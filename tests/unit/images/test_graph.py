# SPDX-License-Identifier: Apache-2.0
"""The image graph visits each document once, within its limits, and refuses cycles and contradictory types."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from typing import Any, BinaryIO

import pytest

from lamella.digests import Digest, parse_digest
from lamella.errors import Cancelled, Conflict, InvalidInput, LamellaError, NotFound, Unsupported
from lamella.images.contract import ImageReader, StoredImage
from lamella.images.graph import GraphLimit, ImageGraph, Kind, Limits, Node, all_parts, only_entries
from lamella.images.resolve import choose_platform
from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import decode
from lamella.oci.platform import parse_platform
from lamella.progress import Cancellation
from lamella.testing.images import OCI, compact, digest, index_lattice, index_of, small_image

INDEX = OCI + "index.v1+json"
MANIFEST = OCI + "manifest.v1+json"
AMD = small_image({"a": b"amd"}, {"b": b"2"})
ARM = small_image({"a": b"arm"}, {"b": b"2"}, platform="linux/arm64")


class FakeReader(ImageReader):
    """Blobs in memory, whose digests nobody checks; counts how often each document is read."""

    where = "nowhere"

    def __init__(self, blobs: Mapping[str, bytes], listed: Sequence[Descriptor] = ()) -> None:
        self._blobs = blobs
        self._listed = listed
        self.reads: Counter[str] = Counter()

    def images(self) -> Sequence[StoredImage]:
        return [StoredImage((), one) for one in self._listed]

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        try:
            return BytesIO(self._blobs[descriptor.digest])
        except KeyError:
            raise NotFound(f"no {descriptor.digest}") from None

    def read_document(self, descriptor: Descriptor) -> bytes:
        self.reads[descriptor.digest] += 1
        return self.open_blob(descriptor).read()


def described(entry: Mapping[str, Any]) -> Descriptor:
    return decode(Descriptor, compact(entry), "entry")


def named(name: str) -> str:
    return digest(name.encode())


def entry(name: str, media_type: str = INDEX, **fields: object) -> dict[str, Any]:
    """An entry of a graph in which digests stand for names and not for bytes."""
    return {"mediaType": media_type, "digest": named(name), "size": 1, **fields}


def index(*entries: Mapping[str, Any]) -> bytes:
    return compact({"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries)})


def digests(nodes: Iterable[Node]) -> list[Digest]:
    return [node.digest for node in nodes]


class TestWalk:
    def test_parts_come_before_what_lists_them_and_each_once(self) -> None:
        top, raw = index_of(AMD, ARM)
        reader = FakeReader({**AMD.blobs, **ARM.blobs, top["digest"]: raw})
        found = digests(ImageGraph(reader).walk([described(top)]))
        assert set(found) == {*AMD.blobs, *ARM.blobs, top["digest"]}
        assert len(found) == len(set(found))
        assert found[-1] == top["digest"]
        manifest = found.index(parse_digest(AMD.descriptor["digest"]))
        assert all(found.index(parse_digest(part["digest"])) < manifest for part in AMD.manifest["layers"])

    def test_each_document_of_a_wide_deep_graph_is_read_once(self) -> None:
        top, blobs = index_lattice(6, 8, AMD, ARM)
        reader = FakeReader(blobs)
        graph = ImageGraph(reader)
        assert len(digests(graph.walk([described(top)]))) == len(blobs)
        assert len(list(graph.entries([described(top)]))) == 6 * 2
        assert graph.raw(described(top)) == blobs[top["digest"]]
        assert set(reader.reads.values()) == {1}
        assert len(reader.reads) == 1 + 7 * 6 + 2

    def test_only_documents_that_are_selected_from_are_read(self) -> None:
        top, raw = index_of(AMD, ARM)
        reader = FakeReader({top["digest"]: raw})
        found = digests(ImageGraph(reader).walk([described(top)], only_entries))
        assert found == [AMD.descriptor["digest"], ARM.descriptor["digest"], top["digest"]]
        assert reader.reads == {top["digest"]: 1}

    def test_a_cycle_is_refused(self) -> None:
        blobs = {named("a"): index(entry("b")), named("b"): index(entry("c")), named("c"): index(entry("a"))}
        with pytest.raises(GraphLimit, match=f"nowhere: index {named('a')} contains itself"):
            digests(ImageGraph(FakeReader(blobs)).walk([described(entry("a"))]))

    def test_a_cycle_through_an_entry_that_was_read_before_is_refused(self) -> None:
        blobs = {named("a"): index(entry("b")), named("b"): index(entry("a"))}
        graph = ImageGraph(FakeReader(blobs))
        with pytest.raises(GraphLimit, match="contains itself"):
            digests(graph.walk(graph.index(described(entry("a"))).manifests))

    @pytest.mark.parametrize("entries", [["deep", "shared"], ["shared", "deep"]])
    def test_the_longest_path_counts_for_the_depth_in_either_order(self, entries: list[str]) -> None:
        blobs = {
            named("top"): index(*map(entry, entries)),
            named("deep"): index(entry("shared")),
            named("shared"): index(entry("low")),
            named("low"): index(),
        }
        top = [described(entry("top"))]
        assert len(digests(ImageGraph(FakeReader(blobs), limits=Limits(depth=4)).walk(top))) == 4
        with pytest.raises(GraphLimit, match="nested deeper than 3 levels"):
            digests(ImageGraph(FakeReader(blobs), limits=Limits(depth=3)).walk(top))

    def test_a_chain_of_thousands_of_indexes_is_refused(self) -> None:
        blobs = {named(str(level)): index(entry(str(level + 1))) for level in range(3000)}
        reader = FakeReader(blobs)
        with pytest.raises(Unsupported, match="nested deeper than 8 levels"):
            digests(ImageGraph(reader).walk([described(entry("0"))]))
        assert len(reader.reads) == 8

    def test_documents_are_bounded_by_number_and_by_size(self) -> None:
        blobs = {named("top"): index(*[entry(f"{number}") for number in range(20)])}
        blobs.update((named(f"{number}"), index()) for number in range(20))
        top = [described(entry("top"))]
        assert len(digests(ImageGraph(FakeReader(blobs), limits=Limits(documents=21)).walk(top))) == 21
        with pytest.raises(GraphLimit, match="more than 20 indexes and manifests"):
            digests(ImageGraph(FakeReader(blobs), limits=Limits(documents=20)).walk(top))
        with pytest.raises(GraphLimit, match="more than 20 bytes of indexes and manifests"):
            digests(ImageGraph(FakeReader(blobs), limits=Limits(size=20)).walk(top))

    @pytest.mark.parametrize("types", [["application/octet-stream", MANIFEST], [MANIFEST, "application/octet-stream"]])
    def test_one_digest_listed_as_a_blob_and_as_a_manifest_is_refused(self, types: list[str]) -> None:
        entries = [{**AMD.descriptor, "mediaType": media_type} for media_type in types]
        blobs = {**AMD.blobs, named("top"): index(*entries)}
        with pytest.raises(InvalidInput, match=f"{AMD.descriptor['digest']} is listed as a (blob|manifest) and as a"):
            digests(ImageGraph(FakeReader(blobs)).walk([described(entry("top"))]))

    def test_one_digest_listed_with_two_sizes_is_refused(self) -> None:
        blobs = {**AMD.blobs, named("top"): index(AMD.descriptor, {**AMD.descriptor, "size": 7})}
        with pytest.raises(InvalidInput, match=r"is listed with \d+ and with 7 bytes"):
            digests(ImageGraph(FakeReader(blobs)).walk([described(entry("top"))]))

    def test_a_manifest_that_is_asked_for_as_an_index_is_refused(self) -> None:
        graph = ImageGraph(FakeReader(AMD.blobs))
        graph.manifest(described(AMD.descriptor))
        with pytest.raises(InvalidInput, match="is a manifest, and is listed as an index"):
            graph.index(described({**AMD.descriptor, "mediaType": INDEX}))

    def test_problems_of_single_nodes_are_collected(self) -> None:
        top, raw = index_of(AMD, ARM)
        problems: list[tuple[str, str]] = []

        def record(descriptor: Descriptor, error: LamellaError) -> None:
            problems.append((descriptor.digest, str(error)))

        missing = ARM.descriptor["digest"]
        reader = FakeReader({**AMD.blobs, top["digest"]: raw})
        found = digests(ImageGraph(reader).walk([described(top)], all_parts, record))
        assert problems == [(missing, f"no {missing}")]
        assert set(found) == {*AMD.blobs, top["digest"]}

    def test_a_limit_ends_a_walk_that_collects_problems(self) -> None:
        blobs = {named("top"): index(*[entry(f"{number}") for number in range(20)])}
        problems: list[LamellaError] = []
        graph = ImageGraph(FakeReader(blobs), limits=Limits(documents=0))
        assert digests(graph.walk([described(entry("top"))], problem=lambda _, error: problems.append(error))) == []
        assert [type(one) for one in problems] == [GraphLimit]

    def test_cancellation_ends_a_walk(self) -> None:
        top, blobs = index_lattice(2, 2, AMD)
        cancel = Cancellation()
        nodes = ImageGraph(FakeReader(blobs), cancel=cancel).walk([described(top)], problem=lambda *_: None)
        next(nodes)
        cancel.cancel()
        with pytest.raises(Cancelled):
            next(nodes)


class TestEntries:
    def test_nested_indexes_are_flattened_in_order_with_the_platforms_above(self) -> None:
        blobs = {
            named("top"): index(
                entry("one", MANIFEST),
                entry("inner", platform={"os": "linux", "architecture": "riscv64"}),
                entry("x", "y/z"),
            ),
            named("inner"): index(entry("two", MANIFEST)),
        }
        found = list(ImageGraph(FakeReader(blobs)).entries([described(entry("top"))]))
        assert [(one.digest, str(one.platform)) for one in found] == [
            (named("one"), "None"),
            (named("two"), "linux/riscv64"),
            (named("x"), "None"),
        ]

    def test_an_image_comes_again_for_each_of_its_platforms(self) -> None:
        entries = [
            {**AMD.descriptor, "platform": {"os": "linux", "architecture": name}} for name in ("amd64", "riscv64")
        ]
        top = {**entry("top")}
        reader = FakeReader({**AMD.blobs, named("top"): index(*entries)}, [described(top)])
        found = choose_platform(ImageGraph(reader), platform=parse_platform("linux/riscv64"))
        assert str(found.descriptor.platform) == "linux/riscv64"


class TestCompleteness:
    def check(self, blobs: Mapping[str, bytes], lacking: str = "") -> list[Digest]:
        graph = ImageGraph(FakeReader(blobs))
        top = next(one for one, raw in blobs.items() if b"manifests" in raw)
        walk = graph.check_complete(described(entry("", digest=top)), lambda blob: blob.digest != lacking)
        return digests(walk)

    def test_what_is_complete_is_walked(self) -> None:
        top, raw = index_of(AMD)
        assert self.check({**AMD.blobs, top["digest"]: raw}) == [AMD.descriptor["digest"], top["digest"]]

    def test_a_missing_manifest_or_layer_is_a_conflict(self) -> None:
        top, raw = index_of(AMD)
        layer = AMD.manifest["layers"][1]["digest"]
        blobs = {**AMD.blobs, top["digest"]: raw}
        with pytest.raises(Conflict, match=f"{top['digest']} was not put"):
            self.check(blobs, top["digest"])
        with pytest.raises(Conflict, match=f"{AMD.descriptor['digest']}, a part of {top['digest']}, was not put"):
            self.check(blobs, AMD.descriptor["digest"])
        with pytest.raises(Conflict, match=f"{layer}, a part of {AMD.descriptor['digest']}, was not put"):
            self.check(blobs, layer)

    def test_non_distributable_layers_may_be_missing(self) -> None:
        foreign = {**AMD.manifest["layers"][0], "mediaType": OCI + "layer.nondistributable.v1.tar+gzip"}
        manifest = compact({**AMD.manifest, "layers": [foreign]})
        blobs = {**AMD.blobs, digest(manifest): manifest}
        top = index({"mediaType": MANIFEST, "digest": digest(manifest), "size": len(manifest)})
        assert len(self.check({**blobs, digest(top): top}, foreign["digest"])) == 2


def test_a_node_says_how_its_blob_is_read() -> None:
    graph = ImageGraph(FakeReader(AMD.blobs))
    nodes = {node.digest: node for node in graph.walk([described(AMD.descriptor)])}
    manifest = nodes[parse_digest(AMD.descriptor["digest"])]
    assert manifest.kind is Kind.MANIFEST
    assert [part.digest for part in manifest.parts] == [
        AMD.manifest["config"]["digest"],
        *[layer["digest"] for layer in AMD.manifest["layers"]],
    ]
    assert {node.kind for node in nodes.values() if node is not manifest} == {Kind.BLOB}
    assert json.loads(AMD.blobs[manifest.manifest.config.digest])["os"] == "linux"
