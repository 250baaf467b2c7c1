# SPDX-License-Identifier: Apache-2.0
"""Whatever a request says, its client gets a status that fits, and the server goes on as before."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.service.serving import Served, Stub, running, serving

from lamella.protocol.proto import (
    content_pb2,
    diff_pb2,
    events_pb2,
    images_pb2,
    introspection_pb2,
    leases_pb2,
    namespaces_pb2,
    snapshots_pb2,
    streaming_pb2,
    transfer_pb2,
)
from lamella.service.endpoints.plugin import opened_plugin, plugin_methods

FILES = (
    *(content_pb2, diff_pb2, events_pb2, images_pb2, introspection_pb2, leases_pb2, namespaces_pb2),
    *(snapshots_pb2, streaming_pb2, transfer_pb2),
)
METHODS = [
    (file.DESCRIPTOR, method)
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if method.name != "Subscribe"  # which waits for what never comes
]
OF_A_PLUGIN = [
    (file, method) for file, method in METHODS if file.name.rpartition("/")[2][:4] in ("cont", "snap", "diff")
]
DIGEST = "sha256:" + "a" * 64
TEXTS = st.sampled_from(
    [
        *("", " ", "/", "..", "../../etc/passwd", "a\nb", "\x7f", "ключ", "'; DROP TABLE blob; --", "%s%n", "x" * 5000),
        *("sha256:", "sha256:xyz", DIGEST, DIGEST.upper(), "md5:" + "a" * 32, "sha512:" + "b" * 128, "overlayfs"),
        *("native", "erofs", "lamella", "bind", "overlay", "rw", "upperdir=", "lowerdir=\\", "lowerdir=a:b", "labels."),
        *("labels", "labels.a", "target", "name", "name==", 'labels."', "name~=(((", "/nowhere/at/all", "content"),
        *("snapshots/", "snapshots/overlayfs", "containerd.io/gc.expire", "9999-99-99T99:99:99Z", "here", "there"),
        "application/vnd.oci.image.layer.v1.tar+gzip",
    ]
)
NUMBERS = st.sampled_from([0, 1, -1, 7, 1 << 31, -(1 << 31), (1 << 63) - 1, -(1 << 63)])
HEADERS = st.sampled_from(["here", "there", "not/good", "", "n" * 77])


def values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return TEXTS
        case FieldDescriptor.TYPE_BYTES:
            return st.binary(max_size=30)
        case FieldDescriptor.TYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.TYPE_ENUM:
            return st.integers(-1, 5)
        case FieldDescriptor.TYPE_MESSAGE:
            assert field.message_type is not None
            return messages(field.message_type, depth - 1)
        case FieldDescriptor.TYPE_INT64:
            return NUMBERS
        case FieldDescriptor.TYPE_UINT32 | FieldDescriptor.TYPE_UINT64:
            return st.sampled_from([0, 1, (1 << 32) - 1])
        case _:
            return st.sampled_from([0, 1, -1, (1 << 31) - 1, -(1 << 31)])


@st.composite
def messages(draw: st.DrawFn, described: Descriptor, depth: int = 3) -> Message:
    message = GetMessageClass(described)()
    for field in described.fields:
        if draw(st.integers(0, 3)) == 0 or (field.type == FieldDescriptor.TYPE_MESSAGE and depth <= 0):
            continue
        of_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if of_map and field.message_type is not None:
            if field.message_type.fields_by_name["value"].type == FieldDescriptor.TYPE_STRING:
                getattr(message, field.name).update(draw(st.dictionaries(TEXTS, TEXTS, max_size=2)))
        elif field.is_repeated:
            for value in draw(st.lists(values(field, depth), max_size=2)):
                if isinstance(value, Message):
                    getattr(message, field.name).add().CopyFrom(value)
                else:
                    getattr(message, field.name).append(value)
        else:
            value = draw(values(field, depth))
            if isinstance(value, Message):
                getattr(message, field.name).CopyFrom(value)
            else:
                setattr(message, field.name, value)
    return message


class Errors(logging.Handler):
    """What was logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("hostile")) as served:
        yield served


@pytest.fixture(scope="module")
def plugin(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    address = tmp_path_factory.mktemp("plugin") / "p.sock"
    with (
        opened_plugin(served.store.root, str(served.address)) as plugin,
        running(address, plugin_methods(plugin)),
        grpc.insecure_channel(f"unix:{address}") as channel,
    ):
        yield channel


@pytest.fixture(scope="module")
def errors() -> Iterator[Errors]:
    found = Errors()
    log = logging.getLogger("lamella.service")
    log.addHandler(found)
    yield found
    log.removeHandler(found)


def answered(
    channel: grpc.Channel, file: Any, method: MethodDescriptor, request: Message, metadata: list[tuple[str, str]]
) -> tuple[str, str]:
    """The status of a call, and what is said about it."""
    call = getattr(Stub(channel, file), method.name)
    try:
        answer = call(iter([request]) if method.client_streaming else request, metadata=metadata, timeout=10)
        if isinstance(answer, Iterator):
            list(answer)
    except grpc.RpcError as problem:
        return problem.code().name, problem.details() or ""
    return "OK", ""


LIMITS = settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@LIMITS
@given(st.data())
def test_a_client_gets_a_status_that_fits(served: Served, errors: Errors, data: st.DataObject) -> None:
    file, method = data.draw(st.sampled_from(METHODS))
    request = data.draw(messages(method.input_type))
    metadata = [
        ("containerd-namespace", data.draw(HEADERS)),
        ("containerd-lease", data.draw(st.sampled_from(["", "x"]))),
    ]
    code, said = answered(served.client.channel, file, method, request, metadata)
    assert code not in ("UNKNOWN", "INTERNAL", "DEADLINE_EXCEEDED", "DATA_LOSS"), f"{method.full_name}: {said}"
    assert errors.messages == []


@LIMITS
@given(st.data())
def test_a_containerd_of_whatever_release_gets_one_from_its_plugin(
    plugin: grpc.Channel, errors: Errors, data: st.DataObject
) -> None:
    file, method = data.draw(st.sampled_from(OF_A_PLUGIN))
    request = data.draw(messages(method.input_type))
    metadata = data.draw(st.sampled_from([[], [("containerd-namespace", "here"), ("containerd-lease", "unknown")]]))
    code, said = answered(plugin, file, method, request, metadata)
    assert code not in ("UNKNOWN", "INTERNAL", "DEADLINE_EXCEEDED", "DATA_LOSS"), f"{method.full_name}: {said}"
    assert errors.messages == []


def test_no_ingest_is_left_open(served: Served) -> None:
    for namespace in ("here", "there"):
        content = served.store.namespace(namespace).content
        for status in content.statuses():
            content.abort(status.ref)  # which an ingest that is open does not allow
        assert content.statuses() == []
