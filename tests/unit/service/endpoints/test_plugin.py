# SPDX-License-Identifier: Apache-2.0
"""The plugin endpoint with the containerd that it calls back, whose part another server of ours plays."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.unit.service.services.test_diff import stored
from tests.unit.service.serving import Served, Stub, code_of, running, within

from lamella.digests import Digest
from lamella.errors import NotFound, Unavailable
from lamella.protocol import NAMESPACE
from lamella.protocol.mounts import sent
from lamella.protocol.proto import content_pb2, diff_pb2, snapshots_pb2
from lamella.protocol.proto.types_pb2 import Descriptor
from lamella.service.endpoints.plugin import opened_plugin, plugin_methods
from lamella.service.grpc.rpc import Call
from lamella.store.contract import BindMount
from lamella.store.gc.collect import collect
from lamella.testing.builders import file
from lamella.times import parse_rfc3339

DATA = b"data of a blob" * 100_000
SPACE = "default"


@pytest.fixture
def plugin(served: Served, tmp_path: Path) -> Iterator[grpc.Channel]:
    with (
        opened_plugin(served.store.root, str(served.address)) as plugin,
        running(tmp_path / "p.sock", plugin_methods(plugin)),
        grpc.insecure_channel(f"unix:{tmp_path}/p.sock") as channel,
    ):
        yield channel


class TestCalledBack:
    def test_what_is_written_under_a_lease_outlasts_the_call(self, served: Served) -> None:
        call = Call({NAMESPACE: SPACE})
        with (
            opened_plugin(served.store.root, str(served.address)) as plugin,
            plugin.writing(call, ()) as blobs,
            blobs.ingest("ref") as ingest,
        ):
            ingest.write(b"data")
            digest = ingest.commit().digest
        collect(served.store)
        space = served.store.namespace(SPACE)
        assert space.content.info(digest).size == 4
        (lease,) = space.leases.list()
        expires = parse_rfc3339(lease.labels["containerd.io/gc.expire"])
        assert 300 < (expires - time.time_ns()) / 1e9 < 900

    def test_a_containerd_that_does_not_answer_is_unavailable(self, served: Served, tmp_path: Path) -> None:
        with (
            opened_plugin(served.store.root, str(tmp_path / "nobody")) as plugin,
            pytest.raises(Unavailable, match="nobody"),
        ):
            plugin.namespaces(Call({}))


class TestDiffer:
    """What containerd's differ is asked."""

    @pytest.mark.parametrize("metadata", [within(SPACE), ()], ids=["2.x", "1.7"])
    def test_a_layer_of_containerds_is_applied(
        self, metadata: Any, plugin: grpc.Channel, served: Served, tmp_path: Path
    ) -> None:
        served.store.namespaces.create("another")
        layer, diff_id = stored(served, [file("file")])
        (tmp_path / "tree").mkdir()
        request = diff_pb2.ApplyRequest(diff=layer, mounts=sent([BindMount(tmp_path / "tree")]))
        assert Stub(plugin, diff_pb2.DESCRIPTOR).Apply(request, metadata=metadata).applied.digest == diff_id
        assert os.listdir(tmp_path / "tree") == ["file"]
        request.diff.digest = Digest.of(b"another")
        assert code_of(lambda: Stub(plugin, diff_pb2.DESCRIPTOR).Apply(request, metadata=metadata)).name == "NOT_FOUND"

    def test_a_layer_that_is_here_is_applied_without_containerd(self, plugin: grpc.Channel, tmp_path: Path) -> None:
        blob = stub_written(plugin, b"")
        (tmp_path / "tree").mkdir()
        layer = Descriptor(media_type="application/vnd.oci.image.layer.v1.tar", digest=blob)
        request = diff_pb2.ApplyRequest(diff=layer, mounts=sent([BindMount(tmp_path / "tree")]))
        assert Stub(plugin, diff_pb2.DESCRIPTOR).Apply(request).applied.digest == blob

    @pytest.mark.parametrize("metadata", [within(SPACE), ()], ids=["2.x", "1.7"])
    def test_a_layer_is_made_for_containerd(self, metadata: Any, plugin: grpc.Channel, served: Served) -> None:
        snapshots = Stub(plugin, snapshots_pb2.DESCRIPTOR)
        prepare = snapshots_pb2.PrepareSnapshotRequest(snapshotter="lamella", key=f"{SPACE}/1/key")
        mounts = snapshots.Prepare(prepare).mounts
        Path(mounts[0].source, "file").touch()
        made = Stub(plugin, diff_pb2.DESCRIPTOR).Diff(diff_pb2.DiffRequest(right=mounts), metadata=metadata).diff
        space = served.store.namespace(SPACE)
        assert space.content.info(Digest(made.digest)).size == made.size
        assert len(space.leases.list()) == 1

    def test_a_lease_of_the_client_holds_the_layer(self, plugin: grpc.Channel, served: Served, tmp_path: Path) -> None:
        space = served.store.namespace(SPACE)
        space.leases.create("brought")
        (tmp_path / "tree").mkdir()
        request = diff_pb2.DiffRequest(right=sent([BindMount(tmp_path / "tree")]))
        made = Stub(plugin, diff_pb2.DESCRIPTOR).Diff(request, metadata=within(SPACE, "brought")).diff
        assert [lease.id for lease in space.leases.list()] == ["brought"]
        assert made.digest in {one.id for one in space.leases.resources("brought")}

    def test_without_a_namespace_the_layer_is_left_to_the_next_differ(
        self, plugin: grpc.Channel, tmp_path: Path
    ) -> None:
        (tmp_path / "tree").mkdir()
        request = diff_pb2.DiffRequest(right=sent([BindMount(tmp_path / "tree")]))
        assert code_of(lambda: Stub(plugin, diff_pb2.DESCRIPTOR).Diff(request)).name == "UNIMPLEMENTED"


class TestContent:
    """Containerd's content store."""

    def test_namespaces_and_leases_mean_nothing(self, plugin: grpc.Channel, served: Served) -> None:
        digest = stub_written(plugin, DATA)
        stub = Stub(plugin, content_pb2.DESCRIPTOR)
        for metadata in ((), within("one"), within("two", "nobody's")):
            assert stub.Info(content_pb2.InfoRequest(digest=digest), metadata=metadata).info.size == len(DATA)
        # It is not seen in the store beside it.
        with pytest.raises(NotFound):
            served.store.namespace("plugin").content.info(Digest(digest))
        stub.Delete(content_pb2.DeleteContentRequest(digest=digest))
        assert code_of(lambda: stub.Info(content_pb2.InfoRequest(digest=digest))).name == "NOT_FOUND"


def stub_written(plugin: grpc.Channel, data: bytes) -> str:
    request = content_pb2.WriteContentRequest(action=content_pb2.COMMIT, ref="one/1/ref", data=data)
    (answer,) = Stub(plugin, content_pb2.DESCRIPTOR).Write(iter([request]))
    return str(answer.digest)
