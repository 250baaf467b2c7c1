# SPDX-License-Identifier: Apache-2.0
"""Hostile graphs of images: no verb reads a document again and again, follows a cycle or drops part of an image."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from tests.registry.hostile import Registry

import lamella
from lamella.changes.job import Job
from lamella.digests import parse_digest
from lamella.errors import Cancelled, InvalidInput
from lamella.images.contract import ImageReader
from lamella.images.graph import GraphLimit, ImageGraph
from lamella.images.transports import open_reader, open_writer, parse_image_name
from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import decode
from lamella.oci.index import Index
from lamella.operations.store.transfer import ImportOptions, export_image, import_image
from lamella.operations.surgery.convert import ConvertOptions, convert
from lamella.operations.surgery.index import rewrite_index
from lamella.operations.surgery.mutate import Settings
from lamella.operations.verify import Verified
from lamella.progress import Cancellation
from lamella.protocol.proto.transfers_pb2 import ImageReference, ImageStore
from lamella.service.services.transfer.archive_export import export_archive
from lamella.service.services.transfer.archive_import import import_archive
from lamella.store.check.check import check
from lamella.store.contract import ImageRecord
from lamella.store.image_writer import StoreWriter
from lamella.store.metadata.leases import under_lease
from lamella.store.store import LocalNamespace, Store
from lamella.testing.images import OCI, compact, digest, index_lattice, small_image, tagged, write_layout

AMD: Final = small_image({"a": b"amd"}, {"shared": b"2"})
ARM: Final = small_image({"a": b"arm"}, {"shared": b"2"}, platform="linux/arm64")
INDEX: Final = OCI + "index.v1+json"
MANIFEST: Final = OCI + "manifest.v1+json"
STORED: Final = "example.org/app:1"
PATIENCE: Final = 30.0
"""Seconds. A walk that remembers nothing takes days."""


class Place:
    """A directory with the layout that a verb reads, a store, and names for results."""

    def __init__(self, root: Path, store: Store) -> None:
        self.root = root
        self.store = store
        self.space = store.namespace("default")
        self.name = f"oci:{root}/source:app"

    def layout(self, top: Mapping[str, Any], blobs: Mapping[str, bytes]) -> None:
        """Write the image that `name` names."""
        write_layout(str(self.root / "source"), [tagged(top, "app")], blobs)

    def keep(self, top: Mapping[str, Any], blobs: Mapping[str, bytes]) -> None:
        """Store blobs and name ``top``, without checking that the image is complete."""
        with StoreWriter(self.space) as writer:
            for name, raw in blobs.items():
                writer.put_blob(Descriptor(media_type="", digest=parse_digest(name), size=len(raw)), [raw])
            self.space.images.create(ImageRecord(STORED, described(top)))

    @property
    def target(self) -> str:
        return f"oci:{self.root}/target:out"

    def archive(self) -> Path:
        """The source as an archive."""
        path = self.root / "source.tar"
        lamella.copy(self.name, f"oci-archive:{path}:example.org/app:1", all_platforms=True)
        return path


def described(entry: Mapping[str, Any]) -> Descriptor:
    return decode(Descriptor, compact(entry), "entry")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("LAMELLA_ROOT", str(tmp_path / "store"))
    with Store.open(tmp_path / "store") as store:
        yield Place(tmp_path, store)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often each document is read, by any reader."""
    counted: Counter[str] = Counter()
    original = ImageReader.read_document

    def count(self: ImageReader, descriptor: Descriptor) -> bytes:
        counted[descriptor.digest] += 1
        return original(self, descriptor)

    monkeypatch.setattr(ImageReader, "read_document", count)
    return counted


def inspect(place: Place) -> object:
    with lamella.open_image(place.name, "linux/amd64") as image:
        return image.describe()


def unpack(place: Place) -> object:
    with lamella.open_image(place.name, "linux/amd64") as image:
        return image.unpack(place.root / "unpacked")


FROM_A_NAME: Final[dict[str, Callable[[Place], object]]] = {
    "copy --all": lambda place: lamella.copy(place.name, place.target, all_platforms=True),
    "copy --all to an archive": lambda place: lamella.copy(
        place.name, f"oci-archive:{place.root}/out.tar", all_platforms=True
    ),
    "copy": lambda place: lamella.copy(place.name, place.target, platform="linux/amd64"),
    "subset": lambda place: lamella.subset(place.name, place.target, ["linux/arm64"]),
    "index": lambda place: lamella.index([place.name], place.target),
    "convert --all": lambda place: convert(
        place.name, place.target, ConvertOptions(compression="none", all_platforms=True)
    ),
    "convert": lambda place: convert(
        place.name, place.target, ConvertOptions(compression="none", platform="linux/amd64")
    ),
    "inspect": inspect,
    "unpack": unpack,
    "mutate": lambda place: lamella.mutate(place.name, place.target, Settings(user="1"), platform="linux/amd64"),
    "append": lambda place: lamella.append(
        place.name, {"x": b"1"}, place.target, lamella.AppendOptions(platform="linux/amd64")
    ),
    "flatten": lambda place: lamella.flatten(
        place.name, place.target, options=lamella.FlattenOptions(platform="linux/amd64")
    ),
    "rebase": lambda place: lamella.rebase(
        place.name, place.target, old_base=place.name, new_base=place.name, platform="linux/amd64"
    ),
    "store import --all": lambda place: import_image(
        place.space, place.name, ImportOptions(name="app", all_platforms=True)
    ),
    "store import --unpack": lambda place: import_image(
        place.space, place.name, ImportOptions(name="app", platform="linux/amd64")
    ),
}
"""Verbs that read a layout, as functions of the library."""


def export_stream(space: LocalNamespace, cancel: Cancellation | None = None) -> bytes:
    """The archive that 'ctr images export' receives."""
    out = io.BytesIO()
    with under_lease(space) as held:
        export_archive(held, [STORED], out.write, None, job=Job(cancel=cancel))
    return out.getvalue()


FROM_THE_STORE: Final[dict[str, Callable[[Place], object]]] = {
    "store export --all": lambda place: export_image(place.space, STORED, place.target, all_platforms=True),
    "store export": lambda place: export_image(place.space, STORED, place.target, platform="linux/amd64"),
    "ctr images export": lambda place: export_stream(place.space),
}


@pytest.mark.parametrize("verb", FROM_A_NAME)
def test_each_verb_reads_a_wide_deep_index_once(verb: str, place: Place, reads: Counter[str]) -> None:
    top, blobs = index_lattice(6, 8, AMD, ARM)
    place.layout(top, blobs)
    start = time.monotonic()
    FROM_A_NAME[verb](place)
    assert time.monotonic() - start < PATIENCE
    # A rebase opens three images; a writer reads its documents once more before it names the image.
    assert max(reads.values()) <= (4 if verb == "rebase" else 2)
    assert reads[top["digest"]] >= 1


@pytest.mark.parametrize("verb", FROM_THE_STORE)
def test_each_verb_of_the_store_reads_a_wide_deep_index_once(verb: str, place: Place, reads: Counter[str]) -> None:
    top, blobs = index_lattice(6, 8, AMD, ARM)
    place.keep(top, blobs)
    start = time.monotonic()
    FROM_THE_STORE[verb](place)
    assert time.monotonic() - start < PATIENCE
    assert max(reads.values()) <= 2
    assert reads[top["digest"]] >= 1


def test_verify_and_store_check_read_a_wide_deep_index_once(place: Place, reads: Counter[str]) -> None:
    top, blobs = index_lattice(6, 8, AMD, ARM)
    place.layout(top, blobs)
    assert lamella.verify(place.name) == Verified(images=2, blobs=len(blobs), size=sum(map(len, blobs.values())))
    assert set(reads.values()) == {1}
    place.keep(top, blobs)
    reads.clear()
    assert check(place.store).faults == ()
    assert set(reads.values()) == {1}


def test_push_and_pull_transfer_a_wide_deep_index_once(place: Place) -> None:
    top, blobs = index_lattice(6, 8, AMD, ARM)
    place.layout(top, blobs)
    with Registry() as registry:
        name = f"docker://{registry.host}/app:1"
        lamella.copy(place.name, name, all_platforms=True)
        lamella.copy(name, place.target, all_platforms=True)
        asked = Counter(request.path for request in registry.requests if request.method == "GET")
        assert max(count for path, count in asked.items() if "/manifests/" in path) <= 2
    assert lamella.verify(place.target).sound


def test_an_archive_of_a_wide_deep_index_is_imported_by_the_service(place: Place, reads: Counter[str]) -> None:
    top, blobs = index_lattice(6, 8, AMD, ARM)
    place.layout(top, blobs)
    archive = place.archive()
    reads.clear()
    destination = ImageStore(extra_references=[ImageReference(name="example.org/app", is_prefix=True)])
    with under_lease(place.space) as held, archive.open("rb") as file:
        named = import_archive(held, file.fileno(), destination, [])
    assert [(name, entry.digest) for name, entry in named] == [(STORED, top["digest"])]
    assert set(reads.values()) == {1}


@pytest.fixture
def cycle(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source, in a layout and in the store, of two indexes that list each other, as readers without digests see it.

    The blobs behind the two digests exist, and hold something else.
    """
    platform = {"os": "linux", "architecture": "amd64"}
    entries = {
        name: {"mediaType": INDEX, "digest": digest(name.encode()), "size": 1, "platform": platform} for name in "ab"
    }
    lies = {
        entries[one]["digest"]: compact({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entries[other]]})
        for one, other in ("ab", "ba")
    }
    blobs = {digest(name.encode()): name.encode() for name in "ab"}
    place.layout(entries["a"], blobs)
    place.keep(entries["a"], blobs)
    monkeypatch.setattr(ImageReader, "read_document", lambda _, descriptor: lies[descriptor.digest])


@pytest.mark.usefixtures("cycle")
@pytest.mark.parametrize("verb", [*FROM_A_NAME, *FROM_THE_STORE])
def test_each_verb_refuses_a_cycle(verb: str, place: Place) -> None:
    with pytest.raises(GraphLimit, match="contains itself"):
        {**FROM_A_NAME, **FROM_THE_STORE}[verb](place)


@pytest.mark.usefixtures("cycle")
def test_verify_and_store_check_report_a_cycle(place: Place) -> None:
    (problem,) = lamella.verify(place.name).problems
    assert "contains itself" in problem.why
    assert [fault.id for fault in check(place.store).faults if fault.type == "images"] == [STORED]


def test_verify_reports_thousands_of_nested_indexes(place: Place) -> None:
    top, blobs = index_lattice(1, 3000, AMD)
    place.layout(top, blobs)
    found = lamella.verify(place.name)
    assert [problem.why for problem in found.problems] == [
        f"oci:{place.root}/source: indexes are nested deeper than 8 levels"
    ]


def test_thousands_of_referrers_of_other_images_take_linear_time(place: Place) -> None:
    referrers = [
        {
            **AMD.descriptor,
            "digest": digest(str(number).encode()),
            "annotations": {"vnd.docker.reference.digest": digest(b"no image here"), "number": str(number)},
            "platform": {"os": "unknown", "architecture": "unknown"},
        }
        for number in range(8000)
    ]
    images = [{**AMD.descriptor, "digest": digest(f"image {number}".encode())} for number in range(8000)]
    raw = compact({"schemaVersion": 2, "mediaType": INDEX, "manifests": [*images, *referrers]})
    top = {"mediaType": INDEX, "digest": digest(raw), "size": len(raw)}
    place.layout(top, {digest(raw): raw})

    class Keep:
        def index(self, index: Index) -> Index:
            return index

        def image(self, entry: Descriptor) -> Descriptor:
            return entry

        def other(self, entry: Descriptor) -> bool:
            return "7" not in entry.annotations["number"]

    with open_reader(parse_image_name(place.name)) as reader, open_writer(parse_image_name(place.target)) as writer:
        graph = ImageGraph(reader)
        graph.index(described(top))  # decoding time does not count
        start = time.monotonic()
        rewrite_index(graph, writer, described(top), Keep())
        assert time.monotonic() - start < 3


class TestContradictoryTypes:
    """One digest is listed as a plain blob first, then as the manifest that it is."""

    @pytest.fixture
    def top(self, place: Place) -> Mapping[str, Any]:
        entries = [{**AMD.descriptor, "mediaType": kind} for kind in ("application/octet-stream", MANIFEST)]
        raw = compact({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
        top = {"mediaType": INDEX, "digest": digest(raw), "size": len(raw)}
        place.layout(top, {**AMD.blobs, digest(raw): raw})
        return top

    @pytest.mark.parametrize("verb", ["copy --all", "store import --all"])
    def test_no_incomplete_copy_is_made(self, verb: str, place: Place, top: Mapping[str, Any]) -> None:
        with pytest.raises(InvalidInput, match="is listed as a blob and as a manifest"):
            FROM_A_NAME[verb](place)
        assert not list(place.space.images.list())
        assert not (place.root / "target/index.json").exists()

    def test_verify_and_store_check_report_an_incomplete_copy(self, place: Place, top: Mapping[str, Any]) -> None:
        (problem,) = lamella.verify(place.name).problems
        assert "is listed as a blob and as a manifest" in problem.why
        raw = (place.root / "source/blobs" / top["digest"].replace(":", "/")).read_bytes()
        place.keep(top, {**AMD.blobs, top["digest"]: raw})
        assert [fault.id for fault in check(place.store).faults] == [STORED]

    def test_verify_finds_a_flipped_byte_behind_two_entries_of_a_layout(self, place: Place) -> None:
        blobs = dict(AMD.blobs)
        layer = AMD.manifest["layers"][0]["digest"]
        blobs[layer] = blobs[layer][:-1] + bytes([blobs[layer][-1] ^ 1])
        plain = {**AMD.descriptor, "mediaType": "application/octet-stream"}
        write_layout(str(place.root / "source"), [plain, AMD.descriptor], blobs)
        assert [problem.blob for problem in lamella.verify(f"oci:{place.root}/source").problems] == [layer]


class TestCancellation:
    """The service ends its work when the client of the call has gone."""

    @pytest.fixture
    def gone(self) -> Cancellation:
        cancel = Cancellation()
        cancel.cancel()
        return cancel

    def test_an_export_ends_before_it_reads(self, place: Place, reads: Counter[str], gone: Cancellation) -> None:
        place.keep(AMD.descriptor, AMD.blobs)
        with pytest.raises(Cancelled):
            export_stream(place.space, gone)
        assert reads == {}

    def test_an_export_ends_within_a_blob(self, place: Place) -> None:
        image = small_image({"big": bytes(5 << 20)}, compress=False)
        place.keep(image.descriptor, image.blobs)
        cancel = Cancellation()
        sent: list[int] = []

        def write(data: bytes | bytearray | memoryview) -> None:
            sent.append(len(data))
            cancel.cancel()

        with under_lease(place.space) as held, pytest.raises(Cancelled):
            export_archive(held, [STORED], write, None, job=Job(cancel=cancel))
        assert sum(sent) < 1 << 20

    def test_an_import_ends_while_it_looks_for_members(self, place: Place, gone: Cancellation) -> None:
        place.layout(AMD.descriptor, AMD.blobs)
        archive = place.archive()
        with under_lease(place.space) as held, archive.open("rb") as file, pytest.raises(Cancelled):
            import_archive(held, file.fileno(), ImageStore(name=STORED), [], job=Job(cancel=gone))
