# SPDX-License-Identifier: Apache-2.0
"""Images, leases, namespaces, events and the server itself, over gRPC."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from tests.unit.service.serving import Client, Served, code_of, within

from lamella import __version__
from lamella.protocol.proto import containers_pb2, content_pb2, events_pb2, health_pb2, introspection_pb2
from lamella.protocol.proto import images_pb2 as images
from lamella.protocol.proto import leases_pb2 as leases
from lamella.protocol.proto import namespaces_pb2 as namespaces
from lamella.protocol.proto.happenings_pb2 import ContentCreate, NamespaceCreate
from lamella.protocol.proto.types_pb2 import Descriptor, Envelope
from lamella.service.gc_scheduler import Collector
from lamella.store.gc import collect as gc
from lamella.store.gc.collect import Collection
from lamella.store.store import Store

Code = grpc.StatusCode
DIGEST = f"sha256:{hashlib.sha256(b'manifest').hexdigest()}"
OTHER = f"sha256:{hashlib.sha256(b'other').hexdigest()}"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def target(digest: str = DIGEST, size: int = 8, **annotations: str) -> Descriptor:
    return Descriptor(media_type=MANIFEST, digest=digest, size=size, annotations=annotations)


def create(client: Client, name: str, where: Descriptor | None = None, **labels: str) -> images.Image:
    image = images.Image(name=name, target=where or target(), labels=labels)
    made: images.Image = client.images.Create(images.CreateImageRequest(image=image), metadata=within()).image
    return made


def write(client: Client, data: bytes, lease: str = "") -> str:
    request = content_pb2.WriteContentRequest(action=content_pb2.COMMIT, ref="r", data=data)
    (answer,) = client.content.Write(iter([request]), metadata=within(lease=lease))
    digest: str = answer.digest
    return digest


# Images ------------------------------------------------------------------------------------------------------------


def test_an_image_is_made_found_and_deleted(client: Client) -> None:
    made = create(client, "a:1", target(key="value"), x="y")
    assert (made.name, made.target, dict(made.labels)) == ("a:1", target(key="value"), {"x": "y"})
    assert made.created_at == made.updated_at
    assert client.images.Get(images.GetImageRequest(name="a:1"), metadata=within()).image == made
    create(client, "A")
    everything = client.images.List(images.ListImagesRequest(), metadata=within()).images
    assert [image.name for image in everything] == ["A", "a:1"]
    some = client.images.List(images.ListImagesRequest(filters=['labels."x"==y']), metadata=within()).images
    assert [image.name for image in some] == ["a:1"]
    client.images.Delete(images.DeleteImageRequest(name="a:1"), metadata=within())
    assert code_of(lambda: client.images.Get(images.GetImageRequest(name="a:1"), metadata=within())) == Code.NOT_FOUND


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([], (OTHER, {"new": "1"}, {"n": "2"})),
        (["labels"], (DIGEST, {"new": "1"}, {"o": "1"})),
        (["labels.new"], (DIGEST, {"old": "1", "new": "1"}, {"o": "1"})),
        (["labels.old"], (DIGEST, {}, {"o": "1"})),
        (["target"], (OTHER, {"old": "1"}, {"n": "2"})),
        (["annotations"], (DIGEST, {"old": "1"}, {"n": "2"})),
        (["annotations.n", "labels.new"], (DIGEST, {"old": "1", "new": "1"}, {"o": "1", "n": "2"})),
    ],
)
def test_a_mask_says_what_of_an_image_changes(
    client: Client, paths: list[str], expected: tuple[str, dict[str, str], dict[str, str]]
) -> None:
    made = create(client, "a", target(o="1"), old="1")
    change = images.Image(name="a", target=target(OTHER, n="2"), labels={"new": "1"})
    request = images.UpdateImageRequest(image=change, update_mask=FieldMask(paths=paths))
    changed = client.images.Update(request, metadata=within()).image
    assert (changed.target.digest, dict(changed.labels), dict(changed.target.annotations)) == expected
    assert changed.created_at == made.created_at
    assert changed.updated_at.ToNanoseconds() > made.updated_at.ToNanoseconds()


def test_labels_are_changed_without_a_target(client: Client) -> None:
    create(client, "a")
    request = images.UpdateImageRequest(
        image=images.Image(name="a", labels={"k": "v"}), update_mask=FieldMask(paths=["labels.k"])
    )
    assert client.images.Update(request, metadata=within()).image.target == target()


def test_a_given_time_replaces_the_present(client: Client) -> None:
    image = images.Image(name="a", target=target(), created_at=Timestamp(seconds=-62135596800))
    epoch = Timestamp(seconds=1000, nanos=5)
    made = client.images.Create(
        images.CreateImageRequest(image=image, source_date_epoch=epoch), metadata=within()
    ).image
    assert (made.created_at, made.updated_at) == (epoch, epoch)
    later = Timestamp(seconds=2000)
    changed = client.images.Update(
        images.UpdateImageRequest(image=image, source_date_epoch=later), metadata=within()
    ).image
    assert (changed.created_at, changed.updated_at) == (epoch, later)


def test_an_image_that_has_another_target_meanwhile_is_not_deleted(client: Client) -> None:
    create(client, "a")
    wrong = images.DeleteImageRequest(name="a", target=target(OTHER))
    assert code_of(lambda: client.images.Delete(wrong, metadata=within())) == Code.NOT_FOUND
    client.images.Delete(images.DeleteImageRequest(name="a", target=target()), metadata=within())


@pytest.mark.parametrize(
    ("code", "call"),
    [
        (Code.NOT_FOUND, lambda c: c.images.Get(images.GetImageRequest(name="no"), metadata=within())),
        (Code.NOT_FOUND, lambda c: c.images.Delete(images.DeleteImageRequest(name="no"), metadata=within())),
        (Code.ALREADY_EXISTS, lambda c: create(c, "there")),
        (Code.INVALID_ARGUMENT, lambda c: create(c, "")),
        (Code.INVALID_ARGUMENT, lambda c: create(c, "x", target(size=0))),
        (Code.INVALID_ARGUMENT, lambda c: create(c, "x", target(size=-1))),
        (Code.INVALID_ARGUMENT, lambda c: create(c, "x", target("sha256:1"))),
        (Code.INVALID_ARGUMENT, lambda c: create(c, "x", Descriptor(digest=DIGEST, size=1))),
        (
            Code.NOT_FOUND,
            lambda c: c.images.Update(
                images.UpdateImageRequest(image=images.Image(name="no", target=target())), metadata=within()
            ),
        ),
        (
            Code.INVALID_ARGUMENT,
            lambda c: c.images.Update(
                images.UpdateImageRequest(
                    image=images.Image(name="there", target=target()), update_mask=FieldMask(paths=["name"])
                ),
                metadata=within(),
            ),
        ),
        (Code.INVALID_ARGUMENT, lambda c: c.images.List(images.ListImagesRequest(filters=["~"]), metadata=within())),
        (Code.FAILED_PRECONDITION, lambda c: c.images.List(images.ListImagesRequest())),
    ],
)
def test_calls_about_images_that_fail_have_their_status(
    client: Client, code: grpc.StatusCode, call: Callable[[Client], object]
) -> None:
    create(client, "there")
    assert code_of(lambda: call(client)) == code


# Leases, and collection --------------------------------------------------------------------------------------------


def test_a_lease_holds_its_resources(client: Client) -> None:
    lease = client.leases.Create(leases.CreateRequest(id="/some path", labels={"a": "b"}), metadata=within()).lease
    assert (lease.id, dict(lease.labels)) == ("/some path", {"a": "b"})
    resource = leases.Resource(id=DIGEST, type="content")
    snapshot = leases.Resource(id="key", type="snapshots/overlayfs")
    for one in (resource, snapshot, resource):
        client.leases.AddResource(leases.AddResourceRequest(id=lease.id, resource=one), metadata=within())
    listing = leases.ListResourcesRequest(id=lease.id)
    assert list(client.leases.ListResources(listing, metadata=within()).resources) == [resource, snapshot]
    for _ in range(2):
        request = leases.DeleteResourceRequest(id=lease.id, resource=snapshot)
        client.leases.DeleteResource(request, metadata=within())
    assert list(client.leases.ListResources(listing, metadata=within()).resources) == [resource]
    made = client.leases.Create(leases.CreateRequest(), metadata=within()).lease.id
    assert made
    found = client.leases.List(leases.ListRequest(filters=["labels.a==b"]), metadata=within()).leases
    assert [one.id for one in found] == [lease.id]


@pytest.mark.parametrize(
    ("code", "kind", "name"),
    [
        (Code.INVALID_ARGUMENT, "snapshots", "key"),
        (Code.INVALID_ARGUMENT, "snapshots/", "key"),
        (Code.INVALID_ARGUMENT, "snapshots/a/b", "key"),
        (Code.INVALID_ARGUMENT, "content/a", DIGEST),
        (Code.INVALID_ARGUMENT, "ingests/a", "ref"),
        (Code.INVALID_ARGUMENT, "content", "sha256:short"),
        (Code.INVALID_ARGUMENT, "content", "key"),
        (Code.UNIMPLEMENTED, "tasks", "key"),
        (Code.UNIMPLEMENTED, "", "key"),
    ],
)
def test_a_malformed_resource_of_a_lease_is_refused(
    client: Client, code: grpc.StatusCode, kind: str, name: str
) -> None:
    client.leases.Create(leases.CreateRequest(id="l"), metadata=within())
    resource = leases.Resource(id=name, type=kind)
    added, deleted = leases.AddResourceRequest, leases.DeleteResourceRequest
    assert code_of(lambda: client.leases.AddResource(added(id="l", resource=resource), metadata=within())) == code
    assert code_of(lambda: client.leases.DeleteResource(deleted(id="l", resource=resource), metadata=within())) == code


@pytest.mark.parametrize(
    ("code", "call"),
    [
        (Code.ALREADY_EXISTS, lambda c: c.leases.Create(leases.CreateRequest(id="l"), metadata=within())),
        (Code.NOT_FOUND, lambda c: c.leases.Delete(leases.DeleteRequest(id="no"), metadata=within())),
        (Code.NOT_FOUND, lambda c: c.leases.ListResources(leases.ListResourcesRequest(id="no"), metadata=within())),
        (
            Code.UNIMPLEMENTED,
            lambda c: c.leases.AddResource(
                leases.AddResourceRequest(id="l", resource=leases.Resource(id="x", type="tasks")), metadata=within()
            ),
        ),
        (Code.INVALID_ARGUMENT, lambda c: c.leases.List(leases.ListRequest(filters=["=="]), metadata=within())),
    ],
)
def test_calls_about_leases_that_fail_have_their_status(
    client: Client, code: grpc.StatusCode, call: Callable[[Client], object]
) -> None:
    client.leases.Create(leases.CreateRequest(id="l"), metadata=within())
    assert code_of(lambda: call(client)) == code


def test_the_end_of_a_lease_collects_what_it_held_before_the_answer_where_the_client_waits(client: Client) -> None:
    client.leases.Create(leases.CreateRequest(id="l"), metadata=within())
    digest = write(client, b"manifest", "l")
    other = write(client, b"other", "l")
    create(client, "a")
    assert digest == DIGEST
    client.leases.Delete(leases.DeleteRequest(id="l", sync=True), metadata=within())
    found = [
        info.digest
        for page in client.content.List(content_pb2.ListContentRequest(), metadata=within())
        for info in page.info
    ]
    assert found == [digest]
    assert other not in found
    client.images.Delete(images.DeleteImageRequest(name="a", sync=True), metadata=within())
    assert list(client.content.List(content_pb2.ListContentRequest(), metadata=within())) == []


def test_a_deletion_is_followed_by_a_collection_soon(client: Client) -> None:
    write(client, b"nobody needs this")
    create(client, "a")
    client.images.Delete(images.DeleteImageRequest(name="a"), metadata=within())
    end = time.monotonic() + 10
    while list(client.content.List(content_pb2.ListContentRequest(), metadata=within())):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_deletions_that_come_close_together_make_one_collection(served: Served) -> None:
    times: list[Store] = []

    def count(store: Store) -> Collection:
        times.append(store)
        return gc.collect(store)

    served.shared.collector = Collector(served.store, served.shared.bus, run=count)
    for number in range(20):
        create(served.client, str(number))
    for number in range(20):
        served.client.images.Delete(images.DeleteImageRequest(name=str(number)), metadata=within())
    served.shared.collector.collect()
    assert 1 <= len(times) <= 5


def test_a_collection_that_fails_is_an_error_for_its_client_and_the_next_one_works(served: Served) -> None:
    stores: list[Store] = []

    def fail_once(store: Store) -> Collection:
        stores.append(store)
        if len(stores) == 1:
            raise OSError(28, "no space")
        return gc.collect(store)

    served.shared.collector = Collector(served.store, served.shared.bus, run=fail_once)
    create(served.client, "a")
    create(served.client, "b")
    delete = images.DeleteImageRequest(name="a", sync=True)
    assert code_of(lambda: served.client.images.Delete(delete, metadata=within())) == Code.RESOURCE_EXHAUSTED
    served.client.images.Delete(images.DeleteImageRequest(name="b", sync=True), metadata=within())


# Namespaces --------------------------------------------------------------------------------------------------------


def test_namespaces_come_and_go(client: Client) -> None:
    space = namespaces.Namespace(name="n1", labels={"a": "b"})
    made = client.namespaces.Create(namespaces.CreateNamespaceRequest(namespace=space)).namespace
    assert made == space
    change = namespaces.Namespace(name="n1", labels={"c": "d"})
    request = namespaces.UpdateNamespaceRequest(namespace=change, update_mask=FieldMask(paths=["labels.c"]))
    assert dict(client.namespaces.Update(request).namespace.labels) == {"a": "b", "c": "d"}
    replaced = client.namespaces.Update(namespaces.UpdateNamespaceRequest(namespace=change)).namespace
    assert dict(replaced.labels) == {"c": "d"}
    create(client, "image")
    listed = client.namespaces.List(namespaces.ListNamespacesRequest(filter="x==y")).namespaces
    assert [one.name for one in listed] == ["default", "n1"]
    assert client.namespaces.Get(namespaces.GetNamespaceRequest(name="n1")).namespace == change
    assert client.namespaces.Get(namespaces.GetNamespaceRequest(name="no")).namespace.name == "no"
    client.namespaces.Delete(namespaces.DeleteNamespaceRequest(name="n1"))


@pytest.mark.parametrize(
    ("code", "call"),
    [
        (
            Code.ALREADY_EXISTS,
            lambda c: c.namespaces.Create(namespaces.CreateNamespaceRequest(namespace={"name": "default"})),
        ),
        (Code.INVALID_ARGUMENT, lambda c: c.namespaces.Create(namespaces.CreateNamespaceRequest())),
        (
            Code.INVALID_ARGUMENT,
            lambda c: c.namespaces.Create(namespaces.CreateNamespaceRequest(namespace={"name": "a" * 77})),
        ),
        (Code.INVALID_ARGUMENT, lambda c: c.namespaces.Get(namespaces.GetNamespaceRequest(name="-"))),
        (
            Code.INVALID_ARGUMENT,
            lambda c: c.namespaces.Update(
                namespaces.UpdateNamespaceRequest(namespace={"name": "x"}, update_mask=FieldMask(paths=["name"]))
            ),
        ),
        (Code.NOT_FOUND, lambda c: c.namespaces.Delete(namespaces.DeleteNamespaceRequest(name="no"))),
        (
            Code.FAILED_PRECONDITION,
            lambda c: c.namespaces.Delete(namespaces.DeleteNamespaceRequest(name="default")),
        ),
    ],
)
def test_calls_about_namespaces_that_fail_have_their_status(
    client: Client, code: grpc.StatusCode, call: Callable[[Client], object]
) -> None:
    create(client, "image")
    assert code_of(lambda: call(client)) == code


# Events ------------------------------------------------------------------------------------------------------------


class Listener:
    """A subscription whose beginning is waited for: events go to those who listen already."""

    def __init__(self, served: Served, *filters: str) -> None:
        before = served.shared.bus.subscribers
        self._call: Any = served.client.events.Subscribe(events_pb2.SubscribeRequest(filters=filters))
        end = time.monotonic() + 10
        while served.shared.bus.subscribers == before and time.monotonic() < end:
            time.sleep(0.005)

    def next(self) -> Envelope:
        envelope: Envelope = next(self._call)
        return envelope

    def end(self) -> None:
        self._call.cancel()


def test_changes_of_the_store_are_published(served: Served) -> None:
    listener = Listener(served)
    client = served.client
    digest = write(client, b"abc")
    create(client, "a", x="y")
    client.images.Delete(images.DeleteImageRequest(name="a"), metadata=within())
    client.namespaces.Create(namespaces.CreateNamespaceRequest(namespace={"name": "n"}))
    told = [listener.next() for _ in range(4)]
    assert [(one.namespace, one.topic, one.event.type_url) for one in told] == [
        ("default", "/content/create", "containerd.events.ContentCreate"),
        ("default", "/images/create", "containerd.services.images.v1.ImageCreate"),
        ("default", "/images/delete", "containerd.services.images.v1.ImageDelete"),
        ("n", "/namespaces/create", "containerd.events.NamespaceCreate"),
    ]
    assert ContentCreate.FromString(told[0].event.value) == ContentCreate(digest=digest, size=3)
    assert images.ImageCreate.FromString(told[1].event.value) == images.ImageCreate(name="a", labels={"x": "y"})
    assert NamespaceCreate.FromString(told[3].event.value).name == "n"
    assert abs(told[0].timestamp.ToNanoseconds() - time.time_ns()) < 60e9
    listener.end()


def test_events_pass_filters_by_topic_namespace_and_their_own_fields(served: Served) -> None:
    listener = Listener(served, 'topic=="/mine/own",namespace==default', "event.name==wanted", "event.labels.a==b")
    publish = served.client.events.Publish
    for namespace, topic in (("other", "/mine/own"), ("default", "/mine/other"), ("default", "/mine/own")):
        request = events_pb2.PublishRequest(topic=topic, event=Packed(type_url="unknown", value=b"x"))
        publish(request, metadata=within(namespace))
    create(served.client, "unwanted")
    create(served.client, "wanted")
    create(served.client, "labelled", a="b")
    first = listener.next()
    assert (first.namespace, first.topic, first.event.value) == ("default", "/mine/own", b"x")
    assert images.ImageCreate.FromString(listener.next().event.value).name == "wanted"
    assert images.ImageCreate.FromString(listener.next().event.value).name == "labelled"
    listener.end()


def test_forwarded_events_keep_their_time_and_namespace(served: Served) -> None:
    listener = Listener(served)
    envelope = Envelope(timestamp=Timestamp(seconds=5), namespace="far", topic="/a/b", event=Packed(type_url="t"))
    served.client.events.Forward(events_pb2.ForwardRequest(envelope=envelope))
    assert listener.next() == envelope
    listener.end()


@pytest.mark.parametrize("topic", ["", "a", "/", "/a//b", "/a b", "/-a"])
def test_malformed_topics_are_refused(client: Client, topic: str) -> None:
    request = events_pb2.PublishRequest(topic=topic)
    assert code_of(lambda: client.events.Publish(request, metadata=within())) == Code.INVALID_ARGUMENT


def test_a_subscriber_that_goes_is_forgotten(served: Served) -> None:
    Listener(served).end()
    end = time.monotonic() + 10
    while served.shared.bus.subscribers:
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_malformed_filter_ends_a_subscription(client: Client) -> None:
    request = events_pb2.SubscribeRequest(filters=["=="])
    assert code_of(lambda: client.events.Subscribe(request)) == Code.INVALID_ARGUMENT


# The server --------------------------------------------------------------------------------------------------------


def test_the_server_has_an_identity(client: Client) -> None:
    assert client.version.Version(Empty()).version == __version__
    first = client.introspection.Server(Empty())
    assert first == client.introspection.Server(Empty())
    assert len(first.uuid) == 36
    assert first.pid > 1
    assert first.pidns > 1


def test_snapshotters_are_found_as_clients_look_for_them(client: Client) -> None:
    wanted = ["type==io.containerd.snapshotter.v1, id==overlayfs"]
    (found,) = client.introspection.Plugins(introspection_pb2.PluginsRequest(filters=wanted)).plugins
    assert (found.type, found.id) == ("io.containerd.snapshotter.v1", "overlayfs")
    assert found.exports["root"].endswith("/snapshots/overlayfs")
    assert found.platforms[0].os == "linux"
    for_windows = introspection_pb2.PluginsRequest(filters=["id==cimfs", "id==blockcim"])
    kept = client.introspection.Plugins(for_windows).plugins
    assert {"windows"} == {one.platforms[0].os for one in kept}
    types = {one.type for one in client.introspection.Plugins(introspection_pb2.PluginsRequest()).plugins}
    assert {"io.containerd.content.v1", "io.containerd.snapshotter.v1", "io.containerd.differ.v1"} <= types
    request = introspection_pb2.PluginInfoRequest(type=found.type, id=found.id)
    assert client.introspection.PluginInfo(request).plugin == found
    unknown = introspection_pb2.PluginInfoRequest(type="no", id="no")
    assert code_of(lambda: client.introspection.PluginInfo(unknown)) == Code.NOT_FOUND


def test_there_are_no_containers(client: Client) -> None:
    request = containers_pb2.ListContainersRequest()
    assert list(client.containers.ListStream(request, metadata=within())) == []
    client.containers.List(request, metadata=within())


def test_the_server_is_healthy(client: Client) -> None:
    serving = health_pb2.HealthCheckResponse.SERVING
    assert client.health.Check(health_pb2.HealthCheckRequest()).status == serving
    named = health_pb2.HealthCheckRequest(service="no")
    assert code_of(lambda: client.health.Check(named)) == Code.NOT_FOUND
    watch = client.health.Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == serving
    watch.cancel()


def raw(client: Client, path: str, data: bytes = b"") -> object:
    """Call a method with bytes that need not be a message."""
    call = client.channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
    return call(data, metadata=tuple(within()))


@pytest.mark.parametrize(
    "path", ["/containerd.services.content.v1.Content/None", "/containerd.services.tasks.v1.Tasks/List", "/x", "/"]
)
def test_methods_and_services_that_are_not_served_are_unimplemented(client: Client, path: str) -> None:
    assert code_of(lambda: raw(client, path)) == Code.UNIMPLEMENTED


def test_a_request_that_is_no_message_is_refused(client: Client) -> None:
    path = "/containerd.services.images.v1.Images/List"
    assert code_of(lambda: raw(client, path, b"\xff\xff\xff")) == Code.INVALID_ARGUMENT


def test_a_bug_is_no_traceback_for_the_client(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Iterator[None]:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr("lamella.store.metadata.images.LocalImages.list", fail)
    request = images.ListImagesRequest()
    with pytest.raises(grpc.RpcError) as raised:
        served.client.images.List(request, metadata=within())
    assert (raised.value.code(), raised.value.details()) == (Code.UNKNOWN, "internal error: ZeroDivisionError")


def test_calls_from_many_threads_of_one_client_do_not_mix(client: Client) -> None:
    wrong: list[str] = []

    def work(number: int) -> None:
        for turn in range(20):
            name = f"{number}-{turn}"
            create(client, name, k=name * 50)
            found = client.images.Get(images.GetImageRequest(name=name), metadata=within()).image
            if found.name != name or found.labels["k"] != name * 50:
                wrong.append(name)

    threads = [Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(client.images.List(images.ListImagesRequest(), metadata=within()).images) == 160
