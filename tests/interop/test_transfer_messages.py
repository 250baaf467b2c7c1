# SPDX-License-Identifier: Apache-2.0
"""What a client and the server tell each other while an image is pulled or pushed, message by message."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.message import Message
from tests.registry.docker_registry import PASSWORD, USER, DockerRegistry, running
from tests.unit.service.serving import Served, Stub, failure, serving, within

from lamella.images.graph import ImageGraph
from lamella.images.resolve import choose_image
from lamella.images.transports import open_reader, parse_image_name
from lamella.operations.copy import copy_image
from lamella.protocol.proto import streaming_pb2, transfer_pb2
from lamella.protocol.proto import transfers_pb2 as pb
from lamella.protocol.wire import packed
from lamella.store.image_writer import StoreWriter
from lamella.store.store import LocalNamespace
from lamella.testing.images import small_image, tagged, write_layout

pytestmark = pytest.mark.interop

IMAGE = small_image({"a": b"one"}, {"b": b"two"})
MANIFEST = f"manifest-{IMAGE.descriptor['digest']}"
CONFIG = f"config-{IMAGE.manifest['config']['digest']}"
LAYERS = [f"layer-{layer['digest']}" for layer in IMAGE.manifest["layers"]]


@pytest.fixture(scope="module", params=["open", "closed"])
def registry(
    request: pytest.FixtureRequest, needs: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DockerRegistry]:
    directory = tmp_path_factory.mktemp("registry")
    with running(DockerRegistry(needs("docker-registry"), directory, basic=request.param == "closed")) as server:
        yield server


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as found:
        yield found


class Stream:
    """A stream of a client, opened and acknowledged; what comes is answered as ``answer`` says."""

    def __init__(self, served: Served, name: str, answer: Callable[[Packed], Message | None] = lambda _: None) -> None:
        self.said: list[Packed] = []
        self._requests: SimpleQueue[Packed | None] = SimpleQueue()
        self._requests.put(packed(streaming_pb2.StreamInit(id=name)))
        call = Stub(served.client.channel, streaming_pb2.DESCRIPTOR).Stream(
            iter(self._requests.get, None), metadata=within()
        )
        assert next(call).type_url == "google.protobuf.Empty"
        self._answer = answer
        self._call = call

    def send(self, message: Message | None) -> None:
        """Say something unasked; None that it is all."""
        self._requests.put(None if message is None else packed(message))

    def all(self) -> list[Packed]:
        """What comes until the stream ends."""
        for message in self._call:
            self.said.append(message)
            answer = self._answer(message)
            if answer is not None:
                self._requests.put(packed(answer))
        self._requests.put(None)
        return self.said


def transferred(served: Served, source: Message, destination: Message, progress: str = "") -> None:
    request = transfer_pb2.TransferRequest(source=packed(source), destination=packed(destination))
    request.options.progress_stream = progress
    Stub(served.client.channel, transfer_pb2.DESCRIPTOR).Transfer(request, metadata=within(), timeout=60)


@contextmanager
def reading(*streams: Stream) -> Iterator[None]:
    threads = [threading.Thread(target=stream.all) for stream in streams]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def who(message: Packed) -> pb.AuthResponse:
    assert message.type_url == "containerd.types.transfer.AuthRequest"
    return pb.AuthResponse(authType=pb.CREDENTIALS, username=USER, secret=PASSWORD)


def events(stream: Stream) -> list[pb.Progress]:
    assert {message.type_url for message in stream.said} == {"containerd.types.transfer.Progress"}
    return [pb.Progress.FromString(message.value) for message in stream.said]


def told(found: list[pb.Progress]) -> list[tuple[str, str]]:
    return [(one.event, one.name) for one in found]


def registered(registry: DockerRegistry, name: str, auth: str = "", **more: Any) -> pb.OCIRegistry:
    resolver = pb.RegistryResolver(auth_stream=auth, default_scheme="http", **more)
    return pb.OCIRegistry(reference=f"{registry.host}/{name}", resolver=resolver)


def keep(space: LocalNamespace, folder: Path) -> None:
    """Put the image into the namespace as example.org/x:1."""
    layout = write_layout(str(folder / "layout"), [tagged(IMAGE.descriptor, "x")], IMAGE.blobs)
    with (
        open_reader(parse_image_name(f"oci:{layout}:x")) as reader,
        StoreWriter(space, parse_image_name("store:example.org/x:1")) as writer,
    ):
        graph = ImageGraph(reader)
        copy_image(graph, writer, choose_image(graph, "x"), "1")


def test_an_image_is_pushed_and_pulled_with_news_of_each_part(
    registry: DockerRegistry, served: Served, tmp_path: Path
) -> None:
    space = served.store.namespace("default")
    keep(space, tmp_path)
    news, creds = Stream(served, "news"), Stream(served, "creds", who)
    target = registered(registry, "pushed:1", "creds")
    where = f"OCI Registry ({target.reference})"
    with reading(news, creds):
        transferred(served, pb.ImageStore(name="example.org/x:1"), target, "news")
    found = events(news)
    names = [MANIFEST, CONFIG, *LAYERS]
    root = "example.org/x:1"
    assert told(found)[:2] == [(f"Pushing to {where}", ""), ("pushing content", root)]
    assert told(found)[-2:] == [("pushed content", root), (f"Completed push to {where}", "")]
    assert {("waiting", name) for name in names} | {("complete", name) for name in names} == set(told(found)[2:-2])
    assert told(found)[2] == ("waiting", MANIFEST)
    for one in found[2:-2]:
        assert list(one.parents) == ([root] if one.name == MANIFEST else [MANIFEST])
        assert one.progress == (0 if one.event == "waiting" else one.total)
        assert one.total == one.desc.size > 0
    asked = [pb.AuthRequest.FromString(message.value) for message in creds.said]
    closed = [(one.host, one.reference) for one in asked]
    assert closed in ([], [(registry.host, target.reference)])

    news, creds = Stream(served, "news"), Stream(served, "creds", who)
    with reading(news, creds):
        transferred(served, registered(registry, "pushed:1", "creds"), pb.ImageStore(name="pulled"), "news")
    found = events(news)
    assert told(found)[:3] == [
        (f"Resolving from {where}", ""),
        (f"Pulling from {where}", ""),
        ("fetching image content", "pulled"),
    ]
    assert {("already exists", name) for name in names} < set(told(found))
    assert told(found)[-2:] == [("saved", "pulled"), (f"Completed pull from {where}", "")]
    assert space.images.get("pulled").target.digest == IMAGE.descriptor["digest"]
    assert [lease.id for lease in space.leases.list()] == []


def test_what_is_said_to_the_registry_is_shown_but_for_secrets(
    registry: DockerRegistry, served: Served, tmp_path: Path
) -> None:
    keep(served.store.namespace("default"), tmp_path)
    creds, log = Stream(served, "creds", who), Stream(served, "log")
    log.send(pb.WindowUpdate(update=1 << 20))
    with reading(creds, log):
        target = registered(registry, "shown:1", "creds", http_debug=1, logs_stream="log")
        transferred(served, pb.ImageStore(name="example.org/x:1"), target)
    said = b"".join(pb.Data.FromString(one.value).data for one in log.said).decode()
    begun = f"http://{registry.host}/v2/shown/blobs/uploads/"
    assert f"POST {begun} HTTP/1.1\n" in said
    assert f"HTTP 202 for POST {begun}\n" in said
    assert f"\nlocation: {begun}" in said
    assert "_state" not in said
    assert f"PUT http://{registry.host}/v2/shown/manifests/1 HTTP/1.1\n" in said
    assert ("Authorization: (not shown)\n" in said) is ("HTTP 401" in said)
    for secret in (PASSWORD, base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()):
        assert secret not in said


def test_a_client_that_takes_no_more_of_what_is_said_has_its_image_all_the_same(
    registry: DockerRegistry, served: Served, tmp_path: Path
) -> None:
    space = served.store.namespace("default")
    keep(space, tmp_path)
    for name, window in (("none", 0), ("little", 100)):
        creds, log = Stream(served, "creds", who), Stream(served, "log")
        log.send(pb.WindowUpdate(update=window))
        log.send(None)
        with reading(creds, log):
            target = registered(registry, f"{name}:1", "creds", http_debug=1, logs_stream="log")
            transferred(served, pb.ImageStore(name="example.org/x:1"), target)
            assert window == sum(len(pb.Data.FromString(one.value).data) for one in log.said)


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (pb.AuthResponse(authType=pb.HEADER, secret="Bearer x"), "UNIMPLEMENTED", "header"),
        (pb.AuthResponse(authType=pb.CREDENTIALS, username=USER, secret="wrong"), "PERMISSION_DENIED", "UNAUTHORIZED"),
        (pb.AuthResponse(), "PERMISSION_DENIED", "UNAUTHORIZED"),
        (pb.AuthRequest(), "INVALID_ARGUMENT", "is not the expected"),
    ],
)
def test_whoever_does_not_say_rightly_who_they_are_is_turned_away(
    answer: Message, code: str, said: str, needs: Callable[..., str], served: Served, tmp_path: Path
) -> None:
    with running(DockerRegistry(needs("docker-registry"), tmp_path / "registry", basic=True)) as registry:
        creds = Stream(served, "creds", lambda _: answer)
        with reading(creds):
            wrong = failure(lambda: transferred(served, registered(registry, "x:1", "creds"), pb.ImageStore(name="x")))
    assert wrong.code().name == code
    assert said in str(wrong.details())


@pytest.mark.parametrize(
    ("resolver", "store", "code"),
    [
        ({"headers": {"X-Meta": "x"}}, {}, "UNIMPLEMENTED"),
        ({"http_debug": 1}, {}, "UNIMPLEMENTED"),
        ({"http_debug": 2}, {}, "UNIMPLEMENTED"),
        ({"logs_stream": "x"}, {}, "NOT_FOUND"),
        ({"auth_stream": "none"}, {}, "NOT_FOUND"),
        ({"default_scheme": "ftp"}, {}, "INVALID_ARGUMENT"),
        ({}, {"manifest_limit": 1}, "UNIMPLEMENTED"),
        ({}, {"name": ""}, "NOT_FOUND"),
    ],
)
def test_what_is_not_served_is_said_to_be_so(
    resolver: dict[str, Any], store: dict[str, Any], code: str, served: Served
) -> None:
    source = pb.OCIRegistry(reference="127.0.0.1:1/x:1", resolver=pb.RegistryResolver(**resolver))
    wrong = failure(lambda: transferred(served, source, pb.ImageStore(**{"name": "x", **store})))
    assert wrong.code().name == code
