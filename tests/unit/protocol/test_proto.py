# SPDX-License-Identifier: Apache-2.0
"""The generated modules are what the .proto files say, with the odd numbers that the wire has."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message

from lamella.protocol.proto import content_pb2, diff_pb2, generate, images_pb2, leases_pb2, snapshots_pb2, transfers_pb2
from lamella.protocol.proto.types_pb2 import Descriptor


def test_the_generated_modules_are_those_of_the_proto_files() -> None:
    found = {path.name: path.read_text() for path in generate.PACKAGE.glob("*_pb2.py*")}
    assert generate.generated() == found


@pytest.mark.parametrize(
    ("message", "field", "number"),
    [
        (Descriptor, "annotations", 5),
        (images_pb2.Image, "created_at", 7),
        (images_pb2.Image, "updated_at", 8),
        (leases_pb2.Lease, "labels", 3),
        (leases_pb2.CreateRequest, "labels", 3),
        (diff_pb2.DiffResponse, "diff", 3),
        (snapshots_pb2.ListSnapshotsRequest, "filters", 2),
        (transfers_pb2.ImageStore, "unpacks", 10),
        (content_pb2.WriteContentRequest, "data", 6),
    ],
)
def test_fields_have_their_numbers(message: type[Message], field: str, number: int) -> None:
    assert message.DESCRIPTOR.fields_by_name[field].number == number
