# SPDX-License-Identifier: Apache-2.0
"""Blobs as streams: by one request, or for a large blob by several requests for ranges at once.

A cut response is continued by a request for the rest. Nothing is written to disk, so that a layer is decompressed and
applied while it is still arriving.
"""

from __future__ import annotations

import io
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeAlias, cast
from urllib.parse import urlsplit

from lamella.errors import Denied, LamellaError, NotFound, SizeMismatch
from lamella.registry.endpoint import Endpoint, Request
from lamella.registry.hosts import HostConfig
from lamella.registry.http.retry import Retries
from lamella.registry.http.transport import MAX_HOSTS, Interrupted, Response
from lamella.registry.http.urls import Origin, parse_origin

if TYPE_CHECKING:
    from lamella.images.options import RegistryOptions
    from lamella.oci.descriptor import Descriptor

RANGE_SIZE: Final = 4 << 20
"""Bytes of one range."""

SINGLE_REQUEST_SIZE: Final = 8 << 20
"""Blobs of at most this many bytes are fetched by one request."""

FAST_RATE: Final = 150e6
"""Bytes a second of one connection from which on further connections only cost time."""

READ_SIZE: Final = 256 << 10
"""Bytes of one read from a connection."""

READ_AHEAD: Final = 5
"""Ranges that all open blobs of an image reader may hold together, besides the one that each is being read from. The
``budget`` of the streams is a semaphore with this count."""

_POLL: Final = 0.1
"""Seconds between checks for cancellation."""

Fetch: TypeAlias = Callable[[int, int | None], Response]
"""Requests the bytes of a blob from ``start`` to before ``stop`` (None: its end). The response has status 206, or 200
and the whole blob."""


class RangeReader:
    """Reads the bytes of a blob from ``start`` to before ``stop`` in order, by as many requests as cuts require."""

    def __init__(
        self, fetch: Fetch, descriptor: Descriptor, where: str, options: RegistryOptions, start: int, stop: int
    ) -> None:
        self._fetch = fetch
        self._size = descriptor.size
        self._what = f"{where}: {descriptor.digest}"
        self._options = options
        self._retries = Retries(options)
        self._at = start
        self._stop = stop
        self._response: Response | None = None
        self._waited = 0.0
        self._received = 0
        self.whole = False
        """Whether the server answered the last request with the whole blob instead of the range."""

    def open(self) -> None:
        """Request the bytes. Raises NotFound, SizeMismatch, Denied, Unavailable."""
        if self._at == 0 and self._stop == self._size:
            response = self._fetch(0, None)  # without a range, which some registries do not support
        else:
            response = self._fetch(self._at, None if self._stop == self._size else self._stop)
        try:
            self.whole = response.status == 200
            self._check(response)
            skip = self._at if self.whole else 0
            while skip and (piece := response.read(min(skip, READ_SIZE))):
                skip -= len(piece)
        except BaseException:
            response.close()
            raise
        self._response = response

    def readinto(self, view: memoryview) -> int:
        """Fill the start of ``view`` with the next bytes and return their number; 0 at the end.

        Raises Unavailable, SizeMismatch, Cancelled.
        """
        while self._at < self._stop:
            if self._options.cancel is not None:
                self._options.cancel.check()
            self._retries.begin()
            began = time.monotonic()
            try:
                if self._response is None:
                    self.open()
                assert self._response is not None  # noqa: S101 opened above
                count = self._response.readinto(view[: self._stop - self._at])
                if not count:
                    raise Interrupted(f"{self._what}: the response ended {self._stop - self._at} bytes early")
            except Interrupted as problem:
                self.close()
                self._retries.pause(problem)
                continue
            self._waited += time.monotonic() - began
            self._received += count
            self._at += count
            self._retries.progress(count)
            if self._at == self._stop:
                self._finish()
            return count
        return 0

    @property
    def rate(self) -> float:
        """Bytes received a second of waiting for them, without the time between the reads."""
        return self._received / (self._waited or 1e-9)

    def extend(self, stop: int) -> None:
        """Read on to ``stop``; for a response that has the whole blob."""
        self._stop = stop

    def close(self) -> None:
        """Close the response."""
        response, self._response = self._response, None
        if response is not None:
            response.close()

    def _finish(self) -> None:
        """Close the response; one without a length must end where the blob does. Raises SizeMismatch."""
        response, self._response = self._response, None
        assert response is not None  # noqa: S101 it has just been read
        more = b""
        try:
            if self._stop == self._size and response.length is None:
                more = response.read(1)
        except Interrupted:
            pass  # all bytes of the blob are here
        finally:
            response.close()
        if more:
            raise SizeMismatch(self._what, expected=self._size, actual="more")

    def _check(self, response: Response) -> None:
        """Check the size of the blob and the range in the headers. Raises SizeMismatch, Interrupted."""
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
    """A blob of exactly the descriptor's size. Reads may be short; the caller checks the digest.

    Made with its first response open. A large blob begins with one range. If that arrives faster than `FAST_RATE`, one
    request fetches the rest; otherwise ranges are fetched side by side, ahead of the reads. Raises NotFound,
    SizeMismatch, Denied, Unavailable, Cancelled.
    """

    def __init__(
        self, fetch: Fetch, descriptor: Descriptor, where: str, options: RegistryOptions, budget: threading.Semaphore
    ) -> None:
        super().__init__()
        self._options = options
        self._budget = budget
        self._size = size = descriptor.size
        self._at = 0

        def open_range(start: int, stop: int) -> RangeReader:
            return RangeReader(fetch, descriptor, where, options, start, stop)

        self._open_range = open_range
        in_ranges = options.streams > 1 and size > SINGLE_REQUEST_SIZE
        first = open_range(0, RANGE_SIZE if in_ranges else size)
        self._source: RangeReader | _ReadAhead = first  # set before anything can fail, since close uses it
        first.open()
        if in_ranges and first.whole:
            first.extend(size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self.closed:
            raise ValueError("the blob is closed")
        if not view:
            return 0
        count = self._source.readinto(view)
        if not count and self._at < self._size:
            self._source = self._open_rest()
            count = self._source.readinto(view)
        self._at += count
        return count

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            return b"".join(iter(lambda: self.read(READ_SIZE), b""))
        buffer = bytearray(min(size, READ_SIZE, self._size - self._at))
        return bytes(memoryview(buffer)[: self.readinto(buffer)])

    def readall(self) -> bytes:
        return self.read()

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()

    def _open_rest(self) -> RangeReader | _ReadAhead:
        """Return the source of the bytes after the first range."""
        assert isinstance(self._source, RangeReader)  # noqa: S101 a read-ahead reads to the end
        if self._source.rate > FAST_RATE:
            return self._open_range(self._at, self._size)
        return _ReadAhead(self._open_range, self._at, self._size, self._options, self._budget)


class _Range:
    """One range of a read-ahead: the bytes that have arrived, and the error that ended it."""

    __slots__ = ("budgeted", "buffer", "error", "filled", "read", "size")

    def __init__(self, buffer: bytearray, size: int, budgeted: bool) -> None:
        self.buffer = buffer
        self.size = size
        self.budgeted = budgeted
        self.filled = 0
        self.read = 0
        self.error: BaseException | None = None


class _ReadAhead:
    """Ranges of a blob that threads fetch side by side and that are read in order."""

    def __init__(
        self,
        open_range: Callable[[int, int], RangeReader],
        start: int,
        size: int,
        options: RegistryOptions,
        budget: threading.Semaphore,
    ) -> None:
        self._open_range = open_range
        self._size = size
        self._options = options
        self._budget = budget
        self._changed = threading.Condition()
        self._stopped = False
        self._spare: bytearray | None = None
        self._ranges: deque[_Range] = deque()
        self._next_start = start
        for _ in range(min(options.streams, -(-(size - start) // RANGE_SIZE))):
            threading.Thread(target=self._work, name="lamella-range", daemon=True).start()

    def readinto(self, view: memoryview) -> int:
        """Fill the start of ``view`` with the next bytes that have arrived; 0 at the end."""
        with self._changed:
            while True:
                first = self._ranges[0] if self._ranges else None
                if first is None:
                    if self._next_start >= self._size:
                        return 0
                elif first.read < first.filled:
                    start, first.read = first.read, min(first.read + len(view), first.filled)
                    count = first.read - start
                    view[:count] = memoryview(first.buffer)[start : first.read]
                    return count
                elif first.read == first.size:
                    self._ranges.popleft()
                    self._spare = first.buffer
                    self._release(first)
                    self._changed.notify_all()
                    continue
                elif first.error is not None:
                    raise first.error
                self._changed.wait(_POLL)
                if self._options.cancel is not None:
                    self._options.cancel.check()

    def close(self) -> None:
        """Stop the threads without waiting for them; each ends when its next bytes arrive."""
        with self._changed:
            self._stopped = True
            for one in self._ranges:
                self._release(one)
            self._ranges.clear()
            self._spare = None
            self._changed.notify_all()

    def _work(self) -> None:
        while (begun := self._begin_range()) is not None:
            reader, target = begun
            try:
                self._fill(reader, target)
            except BaseException as error:  # noqa: BLE001 - raised in the reader's thread
                with self._changed:
                    target.error = error
                    self._changed.notify_all()
                return
            finally:
                reader.close()

    def _begin_range(self) -> tuple[RangeReader, _Range] | None:
        """Wait until the budget allows another range; None if there is none left."""
        with self._changed:
            while True:
                if self._stopped or self._next_start >= self._size:
                    return None
                needed = not self._ranges  # the range being read from needs no budget
                if needed or self._budget.acquire(blocking=False):
                    break
                self._changed.wait(_POLL)
            start, stop = self._next_start, min(self._next_start + RANGE_SIZE, self._size)
            self._next_start = stop
            buffer, self._spare = self._spare or bytearray(RANGE_SIZE), None
            one = _Range(buffer, stop - start, budgeted=not needed)
            self._ranges.append(one)
            return self._open_range(start, stop), one

    def _fill(self, reader: RangeReader, target: _Range) -> None:
        view, changed = memoryview(target.buffer), self._changed
        while count := reader.readinto(view[target.filled : target.filled + READ_SIZE]):
            with changed:
                if self._stopped:
                    return
                target.filled += count
                changed.notify_all()

    def _release(self, one: _Range) -> None:
        if one.budgeted:
            one.budgeted = False
            self._budget.release()


_NO_HOST: Final = "a document"
"""In place of a registry's host for an image in a file; not a valid host, so it equals that of no URL."""


class ForeignLayers:
    """Opens foreign layers, which the image at ``where`` lacks, from the URLs in their descriptors as `BlobStream`.

    Sends no credentials. The URLs come from the image, so they are not trusted. ``near`` is the registry of the image,
    or None for an image in a file. A URL without TLS is refused, unless that registry has no TLS either or, for a file,
    ``options`` allow plain HTTP. `Transport` refuses loopback and other internal addresses, as for redirects.
    """

    def __init__(self, where: str, options: RegistryOptions, near: Origin | None = None) -> None:
        self._where = where
        self._options = options
        self._near = near or Origin("http" if options.plain_http else "https", _NO_HOST, 0)
        self._budget = threading.Semaphore(READ_AHEAD)
        self._endpoints: dict[tuple[Origin, str], Endpoint] = {}
        """By origin and directory of the URLs, since tokens are valid below one path."""
        self._lock = threading.Lock()

    def __call__(self, layer: Descriptor) -> BinaryIO:
        """Open a layer. Raises NotFound, SizeMismatch, Denied, Unavailable."""
        fetch = partial(self._fetch, layer)
        return cast("BinaryIO", BlobStream(fetch, layer, self._where, self._options, self._budget))

    def close(self) -> None:
        """Close idle connections; open layers stay open."""
        with self._lock:
            endpoints, self._endpoints = list(self._endpoints.values()), {}
        for endpoint in endpoints:
            endpoint.close()

    def _fetch(self, layer: Descriptor, start: int = 0, stop: int | None = None) -> Response:
        """Request the bytes from the layer's URLs in turn; the first success counts."""
        problem: LamellaError | None = None
        headers = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}
        for url in layer.urls:
            try:
                origin = parse_origin(url)
                if origin.scheme != "https" and self._near.scheme == "https":
                    raise Denied(f"refused to fetch a layer without TLS from {origin}")
                doing = f"get the layer {layer.digest}"
                return self._endpoint(origin, url).send(
                    Request("GET", url, doing=doing, headers=headers, accept=(200, 206))
                )
            except LamellaError as refused:
                problem = refused
        raise problem or NotFound(f"{layer.digest}: the layer's descriptor has no URLs to fetch it from")

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
