# SPDX-License-Identifier: Apache-2.0
"""Reads layer blobs in a worker process, which decompresses, hashes and parses; this process applies the changes.

The two share a ring of buffers in memory. The worker fills a buffer, parses the tar in it, and sends a message: the
number of the buffer, and the changes whose headers end in it, with the offsets of their data in the stream. This
process rebuilds the changes, whose contents are views of the buffer, and sends the number back when it needs the next
buffer. So neither waits for the other's interpreter, and a message takes about 70 bytes a file.

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

_LARGE: Final = 1 << 20
"""Size from which malloc returns freed blocks to the system, in bytes; zstd allocates windows of this size."""

_Message: TypeAlias = tuple[int | None, int, int, Batch]
"""Number of the buffer that comes with the message (None for none), and the bytes filled in it; bytes of the blob read
since the last message; the changes found in the buffer. After the last message of a blob comes a pickled `_End`."""


class Blob(Struct, frozen=True):
    """A layer blob and its expected properties: the arguments of `BlobReader`."""

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


def start_reader(stack: ExitStack, blobs: Callable[[ExitStack], Sequence[Blob]]) -> ReaderProcess | None:
    """Start a worker that reads ``blobs``; None if it cannot start.

    Closing ``stack`` ends the worker. ``blobs`` opens the files on the stack that it is given; they are closed in this
    process at once, since the fork has its own descriptors. After None, read the blobs in this process: that also
    reports the errors of opening them, which are ignored here.
    """
    if not can_start():
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
        """The next of the blobs. Call `LayerReading.finish` on the previous one first."""
        return LayerReading(self, job or Job())


class LayerReading:
    """One blob that a worker reads: its changes, as the parser of its tar dialect yields them, and its facts."""

    def __init__(self, process: ReaderProcess, job: Job) -> None:
        self._process = process
        self._job = job
        self._check = None if job.cancel is None else job.cancel.check
        self._number: int | None = None
        """Number of `buffer`; None if this process holds none."""
        self._batches: deque[Batch] = deque()
        """Batches not decoded yet. Reading a file that spans buffers receives the messages of all of them."""
        self._facts: BlobFacts | None = None
        self._error: BaseException | None = None
        self.buffer = NOTHING
        self.base = 0
        """Offset of `buffer` in the uncompressed stream."""
        self.decoder = ChangeDecoder(partial(_Content, self))

    def changes(self) -> Iterator[Change]:
        """The changes in the tar; call once. Raises as `tar_changes`, `BlobReader` and `Worker.receive`."""
        return self.decoder.decode(self._received())

    def finish(self) -> BlobFacts:
        """Read the remaining changes; return the facts, after the worker has verified the blob. Raises as `changes`."""
        for _ in self.changes():
            pass
        assert self._facts is not None  # noqa: S101  # set before the changes end
        return self._facts

    def advance(self) -> None:
        """Give the current buffer back, then receive the next message and its buffer, or the end of the blob.

        `buffer` is empty after a message without a buffer, and after the end. The worker never sends the end before
        all data of the files: it reports a truncated file as an error.
        """
        if self._error is not None:
            raise self._error
        if self._number is not None:
            with suppress(Unavailable):  # the worker has ended; its last messages are still in the pipe
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
    """The data of a file in the stream; keeps the contract of `TarMember`."""

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
            raise StreamConsumed("the data of a file can be read once, before the next change is requested")
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
                raise StreamConsumed("the data of a file must be read before the next change is requested")
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
    """The worker's `Ring` of the shared buffers. The other process sends back the number of each buffer it has read."""

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
        """Do nothing: a thread that waits in `take` ends with this process."""

    def next_filled(self) -> int:
        """The number of the next filled buffer: `BlobReader` fills buffers in the order in which it takes them."""
        return self._taken.popleft()

    def reclaim(self) -> None:
        """At the end of a blob, keep the buffers that the reader has taken and not filled."""
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
        """Send all changes; return the facts of the verified blob. Raises as `BlobReader` and `tar_changes`."""
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
        """The parser asks for a buffer: send the previous one with its changes first."""
        if self._number is not None or self._encoder.batch[1]:
            self._send()
        buffer = self._reader.next_buffer()
        if buffer:
            self._number, self._filled = self._ring.next_filled(), len(buffer)
            self._encoder.end += len(buffer)
        return buffer

    def _send(self) -> None:
        self._channel.send((self._number, self._filled, self._amount, self._encoder.batch))
        self._number, self._filled, self._amount = None, 0, 0
        self._encoder.clear()

    def _count(self, amount: int) -> None:
        self._amount += amount
