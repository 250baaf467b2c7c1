# SPDX-License-Identifier: Apache-2.0
"""Random access to the uncompressed stream of a blob, for reading single files of a layer."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, Self

from lamella.errors import FormatError, from_os
from lamella.streams.buffers import BUFFER_SIZE
from lamella.streams.compressions import MAGIC_SIZE, NONE, identify, new_decoder
from lamella.streams.decompress import Bounded, Source
from lamella.streams.limits import DEFAULT_LIMITS, BlobLimits

_STEP: Final = 256 << 10


class SeekableBlob:
    """Reads any part of the uncompressed stream, any number of times, from any thread, without verifying digests.

    ``open`` opens the blob at its start. It is called at the first read and again at the first read backwards; the
    files are closed here. An uncompressed file is read in place. A compressed one is decompressed as reads proceed;
    at the first read backwards it is decompressed again, up to the offset needed, to an unnamed temporary file in
    ``directory``. ``compression`` is the one of the media type.

    `chunks` raises FormatError, Exhausted, InvalidInput and Unsupported as `BlobReader`, and the errors of ``open``
    and of the file.
    """

    def __init__(
        self,
        open: Callable[[], BinaryIO],  # noqa: A002 - the word for it
        compression: str | None = None,
        *,
        directory: str | os.PathLike[str] | None = None,
        limits: BlobLimits | None = None,
    ) -> None:
        self._open = open
        self._expected = compression
        self._directory = directory
        self._limits = limits or DEFAULT_LIMITS
        self._lock = threading.Lock()
        self._access: _InPlace | _Forward | _Spooled | None = None
        self._closed = False

    def chunks(self, offset: int, length: int) -> Iterator[bytes]:
        """The ``length`` bytes at ``offset``, in pieces; FormatError if the stream is shorter.

        Several iterations may run at once.
        """
        end = offset + length
        while offset < end:
            piece = self._read(offset, min(end - offset, _STEP))
            if not piece:
                raise FormatError("uncompressed layer", offset, f"ends {end - offset} bytes early")
            yield piece
            offset += len(piece)

    def close(self) -> None:
        """Close the blob and the temporary file. May be called again."""
        with self._lock:
            self._closed = True
            if self._access is not None:
                self._access.close()
                self._access = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, offset: int, amount: int) -> bytes:
        with self._lock:
            if self._closed:
                raise ValueError("the blob is closed")
            access = self._access
            if access is None:
                access = self._access = self._begin()
            if isinstance(access, _Forward) and offset < access.position:
                access.close()
                self._access = None
                raw = self._open()
                access = self._access = _Spooled(raw, access.compression, self._limits, self._directory)
            try:
                return access.read(offset, amount)
            except BaseException:
                # The position is unknown now; the next read starts again.
                self._access = None
                access.close()
                raise

    def _begin(self) -> _InPlace | _Forward:
        raw = self._open()
        try:
            source = Source(raw)
            compression = identify(source.peek(MAGIC_SIZE), self._expected)
            if compression == NONE and raw.seekable():
                return _InPlace(raw)
            return _Forward(raw, source, compression, self._limits)
        except BaseException:
            raw.close()
            raise


class _InPlace:
    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        try:
            self._descriptor = raw.fileno()
        except (OSError, AttributeError):  # a file object without a descriptor
            self._descriptor = -1

    def read(self, offset: int, amount: int) -> bytes:
        if self._descriptor >= 0:
            return os.pread(self._descriptor, amount, offset)
        self._raw.seek(offset)
        return self._raw.read(amount)

    def close(self) -> None:
        self._raw.close()


class _Forward:
    def __init__(self, raw: BinaryIO, source: Source, compression: str, limits: BlobLimits) -> None:
        self.compression = compression
        self._raw = raw
        self._decoder = Bounded(source, new_decoder(compression, source, limits), limits)
        self._room = memoryview(bytearray(_STEP))

    @property
    def position(self) -> int:
        return self._decoder.size

    def read(self, offset: int, amount: int) -> bytes:
        room, fill = self._room, self._decoder.fill
        while (skip := offset - self._decoder.size) > 0:
            if not fill(room[: min(skip, len(room))]):
                return b""
        return bytes(room[: fill(room[:amount])])

    def close(self) -> None:
        self._raw.close()


class _Spooled:
    def __init__(
        self, raw: BinaryIO, compression: str, limits: BlobLimits, directory: str | os.PathLike[str] | None
    ) -> None:
        self._raw = raw
        try:
            source = Source(raw)
            self._decoder = Bounded(source, new_decoder(compression, source, limits), limits)
            import tempfile

            self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - closed with this object
        except OSError as error:
            raw.close()
            raise from_os(error, "make a temporary file for an uncompressed layer") from error
        except BaseException:
            raw.close()
            raise
        self._room = memoryview(bytearray(BUFFER_SIZE))
        self._ended = False

    def read(self, offset: int, amount: int) -> bytes:
        while not self._ended and self._decoder.size < offset + amount:
            at = self._decoder.size
            filled = self._decoder.fill(self._room)
            self._ended = filled < len(self._room)
            self._write(self._room[:filled], at)
        return os.pread(self._file.fileno(), amount, offset)

    def close(self) -> None:
        self._file.close()
        self._raw.close()

    def _write(self, data: memoryview, at: int) -> None:
        try:
            while data:
                written = os.pwrite(self._file.fileno(), data, at)
                data, at = data[written:], at + written
        except OSError as error:
            raise from_os(error, "keep an uncompressed layer in a temporary file") from error
