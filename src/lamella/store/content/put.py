# SPDX-License-Identifier: Apache-2.0
"""Store a blob once, even if several writers send it at the same time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from typing import Final

from lamella.digests import Digest
from lamella.errors import AlreadyExists, DigestMismatch, NotFound, SizeMismatch, Unavailable
from lamella.oci.descriptor import Descriptor
from lamella.store.contract import NO_LABELS, Buffer, ContentRecord, ContentStore, Ingest, Labels

PATIENCE: Final = 3600.0
"""Seconds to wait for another writer of the same blob."""

_MAX_PAUSE: Final = 0.5


def put_blob(
    content: ContentStore,
    descriptor: Descriptor,
    chunks: Callable[[int], Iterable[Buffer]],
    *,
    ref: str = "",
    labels: Labels = NO_LABELS,
    patience: float = PATIENCE,
) -> ContentRecord:
    """Store a blob if it is missing, and add ``labels`` to it.

    ``chunks`` returns the bytes from an offset on. It is called with the offset at which an earlier attempt under the
    same reference ended, and again with 0 if those bytes were wrong; never if the blob exists.
    Raises SizeMismatch and DigestMismatch, and the next attempt starts over; Unavailable after waiting ``patience``
    seconds for another writer; what ``chunks`` raises, and the next attempt resumes.
    """
    digest, size = descriptor.digest, descriptor.size
    end = time.monotonic() + patience
    pause = 0.005
    while True:
        try:
            with content.ingest(ref or f"blob-{digest}", total=size, expected=digest) as ingest:
                _fill(ingest, digest, size, chunks)
                return ingest.commit(size, digest, labels)
        except AlreadyExists:
            try:
                return label_blob(content, digest, labels)
            except NotFound:
                continue  # deleted meanwhile
        except Unavailable:
            if time.monotonic() > end:
                raise
        time.sleep(pause * random.uniform(0.5, 1))  # noqa: S311  # spreads the waiting writers
        pause = min(pause * 2, _MAX_PAUSE)


def _fill(ingest: Ingest, digest: Digest, size: int, chunks: Callable[[int], Iterable[Buffer]]) -> None:
    start = ingest.status().offset
    if start > size:
        ingest.truncate()
        start = 0
    _write(ingest, digest, start, size, chunks)
    if start and ingest.digest() != digest:
        ingest.truncate()
        _write(ingest, digest, 0, size, chunks)
    actual = ingest.digest()
    if actual != digest:
        ingest.truncate()
        raise DigestMismatch("blob", expected=digest, actual=actual)


def _write(ingest: Ingest, digest: Digest, start: int, size: int, chunks: Callable[[int], Iterable[Buffer]]) -> None:
    offset = start
    if start < size:
        for chunk in chunks(start):
            if offset + memoryview(chunk).nbytes > size:
                ingest.truncate()
                raise SizeMismatch(f"blob {digest}", expected=size, actual="more")
            offset = ingest.write(chunk)
    if offset != size:
        ingest.truncate()
        raise SizeMismatch(f"blob {digest}", expected=size, actual=offset)


def label_blob(content: ContentStore, digest: Digest, labels: Labels) -> ContentRecord:
    """Add ``labels`` to those of a blob. Raises NotFound, InvalidInput."""
    record = content.info(digest)
    missing = {key: value for key, value in labels.items() if record.labels.get(key, "") != value}
    return content.update(digest, missing, [f"labels.{key}" for key in missing]) if missing else record
