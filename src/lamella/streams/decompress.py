# SPDX-License-Identifier: Apache-2.0
"""From the bytes of a blob to its uncompressed stream, in one thread and without digests."""

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
"""Compressed bytes asked for at once; more gains nothing."""

_WORTHWHILE: Final = 64 << 10
"""Short reads are joined up to this many bytes, so that a socket's small pieces don't cost a hand-over each."""

_TAIL: Final = 16


class Source:
    """The compressed bytes, read once from start to end, counted and bounded.

    ``taken`` hears every piece that `read` gives out. Reading past ``size`` raises SizeMismatch at once.
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
        """Bytes given out so far."""
        self.ended = False
        """Whether the end of the blob was reached."""
        self.failure: BaseException | None = None
        """What reading raised, to tell it from what a decoder raises."""
        self.tail = b""
        """The last bytes that `read` gave out."""

    def peek(self, amount: int) -> bytes:
        """The next ``amount`` bytes, which `read` will give again; fewer only where the blob ends."""
        pieces = [self._head]
        missing = amount - len(self._head)
        while missing > 0 and (piece := self._fetch(missing)):
            pieces.append(piece)
            missing -= len(piece)
        self._head = b"".join(pieces)
        return self._head

    def read(self, amount: int) -> bytes:
        """At most ``amount`` bytes; empty at the end of the blob alone."""
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
        """`read` into ``view``; the number of bytes."""
        piece = self.read(len(view))
        view[: len(piece)] = piece
        return len(piece)

    def fill(self, view: memoryview) -> int:
        """Fill ``view`` straight from the blob, past ``taken``; fewer bytes only where the blob ends."""
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
    """Gives the uncompressed stream of one `Source`."""

    def fill(self, view: memoryview) -> int:
        """Fill ``view``; fewer bytes only where both the stream and the blob end. Raises FormatError."""
        ...


class Bounded:
    """A decoder whose output is counted and kept within the limits."""

    __slots__ = ("_decoder", "_limits", "_source", "size")

    def __init__(self, source: Source, decoder: Decoder, limits: BlobLimits) -> None:
        self._source = source
        self._limits = limits
        self._decoder = decoder
        self.size = 0
        """Uncompressed bytes so far."""

    def fill(self, view: memoryview) -> int:
        """Fill ``view``; fewer bytes only where both the stream and the blob end. Raises FormatError, Exhausted."""
        filled = self._decoder.fill(view)
        self.size = size = self.size + filled
        limits = self._limits
        if limits.max_tar_size is not None and size > limits.max_tar_size:
            raise Exhausted(f"layer grows past the limit of {limits.max_tar_size} uncompressed bytes")
        if limits.max_ratio is not None and size > limits.ratio_floor and size > limits.max_ratio * self._source.count:
            raise Exhausted(
                f"layer of {size} bytes so far came out of {self._source.count}: more than {limits.max_ratio} to one"
            )
        return filled


class GzipDecoder:
    """Members one after the other, as Go's reader takes them: whatever follows the last one must be a member too.

    The reader beneath skips zeros between members and at the end, as gzip(1) does. Zeros after a blob of one member
    are found here; after several, only where there are more than a last member can end with.
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
            return FormatError("gzip stream", self._source.count, "truncated: the blob ends inside a member")
        if isinstance(error, OverflowError):
            return FormatError("gzip header", self._source.count, f"longer than {READ_SIZE} bytes")
        return FormatError("gzip stream", self._source.count, f"not valid at this point or shortly before: {error}")

    def _refuse_padding(self) -> None:
        # A member ends with its size. Where the one that the last bytes hold is not what came out, but is so some
        # zeros earlier, those zeros are padding. An empty last member ends with nine zeros at the most.
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
        # What the public class wraps; without its two buffers on top the thread that inflates is 4 % faster.
        from isal.isal_zlib import _GzipReader
    except ImportError:
        from isal import igzip

        return igzip.GzipFile(fileobj=source, mode="rb").readinto  # type: ignore[no-untyped-call]
    return _GzipReader(source, READ_SIZE).readinto  # type: ignore[arg-type]


class ZstdDecoder:
    """Frames one after the other, skippable ones among them (RFC 8878), none with a window above the cap."""

    __slots__ = ("_at", "_cap", "_chunk", "_fed", "_frame", "_source", "_step")

    _OUT: Final = 128 << 10
    """Uncompressed bytes asked for at once: what stays in the cache until it is copied to its place."""
    _SMALLEST_STEP: Final = 1 << 10
    _HEADER: Final = 18

    def __init__(self, source: Source, window_log_max: int) -> None:
        self._source = source
        self._cap = window_log_max
        self._chunk = memoryview(b"")
        self._at = 0
        # What follows a frame in the bytes that it is fed is copied. Frames tend to be like the one before them, so
        # twice its size is a good first helping; each further one is twice as large.
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
                raise FormatError("zstd stream", self._source.count, "truncated: the blob ends inside a frame")
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
                f"zstd frame wants a window of {window} bytes, the limit is {1 << self._cap} (2^{self._cap})",
                hint="recompress the layer without --long or --ultra",
            )
        from lamella.streams.zstandard import zstd

        self._fed = 0
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: self._cap})

    def _peek(self) -> bytes:
        """The next bytes, as many as tell what they are; fewer only where the blob ends."""
        while len(self._chunk) - self._at < self._HEADER and (more := self._source.read(READ_SIZE)):
            self._chunk, self._at = memoryview(bytes(self._chunk[self._at :]) + more), 0
        return bytes(self._chunk[self._at : self._at + self._HEADER])

    def _skip(self, size: int) -> None:
        while size > (there := len(self._chunk) - self._at):
            size -= there
            self._chunk, self._at = memoryview(self._source.read(READ_SIZE)), 0
            if not self._chunk:
                raise FormatError("zstd stream", self._source.count, "truncated: the blob ends inside a frame")
        self._at += size


def _zstd_window(head: bytes) -> int:
    """The window that a frame header asks for (RFC 8878, 3.1.1.1); 0 where there is none or it is cut short."""
    if head[:4] != b"\x28\xb5\x2f\xfd" or len(head) < 6:
        return 0
    descriptor = head[4]
    if not descriptor & 0x20:
        exponent, mantissa = head[5] >> 3, head[5] & 7
        return (1 << 10 + exponent) * (8 + mantissa) // 8
    # A frame in a single segment has no window of its own: all of its content is one.
    start = 5 + (0, 1, 2, 4)[descriptor & 3]
    width = (1, 2, 4, 8)[descriptor >> 6]
    size = int.from_bytes(head[start : start + width], "little")
    return size + 256 if width == 2 else size
