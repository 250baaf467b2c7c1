# SPDX-License-Identifier: Apache-2.0
"""Values of the store as values of the wire, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from lamella.digests import Digest, parse_digest
from lamella.errors import InvalidInput, Unsupported
from lamella.oci.descriptor import Descriptor
from lamella.protocol.proto import types_pb2
from lamella.times import SECOND

M = TypeVar("M", bound=Message)

_MAX_SIZE: Final = (1 << 63) - 1


def timestamp(ns: int) -> Timestamp:
    """``ns`` since the Unix epoch."""
    seconds, nanos = divmod(ns, SECOND)
    return Timestamp(seconds=seconds, nanos=nanos)


def nanoseconds(when: Timestamp) -> int:
    """Since the Unix epoch."""
    return when.seconds * SECOND + when.nanos


def digest(text: str, what: str = "digest") -> Digest:
    """The digest that a client has sent. Raises InvalidInput, also for an algorithm that is not known."""
    try:
        return parse_digest(text)
    except (InvalidInput, Unsupported) as problem:
        raise InvalidInput(f"{what}: {problem}") from problem


def fields(mask: FieldMask) -> tuple[str, ...]:
    """The paths of a mask, as they are: the keys of labels hold dots and slashes."""
    return tuple(mask.paths)


def descriptor(sent: types_pb2.Descriptor, what: str) -> Descriptor:
    """The descriptor that a client has sent. Raises InvalidInput."""
    if not sent.media_type:
        raise InvalidInput(f"{what}: the media type is missing")
    if not 0 <= sent.size <= _MAX_SIZE:
        raise InvalidInput(f"{what}: {sent.size} is no size")
    return Descriptor(
        media_type=sent.media_type,
        digest=digest(sent.digest, what),
        size=sent.size,
        annotations=dict(sent.annotations),
    )


def sent_descriptor(value: Descriptor) -> types_pb2.Descriptor:
    """``value`` for a client; URLs and embedded data have no place there."""
    return types_pb2.Descriptor(
        media_type=value.media_type, digest=value.digest, size=value.size, annotations=value.annotations
    )


def packed(message: Message) -> Any:
    """``message`` as containerd packs it: its bare full name for a URL."""
    return Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString(deterministic=True))


def type_name(value: Any) -> str:
    """The full name of the message that ``value`` holds, with or without a host before it."""
    return value.type_url.rpartition("/")[2]


def pages(records: Sequence[M], size: int = 100) -> list[Sequence[M]]:
    """``records`` in messages' worth."""
    return [records[at : at + size] for at in range(0, len(records), size)]


def labels(sent: Mapping[str, str]) -> dict[str, str]:
    """The labels that a client has sent."""
    return dict(sent)
