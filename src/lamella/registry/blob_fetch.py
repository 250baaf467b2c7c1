# SPDX-License-Identifier: Apache-2.0
"""The bytes of a blob as they arrive: by one request, or for a large one by several for ranges of it at once.

Either way a cut is mended by asking for the rest. Nothing is written down on the way, so that a layer is decompressed
and applied while it is still arriving.
"""

from __future__ import annotations

import io
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast
from urllib.parse import urlsplit

from lamella.errors import Denied, LamellaError, NotFound, SizeMismatch
from lamella.registry.endpoint import Endpoint
from lamella.registry.hosts import HostConfig
from lamella.registry.http.retry import Patience
from lamella.registry.http.transport import MAX_HOSTS, Interrupted, Response
from lamella.registry.http.urls import Origin, parse_origin

if TYPE_CHECKING:
    from lamella.images.options import RegistryOptions
    from lamella.oci.descriptor import Descriptor

PIECE: Final = 4 << 20
"""Bytes of one range."""

FAST: Final = 150e6
"""Bytes a second that one connection brings where others beside it would only cost time."""

ALONE: Final = 8 << 20
"""A blob of at most this many bytes is fetched by one request."""

READ: Final = 256 << 10
"""Bytes asked of the connection at once."""

SPARE_PIECES: Final = 5
"""Ranges that all blobs open at one place together may hold besides the one that each is being read from."""

_POLL: Final = 0.1

Fetch = Callable[[int, int | None], Response]
"""Gives the bytes of the blob from one offset to before another, or to its end: status 206, or 200 and all of it."""


class Budget:
    """Pieces that all streams together may hold besides the one that each is being read from."""

    def __init__(self, pieces: int) -> None:
        self._free = threading.Semaphore(pieces)

    def take(self) -> bool:
        """Whether there was one left."""
        return self._free.acquire(blocking=False)

    def give(self) -> None:
        """One is free again."""
        self._free.release()


class Part:
    """The bytes of a blob from ``start`` to before ``stop``, in order, whatever number of answers that takes."""

    def __init__(
        self, fetch: Fetch, descriptor: Descriptor, where: str, options: RegistryOptions, start: int, stop: int
    ) -> None:
        self._fetch = fetch
        self._size = descriptor.size
        self._what = f"{where}: {descriptor.digest}"
        self._options = options
        self._patience = Patience(options)
        self._at = start
        self._stop = stop
        self._response: Response | None = None
        self._waited = 0.0
        self._got = 0
        self.whole = False
        """Whether the last answer was all of the blob rather than the part that was asked for."""

    def open(self) -> None:
        """Ask for the bytes. Raises NotFound, SizeMismatch, Denied, Unavailable."""
        # Without a range where everything is wanted: there are registries that know none.
        everything = self._at == 0 and self._stop == self._size
        response = self._fetch(self._at, None if self._stop == self._size else self._stop) if not everything else None
        response = response or self._fetch(0, None)
        try:
            self.whole = response.status == 200
            self._check(response)
            skip = self._at if self.whole else 0
            while skip and (piece := response.read(min(skip, READ))):
                skip -= len(piece)
        except BaseException:
            response.close()
            raise
        self._response = response

    def readinto(self, view: memoryview) -> int:
        """Fill the start of ``view`` with the next bytes, and say how many; 0 at the end. Raises Unavailable,
        SizeMismatch.
        """
        while self._at < self._stop:
            if self._options.cancel is not None:
                self._options.cancel.check()
            began = time.monotonic()
            try:
                if self._response is None:
                    self.open()
                assert self._response is not None  # noqa: S101 opened above
                count = self._response.readinto(view[: self._stop - self._at])
                if not count:
                    raise Interrupted(f"{self._what}: the answer ended {self._stop - self._at} bytes early")
            except Interrupted as problem:
                self.close()
                self._patience.pause(problem)
                continue
            self._waited += time.monotonic() - began
            self._got += count
            self._at += count
            self._patience.progress(count)
            if self._at == self._stop:
                self._end()
            return count
        return 0

    @property
    def rate(self) -> float:
        """Bytes a second while somebody waited for them."""
        return self._got / (self._waited or 1e-9)

    def widen(self, stop: int) -> None:
        """Read on to ``stop`` where all of the blob is coming anyway."""
        self._stop = stop

    def close(self) -> None:
        """Let go of the connection."""
        response, self._response = self._response, None
        if response is not None:
            response.close()

    def _end(self) -> None:
        """Look whether the answer has ended too; one that goes on for ever is not to be read on."""
        response, self._response = self._response, None
        assert response is not None  # noqa: S101 it has just been read
        more = b""
        try:
            if self._stop == self._size and response.length is None:
                more = response.read(1)
        except Interrupted:
            pass  # all that was promised is here
        finally:
            response.close()
        if more:
            raise SizeMismatch(self._what, expected=self._size, actual="more")

    def _check(self, response: Response) -> None:
        """Refuse an answer that is about another blob than the descriptor. Raises SizeMismatch."""
        if self.whole:
            length = response.length
            if length is not None and length != self._size:
                raise SizeMismatch(self._what, expected=self._size, actual=length)
            return
        text = response.headers.get("Content-Range", "")
        span, _, total = text.removeprefix("bytes").strip().partition("/")
        if total.isdecimal() and int(total[:20]) != self._size:
            raise SizeMismatch(self._what, expected=self._size, actual=int(total[:20]))
        if span.partition("-")[0] != str(self._at):
            raise Interrupted(f"{self._what}: asked for bytes from {self._at}, got {text[:60]!r}")


class BlobStream(io.RawIOBase):
    """A blob in order, of exactly the promised size. Reads may be short; the digest is for the reader to check.

    Made open: the first answer is there. A large blob begins with one range. Where that comes so fast that more
    connections have nothing to add, the rest is one request too; else its ranges are fetched side by side, ahead of
    whoever reads. Raises NotFound, SizeMismatch, Denied, Unavailable, Cancelled.
    """

    def __init__(
        self, fetch: Fetch, descriptor: Descriptor, where: str, options: RegistryOptions, budget: Budget
    ) -> None:
        super().__init__()
        self._options = options
        self._budget = budget
        self._size = size = descriptor.size
        self._at = 0

        def part(start: int, stop: int) -> Part:
            return Part(fetch, descriptor, where, options, start, stop)

        self._part = part
        several = options.streams > 1 and size > ALONE
        first = part(0, PIECE if several else size)
        self._source: Part | _Window = first  # there before anything fails: what is never opened is closed too
        first.open()
        if several and first.whole:
            first.widen(size)

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes, as many as there are at hand."""
        view = memoryview(buffer).cast("B")
        if self.closed:
            raise ValueError("the blob is closed")
        if not view:
            return 0
        count = self._source.readinto(view)
        if not count and self._at < self._size:
            self._source = self._rest()
            count = self._source.readinto(view)
        self._at += count
        return count

    def read(self, size: int | None = -1) -> bytes:
        """At most ``size`` of the next bytes; all that is left for a negative size."""
        if size is None or size < 0:
            return b"".join(iter(lambda: self.read(READ), b""))
        buffer = bytearray(min(size, READ, self._size - self._at))
        return bytes(memoryview(buffer)[: self.readinto(buffer)])

    def readall(self) -> bytes:
        """All that is left."""
        return self.read()

    def close(self) -> None:
        """Stop what is under way."""
        if not self.closed:
            self._source.close()
        super().close()

    def _rest(self) -> Part | _Window:
        """What is left after the first range."""
        assert isinstance(self._source, Part)  # noqa: S101 a window reads to the end
        if self._source.rate > FAST:
            return self._part(self._at, self._size)
        return _Window(self._part, self._at, self._size, self._options, self._budget)


class _Piece:
    """One range: bytes that have arrived, and how it ended."""

    __slots__ = ("budgeted", "buffer", "error", "filled", "read", "size")

    def __init__(self, buffer: bytearray, size: int, budgeted: bool) -> None:
        self.buffer = buffer
        self.size = size
        self.budgeted = budgeted
        self.filled = 0
        self.read = 0
        self.error: BaseException | None = None


class _Window:
    """Ranges of a blob that arrive side by side and are read in order."""

    def __init__(
        self, part: Callable[[int, int], Part], start: int, size: int, options: RegistryOptions, budget: Budget
    ) -> None:
        self._part = part
        self._size = size
        self._options = options
        self._budget = budget
        self._changed = threading.Condition()
        self._stopped = False
        self._spare: bytearray | None = None
        self._pieces: deque[_Piece] = deque()
        self._begun = start
        for _ in range(min(options.streams, -(-(size - start) // PIECE))):
            threading.Thread(target=self._work, name="lamella-range", daemon=True).start()

    def readinto(self, view: memoryview) -> int:
        """What is at hand of the next bytes; 0 at the end."""
        with self._changed:
            while True:
                piece = self._pieces[0] if self._pieces else None
                if piece is None:
                    if self._begun >= self._size:
                        return 0
                elif piece.read < piece.filled:
                    start, piece.read = piece.read, min(piece.read + len(view), piece.filled)
                    count = piece.read - start
                    view[:count] = memoryview(piece.buffer)[start : piece.read]
                    return count
                elif piece.read == piece.size:
                    self._pieces.popleft()
                    self._spare = piece.buffer
                    self._give_back(piece)
                    self._changed.notify_all()
                    continue
                elif piece.error is not None:
                    raise piece.error
                self._changed.wait(_POLL)
                if self._options.cancel is not None:
                    self._options.cancel.check()

    def close(self) -> None:
        """Stop the threads: none is waited for, and each ends with the bytes that come next."""
        with self._changed:
            self._stopped = True
            for piece in self._pieces:
                self._give_back(piece)
            self._pieces.clear()
            self._spare = None
            self._changed.notify_all()

    def _work(self) -> None:
        while (begun := self._begin()) is not None:
            part, piece = begun
            try:
                self._fill(part, piece)
            except BaseException as error:  # noqa: BLE001 - raised in the reader's thread
                with self._changed:
                    piece.error = error
                    self._changed.notify_all()
                return
            finally:
                part.close()

    def _begin(self) -> tuple[Part, _Piece] | None:
        """The next range; None where there is no more to do."""
        with self._changed:
            while True:
                if self._stopped or self._begun >= self._size:
                    return None
                # One range must always be under way; others, as long as there is memory for them.
                needed = not self._pieces
                if needed or self._budget.take():
                    break
                self._changed.wait(_POLL)
            start, stop = self._begun, min(self._begun + PIECE, self._size)
            self._begun = stop
            buffer, self._spare = self._spare or bytearray(PIECE), None
            piece = _Piece(buffer, stop - start, budgeted=not needed)
            self._pieces.append(piece)
            return self._part(start, stop), piece

    def _fill(self, part: Part, piece: _Piece) -> None:
        view, changed = memoryview(piece.buffer), self._changed
        while count := part.readinto(view[piece.filled : piece.filled + READ]):
            with changed:
                if self._stopped:
                    return
                piece.filled += count
                changed.notify_all()

    def _give_back(self, piece: _Piece) -> None:
        if piece.budgeted:
            piece.budgeted = False
            self._budget.give()


_FAR: Final = "a document"
"""In place of a host: whoever wrote a file of this machine need not be on it."""


class ForeignLayers:
    """Opens layers that ``where`` lacks, as streams that mend themselves, and without any credentials.

    ``near`` is the registry that the image came from. Addresses without TLS are passed over unless it does without
    too, and those of a machine's own services are as they are for redirects. Where the image is a file, addresses
    without TLS are passed over unless ``options`` do without.
    """

    def __init__(self, where: str, options: RegistryOptions, near: Origin | None = None) -> None:
        self._where = where
        self._options = options
        self._near = near or Origin("http" if options.plain_http else "https", _FAR, 0)
        self._budget = Budget(SPARE_PIECES)
        self._endpoints: dict[tuple[Origin, str], Endpoint] = {}
        """By what the addresses begin with: where a token is asked for, what is below one path has the same."""
        self._lock = threading.Lock()

    def __call__(self, layer: Descriptor) -> BinaryIO:
        """A stream of the layer, which is already coming. Raises NotFound, SizeMismatch, Denied, Unavailable."""
        fetch = partial(self._fetch, layer)
        return cast("BinaryIO", BlobStream(fetch, layer, self._where, self._options, self._budget))

    def close(self) -> None:
        """Close idle connections; layers that are being read stay open."""
        with self._lock:
            endpoints, self._endpoints = list(self._endpoints.values()), {}
        for endpoint in endpoints:
            endpoint.close()

    def _fetch(self, layer: Descriptor, start: int = 0, stop: int | None = None) -> Response:
        """The bytes at the first of the layer's addresses that gives them."""
        problem: LamellaError | None = None
        headers = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}
        for url in layer.urls:
            try:
                origin = parse_origin(url)
                if origin.scheme != "https" and self._near.scheme == "https":
                    raise Denied(f"refused to fetch a layer without TLS from {origin}")
                doing = f"get the layer {layer.digest}"
                return self._endpoint(origin, url).request("GET", url, doing=doing, headers=headers, accept=(200, 206))
            except LamellaError as refused:
                problem = refused
        raise problem or NotFound(f"{layer.digest}: the layer gives no address that it could be fetched from")

    def _endpoint(self, origin: Origin, url: str) -> Endpoint:
        parts = urlsplit(url)
        key = origin, parts.path.rpartition("/")[0]
        with self._lock:
            endpoint = self._endpoints.pop(key, None)
            if endpoint is None:
                host = HostConfig(origin.scheme, parts.netloc)
                endpoint = Endpoint(host, origin.host, lambda: None, self._options, near=self._near)
            self._endpoints[key] = endpoint
            oldest = self._endpoints.pop(next(iter(self._endpoints))) if len(self._endpoints) > MAX_HOSTS else None
        if oldest is not None:
            oldest.close()
        return endpoint
