# SPDX-License-Identifier: Apache-2.0
"""Reads layer blobs in a worker process, which decompresses, hashes and parses; this process applies the changes.

The two share a ring of buffers in memory. The worker fills a buffer, parses the tar in it, and sends a message with the
changes that begin in it and where in the stream their data lies; this process makes the changes again, whose contents
are views of the buffer, and gives the buffer back when it needs the next. So neither waits for the other's interpreter,
and a message has about 70 bytes a file.

The worker is a fork, since it needs the ring and the open blobs. It opens nothing and writes nothing. It ends when
`ReaderProcess` is closed, and whenever this process is gone.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Final, TypeAlias

from msgspec import Struct

from lamella.changes.job import Job
from lamella.changes.losses import Losses
from lamella.changes.model import Buffer, Change
from lamella.digests import Digest
from lamella.errors import LamellaError, StreamConsumed, Unavailable
from lamella.host.malloc import return_large_blocks
from lamella.host.worker import Channel, Worker, can_fork, processors
from lamella.layers.change_codec import Batch, ChangeDecoder, ChangeEncoder
from lamella.layers.tar.source import tar_changes
from lamella.streams.blob_reader import BlobReader
from lamella.streams.buffers import BUFFER_SIZE, NOTHING
from lamella.streams.limits import BlobFacts, BlobLimits

if TYPE_CHECKING:
    from lamella.layers.windows.names import NameRules

BUFFERS: Final = 6
"""Buffers of the ring, which both processes have in their memory."""

WORTH: Final = 4 << 20
"""Bytes of blobs from which on a worker gains more than its start costs."""

_LARGE: Final = 1 << 20
"""Bytes of a memory block that malloc returns to the system when it is freed; the windows of zstd are as large."""

_Message: TypeAlias = tuple[int | None, int, int, Batch]
"""Number of the buffer that comes with the message, if any, and the bytes in it; bytes of the blob that were read since
the last message; the changes that begin in the buffer. The message after the last of a blob is a pickled `_End`."""


class Blob(Struct, frozen=True):
    """A layer's blob and what is promised of it, as `BlobReader` takes them."""

    file: BinaryIO
    """Open; nothing else reads from it."""
    compression: str | None = None
    digest: Digest | None = None
    size: int | None = None
    diff_id: Digest | None = None
    limits: BlobLimits | None = None
    windows: NameRules | None = None
    """The rules for names if this is a layer for Windows, else None."""


class _End(Struct, frozen=True):
    """What the worker found in one blob."""

    facts: BlobFacts
    losses: Losses


def can_start() -> bool:
    """Whether this process can be forked, and has a processor for another process."""
    return can_fork() and processors() > 1


def start_reader(stack: ExitStack, size: int, blobs: Callable[[ExitStack], Sequence[Blob]]) -> ReaderProcess | None:
    """A worker that reads ``blobs`` of ``size`` bytes; None if none can be started or the blobs are too small for one.

    ``stack`` ends it. The files that ``blobs`` opens are closed here at once: the worker has its own descriptors.
    Open errors are ignored here; the caller, who then reads the blobs in this process, meets them again.
    """
    if size < WORTH or not can_start():
        return None
    try:
        with ExitStack() as opened:
            return stack.enter_context(ReaderProcess(blobs(opened)))
    except (LamellaError, OSError):
        return None


class ReaderProcess(Worker):
    """A worker that reads ``blobs``, one after the other. `can_fork` must be true. Leaving the block ends it."""

    def __init__(self, blobs: Sequence[Blob]) -> None:
        """Start it. Raises OSError."""
        ring = memoryview(mmap.mmap(-1, BUFFERS * BUFFER_SIZE))
        self.buffers = [ring[at : at + BUFFER_SIZE] for at in range(0, len(ring), BUFFER_SIZE)]
        super().__init__(_serve, blobs, self.buffers, task="reads the layers", fork=True, keep=None)

    def next_layer(self, job: Job | None = None) -> LayerReading:
        """The next of the blobs; the one before must have been finished."""
        return LayerReading(self, job or Job())


class LayerReading:
    """One blob that a worker reads: its changes, as the reader of its tar dialect gives them, and its facts."""

    def __init__(self, process: ReaderProcess, job: Job) -> None:
        self._process = process
        self._job = job
        self._check = None if job.cancel is None else job.cancel.check
        self._number: int | None = None
        """Of the buffer that this process has."""
        self._batches: deque[Batch] = deque()
        """Of the messages received and not yet decoded: data that spans buffers is read ahead of its next change."""
        self._facts: BlobFacts | None = None
        self._error: BaseException | None = None
        self.buffer = NOTHING
        self.base = 0
        """Offset of the buffer in the stream."""
        self.decoder = ChangeDecoder(partial(_Content, self))

    def changes(self) -> Iterator[Change]:
        """The changes that the tar states; once. Raises as `tar_changes`, `BlobReader` and `Worker.receive`."""
        return self.decoder.decode(self._received())

    def finish(self) -> BlobFacts:
        """The facts, once all promises have been checked. Raises as `changes`."""
        for _ in self.changes():
            pass
        assert self._facts is not None  # noqa: S101  # set before the changes end
        return self._facts

    def advance(self) -> None:
        """Receive the next message and its buffer; the buffer is empty once the worker has read the whole blob."""
        if self._error is not None:
            raise self._error
        if self._number is not None:
            with suppress(Unavailable):  # a worker that has ended with its last message, which is still to be received
                self._process.send(self._number)
            self._number = None
        self.base += len(self.buffer)
        self.buffer = NOTHING
        try:
            message: _Message | bytes = self._process.receive(self._check)
        except BaseException as error:
            self._error = error
            raise
        if isinstance(message, bytes):
            import pickle  # late: small images are read without a worker

            end: _End = pickle.loads(message)  # noqa: S301  # from our own fork
            self._job.losses.merge(end.losses)
            self._facts = end.facts
            return
        self._number, filled, amount, batch = message
        if self._number is not None:
            self.buffer = self._process.buffers[self._number][:filled]
        self._batches.append(batch)
        if amount and self._job.progress is not None:
            self._job.progress.advance(amount)

    def _received(self) -> Iterator[Batch]:
        while True:
            while self._batches:
                yield self._batches.popleft()
            if self._facts is not None:
                return
            self.advance()


class _Content(Struct, eq=False):
    """The data of a file in the stream, with the promises of `TarMember`."""

    reading: LayerReading
    size: int
    extents: Sequence[tuple[int, int]] | None
    offset: int
    stored_size: int

    @property
    def stored(self) -> bool:
        return False

    def chunks(self) -> Iterable[Buffer]:
        reading = self.reading
        decoder = reading.decoder
        if decoder.current is not self:
            raise StreamConsumed("the data of a file can be read once, before the next change is asked for")
        decoder.current = None
        if not self.stored_size:
            return ()
        start = self.offset - reading.base
        if start + self.stored_size <= len(reading.buffer):
            return (reading.buffer[start : start + self.stored_size],)
        return self._stream(start)

    def _stream(self, start: int) -> Iterator[Buffer]:
        reading, left = self.reading, self.stored_size
        reading.decoder.current = streaming = object()
        while left:
            if reading.decoder.current is not streaming:
                raise StreamConsumed("the data of a file was to be read before the next change was asked for")
            if start == len(reading.buffer):
                reading.advance()
                start = 0
            part = reading.buffer[start : start + left]
            start += len(part)
            left -= len(part)
            yield part


# The worker


def _serve(channel: Channel, blobs: Sequence[Blob], buffers: Sequence[memoryview]) -> None:
    import pickle

    return_large_blocks(_LARGE)
    ring = _SharedRing(channel, buffers)
    for blob in blobs:
        try:
            end = _BlobSender(channel, ring, blob).send_all()
        except BaseException as error:  # noqa: BLE001  # raised in the other process
            channel.send_error(error)
            return
        channel.send(pickle.dumps(end))


class _SharedRing:
    """A `Ring` of the buffers that both processes have; the other one sends back the numbers of those it has used."""

    def __init__(self, channel: Channel, buffers: Sequence[memoryview]) -> None:
        self._channel = channel
        self._buffers = buffers
        self._idle = list(range(len(buffers)))
        self._taken: deque[int] = deque()

    def take(self) -> memoryview | None:
        number = self._idle.pop() if self._idle else self._channel.receive()
        self._taken.append(number)
        return self._buffers[number]

    def give(self, buffer: memoryview) -> None:
        """Do nothing: the other process uses the buffer until it sends the number back."""

    def close(self) -> None:
        """Do nothing: a thread that waits for a buffer ends with this process."""

    def oldest(self) -> int:
        """The number of the buffer that was filled next."""
        return self._taken.popleft()

    def reclaim(self) -> None:
        """Take back the buffers that were taken and not filled; for the end of a blob."""
        self._idle.extend(self._taken)
        self._taken.clear()


class _BlobSender:
    """Reads one blob and sends the changes in it."""

    def __init__(self, channel: Channel, ring: _SharedRing, blob: Blob) -> None:
        self._channel = channel
        self._ring = ring
        self._windows = blob.windows
        self._reader = BlobReader(
            blob.file,
            compression=blob.compression,
            digest=blob.digest,
            size=blob.size,
            diff_id=blob.diff_id,
            limits=blob.limits,
            progress=self._count,
            ring=ring,
        )
        self._encoder = ChangeEncoder()
        self._number: int | None = None
        self._filled = 0
        self._amount = 0

    def send_all(self) -> _End:
        """Send all changes; what was found, if the blob is as promised. Raises as `BlobReader` and `tar_changes`."""
        losses = Losses()
        try:
            if self._windows is None:
                changes = tar_changes(self._next_buffer, losses=losses)
            else:
                from lamella.layers.windows.tar_source import windows_tar_changes

                changes = windows_tar_changes(self._next_buffer, rules=self._windows)
            self._encoder.encode(changes)
            facts = self._reader.finish()
        finally:
            self._send()
        self._ring.reclaim()
        return _End(facts, losses)

    def _next_buffer(self) -> memoryview:
        if self._number is not None or self._encoder.batch[1]:
            self._send()
        buffer = self._reader.next_buffer()
        if buffer:
            self._number, self._filled = self._ring.oldest(), len(buffer)
            self._encoder.end += len(buffer)
        return buffer

    def _send(self) -> None:
        self._channel.send((self._number, self._filled, self._amount, self._encoder.batch))
        self._number, self._filled, self._amount = None, 0, 0
        self._encoder.clear()

    def _count(self, amount: int) -> None:
        self._amount += amount
