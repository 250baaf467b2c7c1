# SPDX-License-Identifier: Apache-2.0
"""The compression xz, by the standard library."""

from __future__ import annotations

import lzma

from lamella.errors import FormatError
from lamella.streams.compressions import Compression
from lamella.streams.decompress import READ_SIZE, Source
from lamella.streams.limits import BlobLimits


class XzDecoder:
    """Decompresses one xz stream."""

    def __init__(self, source: Source, limits: BlobLimits) -> None:
        del limits
        self._source = source
        self._state = lzma.LZMADecompressor(lzma.FORMAT_XZ)

    def fill(self, view: memoryview) -> int:
        filled = 0
        while filled < len(view) and not self._state.eof:
            data = self._source.read(READ_SIZE) if self._state.needs_input else b""
            if self._state.needs_input and not data:
                raise FormatError("xz stream", self._source.count, "truncated")
            try:
                out = self._state.decompress(data, len(view) - filled)
            except lzma.LZMAError as error:
                raise FormatError("xz stream", self._source.count, str(error)) from error
            view[filled : filled + len(out)] = out
            filled += len(out)
        return filled


class XzEncoder:
    """Compresses one xz stream; one thread at a time hands it the blocks in order."""

    workers = 1
    head = b""

    def __init__(self, level: int, threads: int) -> None:
        del threads
        self._state = lzma.LZMACompressor(preset=level)

    def block(self, data: memoryview, before: bytes) -> bytes:
        del before
        return self._state.compress(data)

    def account(self, data: memoryview) -> None:
        pass

    def tail(self) -> bytes:
        return self._state.flush()

    def whole(self, data: memoryview) -> bytes:
        return self._state.compress(data) + self._state.flush()


XZ = Compression(lambda head: head.startswith(b"\xfd7zXZ\x00"), XzDecoder, XzEncoder, levels=range(10), default_level=6)
