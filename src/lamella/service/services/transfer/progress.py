# SPDX-License-Identifier: Apache-2.0
"""What becomes of each blob of an image, told as containerd tells it, so that clients draw it as a tree."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from lamella.protocol.wire import sent_descriptor
from lamella.store.image_writer import ingest_ref

if TYPE_CHECKING:
    from lamella.digests import Digest
    from lamella.oci.descriptor import Descriptor

EVERY: Final = 0.3
"""Seconds between two messages about the bytes of one blob."""

Tell = Callable[..., None]
"""Takes the fields of a message of the type ``containerd.types.transfer.Progress``."""


class News:
    """Tells of the blobs of one image; see `lamella.operations.copy.Watcher`."""

    def __init__(self, tell: Tell, image: str, doing: str) -> None:
        """``image`` is what the tree begins with, ``doing`` the word for blobs that are on their way."""
        self._tell = tell
        self._image = image
        self._doing = doing
        self._parents: dict[Digest, list[str]] = {}

    def expected(self, blobs: Iterable[Descriptor], children: Mapping[Digest, Iterable[Digest]]) -> None:
        """These are to come, parts before what names them; ``children`` says what each document names."""
        known = {blob.digest: blob for blob in blobs}
        for parent, named in children.items():
            for child in named:
                self._parents.setdefault(child, []).append(ingest_ref(known[parent]))
        for blob in reversed(known.values()):
            self._say("waiting", blob, 0)

    def present(self, blob: Descriptor) -> None:
        """See `Watcher.present`."""
        self._say("already exists", blob, blob.size)

    def begun(self, blob: Descriptor) -> _Passing:
        """See `Watcher.begun`."""
        return _Passing(lambda count: self._say(self._doing, blob, count))

    def done(self, blob: Descriptor) -> None:
        """See `Watcher.done`."""
        self._say("complete", blob, blob.size)

    def _say(self, event: str, blob: Descriptor, count: int) -> None:
        facts: dict[str, Any] = {"event": event, "name": ingest_ref(blob), "progress": count, "total": blob.size}
        parents = self._parents.get(blob.digest) or [self._image]
        self._tell(**facts, parents=parents, desc=sent_descriptor(blob))


class _Passing:
    """The bytes of one blob, told of now and then; see `lamella.progress.Progress`."""

    def __init__(self, say: Callable[[int], None]) -> None:
        self._say = say
        self._count = 0
        self._told = time.monotonic()
        self._lock = threading.Lock()

    def start(self, what: str, total: int | None) -> None:
        """See `Progress.start`."""

    def advance(self, amount: int) -> None:
        """See `Progress.advance`."""
        now = time.monotonic()
        with self._lock:
            self._count += amount
            if now - self._told < EVERY:
                return
            self._told = now
        self._say(self._count)

    def finish(self) -> None:
        """See `Progress.finish`."""
