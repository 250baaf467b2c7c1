# SPDX-License-Identifier: Apache-2.0
"""Files of blobs that are being read piece by piece: clients ask for a large one in thousands of calls."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import BinaryIO, Final

from lamella.digests import Digest

MOST: Final = 64
"""Files that are kept open."""

FRESH: Final = 1.0
"""Seconds until the store is asked again whether the blob is there: another process may have deleted it."""


class OpenBlob:
    """An open file and its size in bytes. It is closed when nobody refers to it any more."""

    __slots__ = ("file", "looked", "size")

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.looked = time.monotonic()

    def __del__(self) -> None:
        self.file.close()


class OpenBlobs:
    """The blobs that were read last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blobs: OrderedDict[tuple[str, str], OpenBlob] = OrderedDict()

    def get(self, namespace: str, digest: Digest, find: Callable[[], BinaryIO]) -> OpenBlob:
        """The blob, which ``find`` opens if need be. Raises what that raises."""
        key = (namespace, digest)
        blob = self._blobs.get(key)
        if blob is not None and time.monotonic() - blob.looked < FRESH:
            return blob
        self.forget(namespace, digest)
        blob = OpenBlob(find())
        with self._lock:
            self._blobs[key] = blob
            # The oldest go, so that a deleted blob does not take space for long.
            while len(self._blobs) > MOST:
                self._blobs.popitem(last=False)
        return blob

    def forget(self, namespace: str, digest: Digest) -> None:
        """The blob is gone."""
        with self._lock:
            self._blobs.pop((namespace, digest), None)

    def clear(self) -> None:
        """Any blob may be gone."""
        with self._lock:
            self._blobs.clear()
