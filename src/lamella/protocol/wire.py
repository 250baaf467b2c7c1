# SPDX-License-Identifier: Apache-2.0
"""Conversions between values of the store and messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from google.protobuf.any_pb2 import Any
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from lamella.digests import Digest, parse_digest
from lamella.errors import InvalidInput, Unsupported
from lamella.oci.descriptor import Descriptor
from lamella.protocol.proto import types_pb2
from lamella.times import SECOND

_MAX_SIZE: Final = (1 << 63) - 1


def timestamp(ns: int) -> Timestamp:
    """A timestamp of ``ns`` nanoseconds since the Unix epoch."""
    seconds, nanos = divmod(ns, SECOND)
    return Timestamp(seconds=seconds, nanos=nanos)


def nanoseconds(when: Timestamp) -> int:
    """Nanoseconds since the Unix epoch."""
    return when.seconds * SECOND + when.nanos


def digest(text: str, what: str = "digest") -> Digest:
    """Parse a digest from a message. Raises InvalidInput, also for an unknown algorithm."""
    try:
        return parse_digest(text)
    except (InvalidInput, Unsupported) as problem:
        raise InvalidInput(f"{what}: {problem}") from problem


def fields(mask: FieldMask) -> tuple[str, ...]:
    """The paths of a mask, unparsed: label keys contain dots and slashes."""
    return tuple(mask.paths)


def descriptor(sent: types_pb2.Descriptor, what: str) -> Descriptor:
    """Parse a descriptor from a message. Raises InvalidInput."""
    if not sent.media_type:
        raise InvalidInput(f"{what}: the media type is missing")
    if not 0 <= sent.size <= _MAX_SIZE:
        raise InvalidInput(f"{what}: {sent.size} is not a size")
    return Descriptor(
        media_type=sent.media_type,
        digest=digest(sent.digest, what),
        size=sent.size,
        annotations=dict(sent.annotations),
    )


def sent_descriptor(value: Descriptor) -> types_pb2.Descriptor:
    """A descriptor as a message, which has no fields for URLs and embedded data."""
    return types_pb2.Descriptor(
        media_type=value.media_type, digest=value.digest, size=value.size, annotations=value.annotations
    )


def packed(message: Message) -> Any:
    """Pack ``message`` as containerd does, with its bare full name as the type URL."""
    return Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString(deterministic=True))


def type_name(value: Any) -> str:
    """Full name of the packed message, without the host of its type URL."""
    return value.type_url.rpartition("/")[2]


def labels(sent: Mapping[str, str]) -> dict[str, str]:
    """Labels from a message."""
    return dict(sent)
