# SPDX-License-Identifier: Apache-2.0
"""The Diff service."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.timestamp_pb2 import Timestamp
from tests.unit.service.serving import Client, Served, Stub, code_of, failure, within

from lamella.changes.model import Change
from lamella.digests import Digest
from lamella.errors import AlreadyExists
from lamella.host.mounting import mount_points
from lamella.oci.mediatypes import (
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_LAYER_ZSTD,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    layer_compression,
)
from lamella.operations.layers.write import LayerOptions, write_layer
from lamella.protocol.mounts import sent, typed
from lamella.protocol.proto import diff_pb2 as pb
from lamella.protocol.proto.types_pb2 import Descriptor
from lamella.service.differs.posix import added_layer
from lamella.service.services.diff import UNCOMPRESSED
from lamella.store.contract import BindMount, Mount, OverlayMount
from lamella.store.snapshots.snapshotter import LocalSnapshots
from lamella.testing.builders import directory, file, symlink, whiteout

BASE: Final[list[Change]] = [
    directory("etc"),
    file("etc/kept", b"kept"),
    file("etc/gone", b"gone"),
    symlink("way", "etc"),
]
UPPER: Final[list[Change]] = [whiteout("etc/gone"), file("way/new", b"new")]
NOBODY: Final = "sha256:" + "0" * 64


@pytest.fixture
def stub(client: Client) -> Stub:
    return Stub(client.channel, pb.DESCRIPTOR)


@pytest.fixture(autouse=True)
def nothing_stays_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    assert mount_points(str(tmp_path)) == []
    assert list(tmp_path.glob("lamella-*")) == []


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return an empty directory."""
    tree = tmp_path / "tree"
    tree.mkdir()
    return tree


def stored(served: Served, changes: Sequence[Change], media_type: str = OCI_LAYER_GZIP) -> tuple[Descriptor, Digest]:
    """A layer in the store, and its diff id."""
    blob = io.BytesIO()
    compression: str = layer_compression(media_type)
    facts = write_layer(changes, blob, LayerOptions(compression=compression)).facts
    return put(served, blob.getvalue(), media_type), facts.diff_id


def put(served: Served, data: bytes, media_type: str = OCI_LAYER_GZIP) -> Descriptor:
    with served.store.namespace("default").content.ingest("ref") as ingest:
        ingest.write(data)
        with contextlib.suppress(AlreadyExists):
            ingest.commit()
    return Descriptor(media_type=media_type, digest=Digest.of(data), size=len(data))


def apply(stub: Stub, layer: Descriptor, mounts: tuple[Mount, ...], **further: Any) -> Descriptor:
    request = pb.ApplyRequest(diff=layer, mounts=sent(mounts), **further)
    applied: Descriptor = stub.Apply(request, metadata=within()).applied
    return applied


def make(stub: Stub, left: tuple[Mount, ...], right: tuple[Mount, ...], **further: Any) -> Descriptor:
    request = pb.DiffRequest(left=sent(left), right=sent(right), **further)
    made: Descriptor = stub.Diff(request, metadata=within()).diff
    return made


def snapshots(served: Served, kind: str = "overlayfs") -> LocalSnapshots:
    return served.store.namespace("default").snapshots(kind)


def unpacked(stub: Stub, served: Served, kind: str = "overlayfs") -> LocalSnapshots:
    """Two layers, as a client unpacks them."""
    kept = snapshots(served, kind)
    for parent, name, changes in (("", "base", BASE), ("base", "upper", UPPER)):
        layer, diff_id = stored(served, changes)
        applied = apply(stub, layer, kept.prepare("key", parent))
        assert (OCI_LAYER, diff_id) == (applied.media_type, applied.digest)
        kept.commit(name, "key")
    return kept


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def members(served: Served, made: Descriptor) -> list[str]:
    with served.store.namespace("default").content.open(Digest(made.digest)) as blob:
        data = blob.read()
    assert (made.digest, made.size) == (f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [member.name for member in archive]


class TestApply:
    @pytest.mark.parametrize(
        "media_type",
        [OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, DOCKER_LAYER, DOCKER_LAYER_GZIP, DOCKER_LAYER_ZSTD],
    )
    def test_any_layer_applies_to_a_directory(self, media_type: str, stub: Stub, served: Served, tree: Path) -> None:
        layer, diff_id = stored(served, BASE, media_type)
        applied = apply(stub, layer, (BindMount(tree),), sync_fs=True)
        assert {"etc", "etc/kept", "etc/gone", "way"} == names(tree)
        assert (OCI_LAYER, diff_id) == (applied.media_type, applied.digest)

    def test_the_answer_is_of_all_bytes_of_the_tar(self, stub: Stub, served: Served, tmp_path: Path) -> None:
        blob = io.BytesIO()
        write_layer(BASE, blob, LayerOptions(compression="none"))
        tar = blob.getvalue() + bytes(20_480) + b"what nobody reads"
        layer = put(served, gzip.compress(tar))
        applied = apply(stub, layer, (BindMount(tmp_path),))
        assert (Digest.of(tar), len(tar)) == (applied.digest, applied.size)

    def test_what_the_content_is_counts(self, stub: Stub, served: Served, tmp_path: Path) -> None:
        layer, diff_id = stored(served, BASE)
        layer.media_type = DOCKER_LAYER
        assert diff_id == apply(stub, layer, (BindMount(tmp_path),)).digest

    def test_layers_lie_in_upper_directories(self, stub: Stub, served: Served) -> None:
        kept = unpacked(stub, served)
        with kept.tree("upper") as tree:
            assert [entry.path for entry in tree.entries(directory("").entry.path)] == ["etc", "way"]
            assert [entry.path for entry in tree.entries(directory("etc").entry.path)] == ["etc/kept", "etc/new"]
        # Through the link of the layer below, which is not replaced.
        assert {"etc", "etc/new", "etc/gone"} == names(kept.directory("upper") / "fs")

    def test_layers_apply_to_whole_trees(self, stub: Stub, served: Served) -> None:
        kept = unpacked(stub, served, "native")
        assert {"etc", "etc/kept", "etc/new", "way"} == names(kept.directory("upper") / "fs")

    def test_payloads_and_zero_sizes_do_no_harm(self, stub: Stub, served: Served, tmp_path: Path) -> None:
        layer, diff_id = stored(served, BASE)
        layer.size = 0
        payload = AnyMessage(type_url="somebody.elses", value=b"1")
        assert diff_id == apply(stub, layer, (BindMount(tmp_path),), payloads={"somebody.elses": payload}).digest

    @pytest.mark.root
    def test_a_second_layer_applies_over_the_first(self, stub: Stub, served: Served) -> None:
        kept = snapshots(served)
        unpacked(stub, served)
        mounts = kept.prepare("key", "base")
        apply(stub, stored(served, UPPER)[0], mounts)
        apply(stub, stored(served, [whiteout("etc/new"), file("etc/more")])[0], mounts)
        with kept.tree("key") as tree:
            assert [entry.path for entry in tree.entries(directory("etc").entry.path)] == ["etc/kept", "etc/more"]

    def test_an_upper_directory_alone_keeps_its_whiteouts(self, stub: Stub, served: Served, tmp_path: Path) -> None:
        upper = tmp_path / "upper"
        upper.mkdir()
        options = () if os.geteuid() == 0 else ("userxattr",)
        apply(stub, stored(served, [whiteout("gone")])[0], (OverlayMount((), upper, tmp_path, options),))
        assert {"gone"} == names(upper)

    @pytest.mark.parametrize(
        ("layer", "mounts", "code"),
        [
            (Descriptor(media_type=OCI_LAYER, digest=NOBODY), None, "NOT_FOUND"),
            (Descriptor(media_type=OCI_LAYER, digest="sha256:0"), None, "INVALID_ARGUMENT"),
            (Descriptor(media_type="application/vnd.oci.image.config.v1+json", digest=NOBODY), None, "UNIMPLEMENTED"),
            (Descriptor(media_type=f"{OCI_LAYER_GZIP}+encrypted", digest=NOBODY), None, "UNIMPLEMENTED"),
            (None, [{"type": "windows-layer", "source": "C:\\layer"}], "UNIMPLEMENTED"),
            (None, [{"type": "bind", "source": "/lamella-is-not-there", "options": ["rw"]}], "NOT_FOUND"),
            (None, [], "INVALID_ARGUMENT"),
        ],
    )
    def test_what_cannot_be_applied_is_refused(
        self,
        layer: Descriptor | None,
        mounts: list[dict[str, Any]] | None,
        code: str,
        stub: Stub,
        served: Served,
        tmp_path: Path,
    ) -> None:
        layer = layer or stored(served, BASE)[0]
        request = pb.ApplyRequest(diff=layer, mounts=sent([BindMount(tmp_path)]) if mounts is None else mounts)
        assert code == code_of(lambda: stub.Apply(request, metadata=within())).name

    def test_blobs_of_other_namespaces_are_not_there(self, stub: Stub, served: Served, tmp_path: Path) -> None:
        request = pb.ApplyRequest(diff=stored(served, BASE)[0], mounts=sent([BindMount(tmp_path)]))
        assert grpc.StatusCode.NOT_FOUND is code_of(lambda: stub.Apply(request, metadata=within("other")))
        assert grpc.StatusCode.FAILED_PRECONDITION is code_of(lambda: stub.Apply(request))

    def test_a_blob_that_is_no_layer_is_refused(self, stub: Stub, served: Served, tmp_path: Path) -> None:
        layer = put(served, gzip.compress(b"no tar" * 1000))
        problem = failure(lambda: apply(stub, layer, (BindMount(tmp_path),)))
        assert grpc.StatusCode.INVALID_ARGUMENT is problem.code()
        assert "tar" in (problem.details() or "")

    def test_a_layer_does_not_leave_its_mount(self, stub: Stub, served: Served, tree: Path, tmp_path: Path) -> None:
        layer, _ = stored(served, [symlink("way", "../.."), file("way/out", b"out")])
        apply(stub, layer, (BindMount(tree),))
        assert not (tmp_path / "out").exists()


class TestDiff:
    def test_what_an_upper_directory_states_is_the_layer(self, stub: Stub, served: Served) -> None:
        kept = unpacked(stub, served)
        right = kept.prepare("key", "base")
        assert isinstance(right[0], OverlayMount)
        assert right[0].upper is not None
        (right[0].upper / "made").write_text("made")
        made = make(stub, kept.view("look", "base"), right)
        assert made.media_type == OCI_LAYER_GZIP
        assert members(served, made) == [".", "made"]

    def test_a_committed_layer_comes_out_as_it_went_in(self, stub: Stub, served: Served) -> None:
        kept = unpacked(stub, served)
        layer = make(stub, kept.view("one", "base"), kept.view("two", "upper"))
        # Applied again, the same comes of it.
        apply(stub, layer, kept.prepare("again", "base"))
        kept.commit("copy", "again")
        with kept.tree("copy") as tree:
            assert [entry.path for entry in tree.entries(directory("etc").entry.path)] == ["etc/kept", "etc/new"]

    @pytest.mark.parametrize(
        ("media_type", "compressed"), [(OCI_LAYER, False), (OCI_LAYER_GZIP, True), (OCI_LAYER_ZSTD, True)]
    )
    def test_plain_directories_are_compared(
        self, media_type: str, compressed: bool, stub: Stub, served: Served, tmp_path: Path
    ) -> None:
        for side, text in (("left", "old"), ("right", "new and longer")):
            (tmp_path / side).mkdir()
            (tmp_path / side / "changed").write_text(text)
        (tmp_path / "left/gone").touch()
        made = make(
            stub,
            (BindMount(tmp_path / "left", readonly=True),),
            (BindMount(tmp_path / "right", readonly=True),),
            media_type=media_type,
            ref="a ref",
            labels={"a": "b"},
        )
        content = served.store.namespace("default").content
        labels = dict(content.info(Digest(made.digest)).labels)
        assert compressed == (UNCOMPRESSED in labels)
        labels.pop(UNCOMPRESSED, None)
        assert labels == {"a": "b"}
        assert content.statuses() == []
        if media_type != OCI_LAYER_ZSTD:  # which Python's tarfile cannot read everywhere
            assert {"changed", ".wh.gone"} <= set(members(served, made))

    def test_nothing_to_the_left_makes_all_of_the_right_one(self, stub: Stub, served: Served, tree: Path) -> None:
        (tree / "file").touch()
        assert "file" in members(served, make(stub, (), (BindMount(tree),)))

    def test_an_existing_layer_gets_its_label(self, stub: Stub, served: Served, tree: Path) -> None:
        first = make(stub, (), (BindMount(tree),))
        content = served.store.namespace("default").content
        content.update(Digest(first.digest), {UNCOMPRESSED: ""}, (f"labels.{UNCOMPRESSED}",))
        assert first == make(stub, (), (BindMount(tree),))
        assert UNCOMPRESSED in content.info(Digest(first.digest)).labels

    def test_a_given_reference_begins_anew(self, stub: Stub, served: Served, tree: Path) -> None:
        with served.store.namespace("default").content.ingest("ref") as ingest:
            ingest.write(b"what another call has left")
        assert members(served, make(stub, (), (BindMount(tree),), ref="ref")) != []

    def test_no_time_is_later_than_asked_for(self, stub: Stub, served: Served, tree: Path) -> None:
        (tree / "file").touch()
        made = make(stub, (), (BindMount(tree),), source_date_epoch=Timestamp(seconds=1000), media_type=OCI_LAYER)
        with (
            served.store.namespace("default").content.open(Digest(made.digest)) as blob,
            tarfile.open(fileobj=blob) as archive,
        ):
            assert {1000} == {member.mtime for member in archive}

    @pytest.mark.root
    def test_what_no_single_directory_states_is_mounted(self, stub: Stub, served: Served, tree: Path) -> None:
        kept = unpacked(stub, served)
        (tree / "etc").mkdir()
        made = members(served, make(stub, (BindMount(tree),), kept.view("look", "upper")))
        assert {"etc/kept", "etc/new", "way"} <= set(made)

    @pytest.mark.root
    def test_what_only_the_kernel_follows_is_mounted(self, stub: Stub, served: Served) -> None:
        kept = unpacked(stub, served)
        right = kept.prepare("key", "base")
        assert isinstance(right[0], OverlayMount)
        assert right[0].upper is not None
        renamed = right[0].upper / "moved"
        renamed.mkdir()
        os.setxattr(renamed, "trusted.overlay.redirect", b"/etc")
        assert {"moved"} <= set(members(served, make(stub, kept.view("look", "base"), right)))

    @pytest.mark.parametrize(
        ("request_", "code"),
        [
            (pb.DiffRequest(media_type=DOCKER_LAYER_GZIP), "UNIMPLEMENTED"),
            (pb.DiffRequest(right=[{"type": "CimFS", "source": "C:\\layer"}]), "UNIMPLEMENTED"),
            (pb.DiffRequest(right=sent([BindMount(Path("/lamella-is-not-there"))])), "NOT_FOUND"),
            (pb.DiffRequest(), "INVALID_ARGUMENT"),
        ],
    )
    def test_what_cannot_be_compared_is_refused_and_leaves_nothing(
        self, request_: pb.DiffRequest, code: str, stub: Stub, served: Served
    ) -> None:
        assert code == code_of(lambda: stub.Diff(request_, metadata=within())).name
        assert served.store.namespace("default").content.statuses() == []


def test_one_directory_states_a_change_where_it_lies_on_the_other_side() -> None:
    a, b, c, w = (Path(f"/{name}") for name in "abcw")
    active = (OverlayMount((b, a), c, w),)
    for left, right, upper in (
        ((OverlayMount((b, a)),), active, c),
        ((BindMount(a, readonly=True),), (OverlayMount((b, a)),), b),
        ((OverlayMount((b, a)),), (OverlayMount((c, b, a)),), c),
        ((BindMount(b),), active, None),
        ((OverlayMount((a, b)),), active, None),
        ((), active, None),
        ((BindMount(a),), (BindMount(b),), None),
        ((OverlayMount((b, a), c, w),), active, None),
    ):
        found = added_layer(left, right)
        assert upper == (None if found is None else found.path)
    assert typed(sent(active)) == active
