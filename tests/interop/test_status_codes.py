# SPDX-License-Identifier: Apache-2.0
"""What is wrong is refused with the status that a real containerd gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from tests.interop.daemons import Release, containerd_running, folder, lamella_serving
from tests.unit.service.serving import Stub, within

from lamella.digests import Digest
from lamella.protocol.proto import (
    content_pb2,
    diff_pb2,
    events_pb2,
    images_pb2,
    introspection_pb2,
    leases_pb2,
    namespaces_pb2,
    snapshots_pb2,
)
from lamella.protocol.proto.types_pb2 import Descriptor, Mount

pytestmark = [pytest.mark.interop, pytest.mark.root]

C, M, L, N, S = content_pb2, images_pb2, leases_pb2, namespaces_pb2, snapshots_pb2
HEX = "a" * 64
ABSENT = f"sha256:{HEX}"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
GOOD = Descriptor(media_type=LAYER, digest=ABSENT, size=1)
NAMESPACE = within("here")
MALFORMED = within("not/good")
LEASE = within("here", "missing")
BLOB = b"a blob"
THERE = str(Digest.of(BLOB))


def write(**fields: Any) -> list[Message]:
    return [C.WriteContentRequest(**fields)]


def image(**fields: Any) -> images_pb2.Image:
    return M.Image(**{"name": "image", "target": GOOD, **fields})


def mask(*paths: str) -> FieldMask:
    return FieldMask(paths=paths)


def resource(type_: str, id_: str = "x") -> leases_pb2.Resource:
    return L.Resource(type=type_, id=id_)


Case = tuple[Any, str, Message | Sequence[Message], Sequence[tuple[str, str]]]

CASES: dict[str, Case] = {
    "info without a digest": (C, "Info", C.InfoRequest(), NAMESPACE),
    "info of a malformed digest": (C, "Info", C.InfoRequest(digest="x"), NAMESPACE),
    "info of a short digest": (C, "Info", C.InfoRequest(digest="sha256:abc"), NAMESPACE),
    "info of another algorithm": (C, "Info", C.InfoRequest(digest="md5:" + "a" * 32), NAMESPACE),
    "info of an upper digest": (C, "Info", C.InfoRequest(digest="sha256:" + "A" * 64), NAMESPACE),
    "info of what is not there": (C, "Info", C.InfoRequest(digest=ABSENT), NAMESPACE),
    "info without a namespace": (C, "Info", C.InfoRequest(digest=ABSENT), ()),
    "info in a malformed namespace": (C, "Info", C.InfoRequest(digest=ABSENT), MALFORMED),
    "info in a namespace that is too long": (C, "Info", C.InfoRequest(digest=ABSENT), within("n" * 77)),
    "update of a malformed digest": (C, "Update", C.UpdateRequest(info=C.Info(digest="x")), NAMESPACE),
    "update of what is not there": (C, "Update", C.UpdateRequest(info=C.Info(digest=ABSENT)), NAMESPACE),
    "update of the digest": (
        *(C, "Update"),
        *(C.UpdateRequest(info=C.Info(digest=THERE), update_mask=mask("digest")), NAMESPACE),
    ),
    "update with too long a label": (
        *(C, "Update", C.UpdateRequest(info=C.Info(digest=THERE, labels={"k": "v" * 4096}))),
        NAMESPACE,
    ),
    "delete of what is not there": (C, "Delete", C.DeleteContentRequest(digest=ABSENT), NAMESPACE),
    "delete of a malformed digest": (C, "Delete", C.DeleteContentRequest(digest="sha256:"), NAMESPACE),
    "list by a malformed filter": (C, "List", C.ListContentRequest(filters=["digest==="]), NAMESPACE),
    "list by a filter that does not end": (C, "List", C.ListContentRequest(filters=['labels."a']), NAMESPACE),
    "list without a namespace": (C, "List", C.ListContentRequest(), ()),
    "read of what is not there": (C, "Read", C.ReadContentRequest(digest=ABSENT), NAMESPACE),
    "read of a malformed digest": (C, "Read", C.ReadContentRequest(digest="../x"), NAMESPACE),
    "read past the end": (C, "Read", C.ReadContentRequest(digest=THERE, offset=7), NAMESPACE),
    "status of an unknown reference": (C, "Status", C.StatusRequest(ref="none"), NAMESPACE),
    "statuses by a malformed filter": (C, "ListStatuses", C.ListStatusesRequest(filters=["ref=="]), NAMESPACE),
    "abort of an unknown reference": (C, "Abort", C.AbortRequest(ref="none"), NAMESPACE),
    "write without a reference": (C, "Write", write(action=C.WRITE, data=b"x"), NAMESPACE),
    "write without a namespace": (C, "Write", write(action=C.STAT, ref="r"), ()),
    "write of a blob that is there": (C, "Write", write(action=C.STAT, ref="r", expected=THERE), NAMESPACE),
    "write behind the end": (C, "Write", write(action=C.WRITE, ref="r1", offset=5, data=b"x"), NAMESPACE),
    "write under an unknown lease": (C, "Write", write(action=C.STAT, ref="r2"), LEASE),
    "write with an unknown action": (C, "Write", write(action=7, ref="r3"), NAMESPACE),
    "commit of another digest": (
        *(C, "Write", write(action=C.COMMIT, ref="r4", data=b"x", expected=ABSENT)),
        NAMESPACE,
    ),
    "commit of another size": (C, "Write", write(action=C.COMMIT, ref="r5", data=b"x", total=2), NAMESPACE),
    "commit of what is there": (C, "Write", write(action=C.COMMIT, ref="r6", data=BLOB), NAMESPACE),
    "get an unknown image": (M, "Get", M.GetImageRequest(name="none"), NAMESPACE),
    "get without a namespace": (M, "Get", M.GetImageRequest(name="none"), ()),
    "create without a name": (M, "Create", M.CreateImageRequest(image=image(name="")), NAMESPACE),
    "create with a malformed digest": (
        *(M, "Create", M.CreateImageRequest(image=image(target=Descriptor(media_type="m", digest="x", size=1)))),
        NAMESPACE,
    ),
    "create with an empty target": (
        *(M, "Create", M.CreateImageRequest(image=image(target=Descriptor(media_type="m", digest=ABSENT)))),
        NAMESPACE,
    ),
    "create without a media type": (
        *(M, "Create", M.CreateImageRequest(image=image(target=Descriptor(digest=ABSENT, size=1)))),
        NAMESPACE,
    ),
    "create with too long a label": (
        *(M, "Create", M.CreateImageRequest(image=image(labels={"k": "v" * 4096}))),
        NAMESPACE,
    ),
    "create an image that is there": (M, "Create", M.CreateImageRequest(image=image(name="there")), NAMESPACE),
    "update an unknown image": (M, "Update", M.UpdateImageRequest(image=image(name="none")), NAMESPACE),
    "update an image without a name": (M, "Update", M.UpdateImageRequest(image=image(name="")), NAMESPACE),
    "update another field of an image": (
        *(M, "Update", M.UpdateImageRequest(image=image(name="there"), update_mask=mask("name"))),
        NAMESPACE,
    ),
    "images by a malformed filter": (M, "List", M.ListImagesRequest(filters=["name=="]), NAMESPACE),
    "delete an unknown image": (M, "Delete", M.DeleteImageRequest(name="none"), NAMESPACE),
    "delete an unknown lease": (L, "Delete", L.DeleteRequest(id="none"), NAMESPACE),
    "create a lease that is there": (L, "Create", L.CreateRequest(id="there"), NAMESPACE),
    "create a lease without a namespace": (L, "Create", L.CreateRequest(id="x"), ()),
    "leases by a malformed filter": (L, "List", L.ListRequest(filters=["id=="]), NAMESPACE),
    "hold by an unknown lease": (
        *(L, "AddResource", L.AddResourceRequest(id="none", resource=resource("content", ABSENT))),
        NAMESPACE,
    ),
    "hold something else": (
        *(L, "AddResource", L.AddResourceRequest(id="there", resource=resource("containers"))),
        NAMESPACE,
    ),
    "resources of an unknown lease": (L, "ListResources", L.ListResourcesRequest(id="none"), NAMESPACE),
    "create a malformed namespace": (N, "Create", N.CreateNamespaceRequest(namespace=N.Namespace(name="a/b")), ()),
    "create a namespace without a name": (N, "Create", N.CreateNamespaceRequest(namespace=N.Namespace()), ()),
    "create a namespace that is there": (
        *(N, "Create", N.CreateNamespaceRequest(namespace=N.Namespace(name="here"))),
        (),
    ),
    "delete an unknown namespace": (N, "Delete", N.DeleteNamespaceRequest(name="none"), ()),
    "delete a namespace that is in use": (N, "Delete", N.DeleteNamespaceRequest(name="here"), ()),
    "update another field of a namespace": (
        *(N, "Update", N.UpdateNamespaceRequest(namespace=N.Namespace(name="here"), update_mask=mask("name"))),
        (),
    ),
    "an unknown snapshotter": (S, "Stat", S.StatSnapshotRequest(snapshotter="none", key="x"), NAMESPACE),
    "no snapshotter": (S, "Stat", S.StatSnapshotRequest(key="x"), NAMESPACE),
    "an unknown snapshot": (S, "Stat", S.StatSnapshotRequest(snapshotter="native", key="x"), NAMESPACE),
    "a snapshot without a namespace": (S, "Stat", S.StatSnapshotRequest(snapshotter="native", key="x"), ()),
    "prepare upon an unknown parent": (
        *(S, "Prepare", S.PrepareSnapshotRequest(snapshotter="native", key="k", parent="none")),
        NAMESPACE,
    ),
    "prepare upon an active parent": (
        *(S, "Prepare", S.PrepareSnapshotRequest(snapshotter="native", key="k", parent="active")),
        NAMESPACE,
    ),
    "prepare what is there": (S, "Prepare", S.PrepareSnapshotRequest(snapshotter="native", key="active"), NAMESPACE),
    "prepare under an unknown lease": (S, "Prepare", S.PrepareSnapshotRequest(snapshotter="native", key="k"), LEASE),
    "mounts of a committed snapshot": (S, "Mounts", S.MountsRequest(snapshotter="native", key="done"), NAMESPACE),
    "mounts of an unknown snapshot": (S, "Mounts", S.MountsRequest(snapshotter="native", key="none"), NAMESPACE),
    "commit an unknown snapshot": (
        *(S, "Commit", S.CommitSnapshotRequest(snapshotter="native", key="none", name="x")),
        NAMESPACE,
    ),
    "commit to a name that is there": (
        *(S, "Commit", S.CommitSnapshotRequest(snapshotter="native", key="active", name="done")),
        NAMESPACE,
    ),
    "commit what is committed": (
        *(S, "Commit", S.CommitSnapshotRequest(snapshotter="native", key="done", name="x")),
        NAMESPACE,
    ),
    "remove an unknown snapshot": (S, "Remove", S.RemoveSnapshotRequest(snapshotter="native", key="none"), NAMESPACE),
    "remove what others lie on": (S, "Remove", S.RemoveSnapshotRequest(snapshotter="native", key="done"), NAMESPACE),
    "usage of an unknown snapshot": (S, "Usage", S.UsageRequest(snapshotter="native", key="none"), NAMESPACE),
    "update the parent of a snapshot": (
        *(S, "Update"),
        S.UpdateSnapshotRequest(snapshotter="native", info=S.Info(name="active"), update_mask=mask("parent")),
        NAMESPACE,
    ),
    "update an unknown snapshot": (
        *(S, "Update", S.UpdateSnapshotRequest(snapshotter="native", info=S.Info(name="none"))),
        NAMESPACE,
    ),
    "snapshots by a malformed filter": (
        *(S, "List", S.ListSnapshotsRequest(snapshotter="native", filters=["name=="])),
        NAMESPACE,
    ),
    "apply a layer that is not there": (diff_pb2, "Apply", diff_pb2.ApplyRequest(diff=GOOD), NAMESPACE),
    "apply a layer of an unknown kind": (
        *(diff_pb2, "Apply"),
        diff_pb2.ApplyRequest(
            diff=Descriptor(media_type="text/plain", digest=THERE, size=len(BLOB)),
            mounts=[Mount(type="bind", source="/nowhere", options=["rw", "rbind"])],
        ),
        NAMESPACE,
    ),
    "make a layer of an unknown kind": (diff_pb2, "Diff", diff_pb2.DiffRequest(media_type="text/plain"), NAMESPACE),
    "publish without a topic": (events_pb2, "Publish", events_pb2.PublishRequest(event=Packed()), NAMESPACE),
    "publish to a malformed topic": (
        *(events_pb2, "Publish", events_pb2.PublishRequest(topic="/a b", event=Packed())),
        NAMESPACE,
    ),
    "publish without a namespace": (events_pb2, "Publish", events_pb2.PublishRequest(topic="/a"), ()),
    "subscribe by a malformed filter": (
        *(events_pb2, "Subscribe", events_pb2.SubscribeRequest(filters=["topic=="])),
        (),
    ),
    "plugins by a malformed filter": (
        *(introspection_pb2, "Plugins", introspection_pb2.PluginsRequest(filters=["id=="])),
        (),
    ),
}

DIFFERENT = {
    "write with an unknown action": ("OK", "INVALID_ARGUMENT"),  # it is not passed over
    "snapshots by a malformed filter": ("UNKNOWN", "INVALID_ARGUMENT"),  # as for everything else
    "subscribe by a malformed filter": ("UNKNOWN", "INVALID_ARGUMENT"),
    "apply a layer of an unknown kind": ("UNKNOWN", "UNIMPLEMENTED"),  # so that the next differ is asked
}
"""Where Lamella gives another status than containerd, and why: the one list of it."""


def prepared(channel: grpc.Channel) -> None:
    """Put there what the cases need."""
    root = {"containerd.io/gc.root": "1"}
    content, snapshots = Stub(channel, C.DESCRIPTOR), Stub(channel, S.DESCRIPTOR)
    list(content.Write(iter(write(action=C.COMMIT, ref="ok", data=BLOB, labels=root)), metadata=NAMESPACE))
    Stub(channel, M.DESCRIPTOR).Create(M.CreateImageRequest(image=image(name="there")), metadata=NAMESPACE)
    Stub(channel, L.DESCRIPTOR).Create(L.CreateRequest(id="there"), metadata=NAMESPACE)
    for key, parent in (("x", ""), ("active", "done")):
        prepare = S.PrepareSnapshotRequest(snapshotter="native", key=key, parent=parent, labels=root)
        snapshots.Prepare(prepare, metadata=NAMESPACE)
        if key == "x":
            commit = S.CommitSnapshotRequest(snapshotter="native", key="x", name="done", labels=root)
            snapshots.Commit(commit, metadata=NAMESPACE)


def code(channel: grpc.Channel, case: Case) -> str:
    """The status that a server gives; OK where there is none."""
    module, method, request, metadata = case
    call = getattr(Stub(channel, module.DESCRIPTOR), method)
    try:
        answer = call(iter(request) if isinstance(request, list) else request, metadata=metadata, timeout=5)
        if isinstance(answer, Iterator):
            list(answer)
    except grpc.RpcError as problem:
        return str(problem.code().name)
    return "OK"


@pytest.fixture(scope="module")
def lamella() -> Iterator[grpc.Channel]:
    with folder() as where:
        with (
            lamella_serving(where, "--address", where / "d.sock"),
            grpc.insecure_channel(f"unix:{where}/d.sock") as channel,
        ):
            prepared(channel)
            yield channel
        log = (where / "lamella.log").read_text()
        assert " error: " not in log
        assert "Traceback" not in log


@pytest.fixture(scope="module")
def containerd(release: Release) -> Iterator[grpc.Channel]:
    with (
        folder() as where,
        containerd_running(where / "containerd", release=release),
        grpc.insecure_channel(f"unix:{where}/containerd/socket") as channel,
    ):
        prepared(channel)
        yield channel


@pytest.mark.parametrize("name", CASES)
def test_the_status_is_containerds(name: str, lamella: grpc.Channel, containerd: grpc.Channel) -> None:
    theirs = code(containerd, CASES[name])
    expected = DIFFERENT.get(name, (theirs, theirs))
    assert expected == (theirs, code(lamella, CASES[name]))


def test_no_ingest_is_left_open_by_a_write_that_was_refused(lamella: grpc.Channel) -> None:
    content = Stub(lamella, C.DESCRIPTOR)
    for module, method, request, metadata in CASES.values():
        if (module, method) == (C, "Write") and metadata == NAMESPACE:
            code(lamella, (module, method, request, metadata))
            assert isinstance(request, list)
            if request[0].ref:
                again = write(action=C.WRITE, ref=request[0].ref, data=b"x")
                assert code(lamella, (C, "Write", again, NAMESPACE)) == "OK"
                content.Abort(C.AbortRequest(ref=request[0].ref), metadata=NAMESPACE)
