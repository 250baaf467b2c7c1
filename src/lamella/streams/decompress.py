# SPDX-License-Identifier: Apache-2.0
"""Decoders: decompress a blob in the calling thread, without digests."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

from lamella.errors import Exhausted, FormatError, SizeMismatch
from lamella.progress import Cancellation
from lamella.streams.limits import BlobLimits

if TYPE_CHECKING:
    from backports.zstd import ZstdDecompressor

READ_SIZE: Final = 256 << 10
"""Compressed bytes read at once; larger reads are not faster."""

_WORTHWHILE: Final = 64 << 10
"""Short reads are joined up to this size, so that small pieces of a socket are not passed on one by one."""

_TAIL: Final = 16


class Source:
    """The compressed bytes, read once from start to end, counted and limited.

    ``taken`` is called with each piece that `read` returns. Reading past ``size`` raises SizeMismatch.
    """

    __slots__ = ("_cancel", "_fetched", "_head", "_raw", "_size", "count", "ended", "failure", "tail", "taken")

    def __init__(
        self,
        raw: BinaryIO,
        *,
        size: int | None = None,
        taken: Callable[[bytes], object] | None = None,
        cancel: Cancellation | None = None,
    ) -> None:
        self._raw = raw
        self._size = size
        self._cancel = cancel
        self._head = b""
        self._fetched = 0
        self.taken = taken
        self.count = 0
        """Bytes returned so far."""
        self.ended = False
        """Whether the end of the blob was reached."""
        self.failure: BaseException | None = None
        """The error of a read, to distinguish it from errors of a decoder."""
        self.tail = b""
        """The last bytes that `read` returned."""

    def peek(self, amount: int) -> bytes:
        """The next ``amount`` bytes, which `read` returns again; fewer only at the end of the blob."""
        pieces = [self._head]
        missing = amount - len(self._head)
        while missing > 0 and (piece := self._fetch(missing)):
            pieces.append(piece)
            missing -= len(piece)
        self._head = b"".join(pieces)
        return self._head

    def read(self, amount: int) -> bytes:
        """At most ``amount`` bytes; empty only at the end of the blob."""
        try:
            piece = self._next(amount)
            self.count += len(piece)
            self.tail = piece[-_TAIL:] if len(piece) >= _TAIL else (self.tail + piece)[-_TAIL:]
            if piece and self.taken is not None:
                self.taken(piece)
        except BaseException as error:
            self.failure = error
            raise
        return piece

    def readinto(self, view: memoryview) -> int:
        """Read into ``view`` and return the number of bytes."""
        piece = self.read(len(view))
        view[: len(piece)] = piece
        return len(piece)

    def fill(self, view: memoryview) -> int:
        """Fill ``view`` directly from the blob, without calling ``taken``; fewer bytes only at the end of the blob."""
        head, self._head = self._head[: len(view)], self._head[len(view) :]
        view[: len(head)] = head
        filled = len(head)
        readinto = self._raw.readinto if isinstance(self._raw, (io.RawIOBase, io.BufferedIOBase)) else None
        while filled < len(view):
            if readinto is None:
                piece = self._fetch(len(view) - filled)
                got = len(piece)
                view[filled : filled + got] = piece
            else:
                if self._cancel is not None:
                    self._cancel.check()
                got = readinto(view[filled:]) or 0
                self._account(got)
            if not got:
                break
            filled += got
        self.count += filled
        return filled

    def drain(self) -> None:
        """Read to the end of the blob."""
        while self.read(READ_SIZE):
            pass

    def _next(self, amount: int) -> bytes:
        if self._head:
            piece, self._head = self._head[:amount], self._head[amount:]
            return piece
        piece = self._fetch(amount)
        wanted = min(amount, _WORTHWHILE)
        if not piece or len(piece) >= wanted:
            return piece
        pieces, got = [piece], len(piece)
        while got < wanted and (piece := self._fetch(amount - got)):
            pieces.append(piece)
            got += len(piece)
        return b"".join(pieces)

    def _fetch(self, amount: int) -> bytes:
        if self._cancel is not None:
            self._cancel.check()
        piece = self._raw.read(amount)
        self._account(len(piece))
        return piece

    def _account(self, got: int) -> None:
        if not got:
            self.ended = True
        self._fetched += got
        if self._size is not None and self._fetched > self._size:
            raise SizeMismatch("layer blob", expected=self._size, actual=f"at least {self._fetched}")


class Decoder(Protocol):
    """Decompresses one `Source`."""

    def fill(self, view: memoryview) -> int:
        """Fill ``view``; fewer bytes only at the end of the stream and the blob. Raises FormatError."""
        ...


class Bounded:
    """A decoder whose output is counted and limited."""

    __slots__ = ("_decoder", "_limits", "_source", "size")

    def __init__(self, source: Source, decoder: Decoder, limits: BlobLimits) -> None:
        self._source = source
        self._limits = limits
        self._decoder = decoder
        self.size = 0
        """Uncompressed bytes so far."""

    def fill(self, view: memoryview) -> int:
        """Fill ``view``; fewer bytes only at the end of the stream and the blob. Raises FormatError, Exhausted."""
        filled = self._decoder.fill(view)
        self.size = size = self.size + filled
        limits = self._limits
        if limits.max_tar_size is not None and size > limits.max_tar_size:
            raise Exhausted(f"layer exceeds the limit of {limits.max_tar_size} uncompressed bytes")
        if limits.max_ratio is not None and size > limits.ratio_floor and size > limits.max_ratio * self._source.count:
            raise Exhausted(
                f"{self._source.count} bytes of the layer expand to {size} so far: more than {limits.max_ratio} to one"
            )
        return filled


class GzipDecoder:
    """One or more members. As in Go's reader, only another member may follow a member.

    The underlying reader skips zeros after a member, as gzip(1) does. Zeros after a single member are detected here;
    after several members, only if there are more than a member can end with.
    """

    __slots__ = ("_readinto", "_size", "_source")

    def __init__(self, source: Source) -> None:
        self._source = source
        self._size = 0
        self._readinto = _gzip_reader(source)

    def fill(self, view: memoryview) -> int:
        from isal import isal_zlib

        filled = 0
        try:
            while filled < len(view):
                got = self._readinto(view[filled:] if filled else view)
                if not got:
                    self._size += filled
                    self._refuse_padding()
                    return filled
                filled += got
        except (EOFError, OSError, OverflowError, isal_zlib.error) as error:  # type: ignore[misc]
            if self._source.failure is not None:
                raise
            raise self._problem(error) from error
        self._size += filled
        return filled

    def _problem(self, error: Exception) -> FormatError:
        if isinstance(error, EOFError):
            return FormatError("gzip stream", self._source.count, "truncated inside a member")
        if isinstance(error, OverflowError):
            return FormatError("gzip header", self._source.count, f"longer than {READ_SIZE} bytes")
        return FormatError("gzip stream", self._source.count, f"not valid at this point or shortly before: {error}")

    def _refuse_padding(self) -> None:
        # A member ends with its size. If the last bytes do not hold the size of the output, but the bytes before some
        # zeros do, those zeros are padding. An empty last member ends with at most nine zeros.
        tail = self._source.tail
        zeros = len(tail) - len(tail.rstrip(b"\0"))
        if not zeros:
            return
        size = (self._size & 0xFFFFFFFF).to_bytes(4, "little")
        padded = not tail.endswith(size) and any(tail[-4 - n : -n] == size for n in range(1, zeros + 1))
        if padded or zeros > 9:
            raise FormatError("gzip stream", self._source.count, "zeros after the last member")


def _gzip_reader(source: Source) -> Callable[[memoryview], int]:
    try:
        # What the public class wraps: without its two buffers decompression is 4 % faster.
        from isal.isal_zlib import _GzipReader
    except ImportError:
        from isal import igzip

        return igzip.GzipFile(fileobj=source, mode="rb").readinto  # type: ignore[no-untyped-call]
    return _GzipReader(source, READ_SIZE).readinto  # type: ignore[arg-type]


class ZstdDecoder:
    """One or more frames, also skippable ones (RFC 8878), with windows up to the limit."""

    __slots__ = ("_at", "_cap", "_chunk", "_fed", "_frame", "_source", "_step")

    _OUT: Final = 128 << 10
    """Uncompressed bytes requested at once: they stay in the processor's cache until they are copied."""
    _SMALLEST_STEP: Final = 1 << 10
    _HEADER: Final = 18

    def __init__(self, source: Source, window_log_max: int) -> None:
        self._source = source
        self._cap = window_log_max
        self._chunk = memoryview(b"")
        self._at = 0
        # The library copies input that follows a frame. Frames tend to have similar sizes, so the first input of a
        # frame is twice the size of the previous frame, and each further input twice as large.
        self._step = READ_SIZE
        self._fed = 0
        self._frame: ZstdDecompressor | None = None

    def fill(self, view: memoryview) -> int:
        from lamella.streams.zstandard import zstd

        filled = 0
        while filled < len(view):
            frame = self._frame
            if frame is None:
                frame = self._frame = self._next_frame()
                if frame is None:
                    break
            piece = self._feed() if frame.needs_input else b""
            try:
                out = frame.decompress(piece, min(len(view) - filled, self._OUT))
            except zstd.ZstdError as error:
                problem = f"not valid at this point or shortly before: {error}"
                raise FormatError("zstd stream", self._source.count, problem) from error
            view[filled : filled + len(out)] = out
            filled += len(out)
            if frame.eof:
                unused = len(frame.unused_data)
                self._at -= unused
                self._step = min(max(2 * (self._fed - unused), self._SMALLEST_STEP), READ_SIZE)
                self._frame = None
        return filled

    def _feed(self) -> memoryview:
        if self._at == len(self._chunk):
            self._chunk, self._at = memoryview(self._source.read(READ_SIZE)), 0
            if not self._chunk:
                raise FormatError("zstd stream", self._source.count, "truncated inside a frame")
        piece = self._chunk[self._at : self._at + self._step]
        self._at += len(piece)
        self._fed += len(piece)
        self._step = min(2 * self._step, READ_SIZE)
        return piece

    def _next_frame(self) -> ZstdDecompressor | None:
        head = self._peek()
        while len(head) >= 8 and head[0] >> 4 == 5 and head[1:4] == b"\x2a\x4d\x18":
            self._skip(8 + int.from_bytes(head[4:8], "little"))
            head = self._peek()
        if not head:
            return None
        window = _zstd_window(head)
        if window > 1 << self._cap:
            raise Exhausted(
                f"zstd frame needs a window of {window} bytes, the limit is {1 << self._cap} (2^{self._cap})",
                hint="recompress the layer without --long or --ultra",
            )
        from lamella.streams.zstandard import zstd

        self._fed = 0
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: self._cap})

    def _peek(self) -> bytes:
        """The next `_HEADER` bytes; fewer only at the end of the blob."""
        while len(self._chunk) - self._at < self._HEADER and (more := self._source.read(READ_SIZE)):
            self._chunk, self._at = memoryview(bytes(self._chunk[self._at :]) + more), 0
        return bytes(self._chunk[self._at : self._at + self._HEADER])

    def _skip(self, size: int) -> None:
        while size > (there := len(self._chunk) - self._at):
            size -= there
            self._chunk, self._at = memoryview(self._source.read(READ_SIZE)), 0
            if not self._chunk:
                raise FormatError("zstd stream", self._source.count, "truncated inside a frame")
        self._at += size


def _zstd_window(head: bytes) -> int:
    """The window size of a frame header (RFC 8878, 3.1.1.1); 0 for other or truncated data."""
    if head[:4] != b"\x28\xb5\x2f\xfd" or len(head) < 6:
        return 0
    descriptor = head[4]
    if not descriptor & 0x20:
        exponent, mantissa = head[5] >> 3, head[5] & 7
        return (1 << 10 + exponent) * (8 + mantissa) // 8
    # The window of a single-segment frame is its content.
    start = 5 + (0, 1, 2, 4)[descriptor & 3]
    width = (1, 2, 4, 8)[descriptor >> 6]
    size = int.from_bytes(head[start : start + width], "little")
    return size + 256 if width == 2 else size
