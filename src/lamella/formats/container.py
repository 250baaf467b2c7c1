# SPDX-License-Identifier: Apache-2.0
"""The container of our own index files: a magic number and one zstd frame of varints and byte strings."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, Final

from lamella.errors import FormatError

if TYPE_CHECKING:
    from lamella.streams.zstandard import zstd


def encode_varint(value: int) -> bytes:
    """Encode a non-negative integer as a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_STEP: Final = 256 << 10
_MAX_NUMBER: Final = 9
"""Maximum length of a varint in bytes (63 bits)."""


def frame_compressor(level: int, window_log: int) -> zstd.ZstdCompressor:
    """A zstd compressor with checksum, for a `FramedReader` with the same ``window_log``."""
    from lamella.streams.zstandard import zstd

    parameter = zstd.CompressionParameter
    options: dict[int, int] = {
        parameter.compression_level: level,
        parameter.window_log: window_log,
        parameter.checksum_flag: 1,
    }
    return zstd.ZstdCompressor(options=options)


class FramedReader:
    """Reads a frame incrementally; memory holds only the requested bytes.

    ``file`` is positioned at the frame; ``structure`` names it in errors. Damage raises FormatError, with the offset in
    the decompressed bytes.
    """

    def __init__(self, file: BinaryIO, structure: str, window_log: int) -> None:
        self._file = file
        self._structure = structure
        from lamella.streams.zstandard import zstd

        self._error = zstd.ZstdError
        self._frame = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: window_log})
        self._have = bytearray()
        self._at = 0
        self._before = 0

    def error(self, problem: str) -> FormatError:
        """A FormatError at the current offset."""
        return FormatError(self._structure, self._before + self._at, problem)

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes. Raises FormatError."""
        while len(self._have) - self._at < count:
            self._fill()
        return self._taken(count)

    def some(self, most: int) -> bytes:
        """The next 1 to ``most`` bytes. Raises FormatError."""
        if self._at == len(self._have):
            self._fill()
        return self._taken(most)

    def number(self, what: str, most: int | None = None) -> int:
        """The next varint. Raises FormatError, also if it exceeds ``most``."""
        value = 0
        for shift in range(0, 7 * _MAX_NUMBER, 7):
            if self._at == len(self._have):
                self._fill()
            byte = self._have[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                if most is not None and value > most:
                    raise self.error(f"{what}: {value} is above the limit of {most}")
                return value
        raise self.error(f"{what}: too large a number")

    def expect_end(self) -> None:
        """Raise FormatError unless the frame and the file end here."""
        while not self._frame.eof and len(self._have) == self._at:
            self._have += self._more()
        if len(self._have) > self._at or self._frame.unused_data or self._file.read(1):
            raise self.error("trailing data")

    def _taken(self, most: int) -> bytes:
        data = bytes(self._have[self._at : self._at + most])
        self._at += len(data)
        return data

    def _fill(self) -> None:
        """Read and decompress the next bytes."""
        self._before += self._at
        del self._have[: self._at]
        self._at = 0
        piece = b""
        while not piece:
            piece = self._more()
            if not piece and self._frame.eof:
                raise self.error("truncated: the frame is shorter than stated")
        self._have += piece

    def _more(self) -> bytes:
        if self._frame.eof:
            return b""
        piece = b""
        if self._frame.needs_input:
            piece = self._file.read(_STEP)
            if not piece:
                raise self.error("truncated: the file ends early")
        try:
            return self._frame.decompress(piece, _STEP)
        except self._error as error:
            raise self.error(f"not valid at this point or shortly before: {error}") from error
