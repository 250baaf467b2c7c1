# SPDX-License-Identifier: Apache-2.0
"""What our own files of many small parts have in common: one zstd frame of numbers (`varint`) and bytes, and magic."""

from __future__ import annotations

from typing import BinaryIO, Final

from lamella.errors import FormatError
from lamella.streams.zstandard import zstd


def encode_varint(value: int) -> bytes:
    """The bytes of a number, which is not negative."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_STEP: Final = 256 << 10
_MAX_NUMBER: Final = 9
"""Bytes of a number, which make 63 bits."""


def frame_compressor(level: int, window_log: int) -> zstd.ZstdCompressor:
    """What makes a frame, with a checksum, for a `FramedReader` with the same ``window_log``."""
    parameter = zstd.CompressionParameter
    options: dict[int, int] = {
        parameter.compression_level: level,
        parameter.window_log: window_log,
        parameter.checksum_flag: 1,
    }
    return zstd.ZstdCompressor(options=options)


class FramedReader:
    """The bytes in a frame, as many as are asked for, which is what of them is in memory.

    ``file`` has been read up to the frame; ``structure`` is how errors call it. What is damaged raises FormatError,
    whose offset is that in the bytes of the frame.
    """

    def __init__(self, file: BinaryIO, structure: str, window_log: int) -> None:
        self._file = file
        self._structure = structure
        self._frame = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: window_log})
        self._have = bytearray()
        self._at = 0
        self._before = 0

    def error(self, problem: str) -> FormatError:
        """The error for what was just read."""
        return FormatError(self._structure, self._before + self._at, problem)

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes. Raises FormatError."""
        while len(self._have) - self._at < count:
            self._fill()
        return self._taken(count)

    def some(self, most: int) -> bytes:
        """The next bytes, one at least and ``most`` at the most, as they come. Raises FormatError."""
        if self._at == len(self._have):
            self._fill()
        return self._taken(most)

    def number(self, what: str, most: int | None = None) -> int:
        """The next number. Raises FormatError, also above ``most``."""
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
        """Raise FormatError where something follows."""
        while not self._frame.eof and len(self._have) == self._at:
            self._have += self._more()
        if len(self._have) > self._at or self._frame.unused_data or self._file.read(1):
            raise self.error("something follows the end")

    def _taken(self, most: int) -> bytes:
        data = bytes(self._have[self._at : self._at + most])
        self._at += len(data)
        return data

    def _fill(self) -> None:
        """Have more bytes than there are."""
        self._before += self._at
        del self._have[: self._at]
        self._at = 0
        piece = b""
        while not piece:
            piece = self._more()
            if not piece and self._frame.eof:
                raise self.error("truncated: more bytes are announced than the frame has")
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
        except zstd.ZstdError as error:
            raise self.error(f"not valid at this point or shortly before: {error}") from error
