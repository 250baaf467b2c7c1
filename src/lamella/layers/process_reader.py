# SPDX-License-Identifier: Apache-2.0
"""Layer blobs read by a process of their own: it decompresses, hashes and parses, this one applies.

The two share nothing but a ring of buffers in memory and two pipes. The other process fills a buffer, takes the tar in
it apart, and says by a message which changes begin in it and where in the stream their content lies; this process
makes changes of that, whose content is a view of the buffer, and gives the buffer back when it is through with it. So
neither waits for the other's interpreter, and what goes over a pipe is 60 bytes a file, of a Windows layer some more.

The other process is a fork, so that it costs some milliseconds to start. It opens nothing and writes nothing. It ends
when it has read everything, when it is killed by `Apart.close`, and, wherever this process was killed, when it finds
its pipes without another end.
"""

from __future__ import annotations

import marshal
import mmap
import os
import select
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Final, NoReturn, Self, TypeAlias

from msgspec import Struct

from lamella.changes.losses import Loss, Losses
from lamella.changes.model import (
    NO_XATTRS,
    Buffer,
    Change,
    Content,
    Entry,
    Kind,
    Link,
    Opaque,
    Posix,
    Put,
    Stream,
    Whiteout,
    Windows,
)
from lamella.digests import Digest
from lamella.errors import LamellaError, StreamConsumed, Unavailable
from lamella.host.worker import Forked, can_fork
from lamella.layers.process_reader_worker import (
    END,
    FACET,
    FAILED,
    FORGET,
    HEADER,
    KINDS,
    LINK,
    NO_BUFFER,
    NO_DATA,
    OPAQUE,
    POSIX,
    STREAM,
    WHITEOUT,
    WINDOWS,
    WINDOWS_OTHER,
    Blob,
    Record,
    SharedRing,
    work,
)
from lamella.progress import Cancellation
from lamella.streams.buffers import BUFFER_SIZE, NOTHING
from lamella.streams.limits import BlobFacts

BUFFERS: Final = 6
"""In the ring, which both processes have in their memory."""

WORTH: Final = 4 << 20
"""Bytes of blobs from which on another process gains more than it costs."""

_Facet: TypeAlias = tuple[int, bytes | None, Mapping[str, bytes], bytes | None]
"""Attributes, security descriptor, extended attributes and reparse point, which many files of a Windows layer share."""

_POLL: Final = 100
"""Milliseconds between two looks at the cancellation while waiting for a message."""


def possible() -> bool:
    """Whether this process can be forked, and whether there is a processor for another one.

    Without other threads, that is (`can_fork`).
    """
    return can_fork() and len(os.sched_getaffinity(0)) > 1


def started(stack: ExitStack, size: int, blobs: Callable[[ExitStack], Sequence[Blob]]) -> Apart | None:
    """The process that reads ``blobs``, which have ``size`` bytes; None where that is not possible, or not worth it.

    ``stack`` ends it. The files that ``blobs`` opens are closed here at once: the other process has its own. What is
    wrong with them is no error, since it is said when they are read here. For callers as of `Apart`.
    """
    if size < WORTH or not possible():
        return None
    try:
        with ExitStack() as opened:
            return stack.enter_context(Apart(blobs(opened)))
    except (LamellaError, OSError):
        return None


class Apart:
    """The process that reads ``blobs``, one after the other; `next` gives each in its turn.

    For a process in which no other thread runs (see `possible`). Leaving the block ends the process.
    """

    def __init__(self, blobs: Sequence[Blob]) -> None:
        """Start it. Raises OSError."""
        ring = memoryview(mmap.mmap(-1, BUFFERS * BUFFER_SIZE))
        buffers = [ring[at : at + BUFFER_SIZE] for at in range(0, len(ring), BUFFER_SIZE)]
        free, self._free = os.pipe()
        self._messages, messages = os.pipe()
        # Ours too, so that giving back a buffer to a process that has ended is no error.
        self._free_end = free
        os.write(self._free, bytes(range(BUFFERS)))
        shared = SharedRing(buffers, free)
        try:
            others = self._free, self._messages
            self._process = Forked(lambda: work(blobs, shared, messages, others), keep=None)  # blobs are open
        except BaseException:
            os.close(messages)
            self._close_pipes()
            raise
        os.close(messages)
        self.buffers = buffers
        self._poll = select.poll()
        self._poll.register(self._messages, select.POLLIN)
        self._read = bytearray()
        self._closed = False

    def next(
        self,
        *,
        losses: Losses | None = None,
        progress: Callable[[int], object] | None = None,
        cancel: Cancellation | None = None,
    ) -> LayerApart:
        """The next of the blobs; the one before must have been finished. ``losses`` are as for `tar_changes`."""
        return LayerApart(self, losses, progress, cancel)

    def message(self, cancel: Cancellation | None) -> tuple[int, int, list[Record], int]:
        """The next message. Raises Unavailable where the process has ended, and Cancelled."""
        number, filled, size, news = HEADER.unpack(self._exactly(HEADER.size, cancel))
        return number, filled, marshal.loads(self._exactly(size, cancel)), news  # noqa: S302  # from our own fork

    def give(self, number: int) -> None:
        """Give a buffer back to be filled again."""
        os.write(self._free, bytes((number,)))

    def close(self) -> None:
        """End the process. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._process.end()
        self._close_pipes()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _close_pipes(self) -> None:
        for end in (self._free, self._free_end, self._messages):
            os.close(end)

    def _exactly(self, size: int, cancel: Cancellation | None) -> bytes:
        read = self._read
        while len(read) < size:
            if cancel is not None:
                cancel.check()
                if not self._poll.poll(_POLL):
                    continue
            piece = os.read(self._messages, 1 << 18)
            if not piece:
                raise Unavailable("the process that reads the layers has ended before its time")
            read += piece
        piece = bytes(read[:size])
        del read[:size]
        return piece


class LayerApart:
    """The changes of one blob, as `tar_changes` gives them, and what the pass over it has found.

    Those of a Windows layer (`Blob.windows`) are as `windows_tar_changes` gives them.
    """

    def __init__(
        self,
        apart: Apart,
        losses: Losses | None,
        progress: Callable[[int], object] | None,
        cancel: Cancellation | None,
    ) -> None:
        self._apart = apart
        self._losses = losses
        self._progress = progress
        self._cancel = cancel
        self._number = NO_BUFFER
        self._records: deque[list[Record]] = deque()
        """Of the messages that have come, those of a content's further buffers among them."""
        self._facts: BlobFacts | None = None
        self.buffer = NOTHING
        self.base = 0
        """Of the buffer, in the stream."""
        self.content: object = None
        """Whose data may still be read."""

    def changes(self) -> Iterator[Change]:
        """The changes that the tar states; once. Raises as `tar_changes` and `BlobReader`, and as `Apart.message`."""
        posix: list[Posix] = []
        facets: list[_Facet] = []
        records, file = self._records, Kind.FILE
        while records or self._facts is None:
            if not records:
                self.advance()
            for record in records.popleft():
                first = record[0]
                if type(first) is str:
                    _, number, size, offset = record
                    content = self.content = _Content(size, None, offset, size, self)
                    yield Put(Entry(first, file, posix[number], size), content)  # type: ignore[arg-type]
                elif first == WINDOWS:
                    _, path, number, created, accessed, written, changed, size, offset = record
                    attributes, descriptor, extended, reparse = facets[number]
                    windows = Windows(attributes, created, accessed, written, changed, descriptor, extended, reparse)
                    content = self.content = _Content(size, None, offset, size, self)
                    yield Put(Entry(path, file, None, size, "", windows), content)
                elif first == POSIX:
                    _, mode, uid, gid, mtime, xattrs, device = record
                    posix.append(Posix(mode, uid, gid, mtime, xattrs or NO_XATTRS, device))
                elif first == FACET:
                    _, attributes, descriptor, extended, reparse = record
                    facets.append((attributes, descriptor, extended or NO_XATTRS, reparse))
                elif first == FORGET:
                    posix.clear()
                    facets.clear()
                elif first == END:
                    _, blob, size, diff_id, tar_size, compression, lost = record
                    self._facts = BlobFacts(Digest(blob), size, Digest(diff_id), tar_size, compression)
                    if self._losses is not None:
                        for path, what, why in lost:
                            self._losses.record(Loss(path, what, why))
                else:
                    self.content = None
                    yield self._other(record, posix, facets)
        self.content = None

    def finish(self) -> BlobFacts:
        """What was found, when everything promised has proved true. Raises as `changes`."""
        if self._facts is None:
            for _ in self.changes():
                pass
        assert self._facts is not None  # noqa: S101  # else the changes would not have come to their end
        return self._facts

    def advance(self) -> None:
        """Go on to the next message, and to the buffer that it is about."""
        if self._number != NO_BUFFER:
            self._apart.give(self._number)
        self.base += len(self.buffer)
        self._number, filled, records, news = self._apart.message(self._cancel)
        self.buffer = NOTHING if self._number == NO_BUFFER else self._apart.buffers[self._number][:filled]
        self._records.append(records)
        if news and self._progress is not None:
            self._progress(news)

    def fail(self) -> NoReturn:
        """Raise what stands in the place of a content's next buffer."""
        for record in self._records[-1]:
            if record[0] == FAILED:
                raise _revived(record[1], record[2])
        raise AssertionError("a content goes on after the end of the stream")

    def _other(self, record: Record, posix: list[Posix], facets: list[_Facet]) -> Change:
        first = record[0]
        if first < len(KINDS):
            _, path, number, target = record
            return Put(Entry(path, KINDS[first], posix[number], 0, target), None)
        if first == LINK:
            return Link(record[1], record[2])
        if first == WHITEOUT:
            return Whiteout(record[1])
        if first == OPAQUE:
            return Opaque(record[1])
        if first == FAILED:
            raise _revived(record[1], record[2])
        if first == WINDOWS_OTHER:
            return self._windows(record, facets)
        if first == STREAM:
            _, path, name, size, offset, stored, extents = record
            content = self.content = _Content(size, extents, offset, stored, self)
            return Stream(path, name, content)
        _, path, number, size, offset, stored, extents = record
        content = self.content = _Content(size, extents, offset, stored, self)
        return Put(Entry(path, Kind.FILE, posix[number], size), content)

    def _windows(self, record: Record, facets: list[_Facet]) -> Change:
        _, path, number, created, accessed, written, changed, size, offset, stored, extents, kind, target = record
        attributes, descriptor, extended, reparse = facets[number]
        windows = Windows(attributes, created, accessed, written, changed, descriptor, extended, reparse)
        content: Content | None = None
        if offset != NO_DATA:
            content = self.content = _Content(size, extents, offset, stored, self)
        elif KINDS[kind] is Kind.FILE:
            from lamella.layers.windows.tar_source import EMPTY_DATA

            content = EMPTY_DATA
        return Put(Entry(path, KINDS[kind], None, size, target, windows), content)


class _Content(Struct, eq=False):
    """The bytes of a file where they lie in the stream; see `TarMember`, which keeps the same promises."""

    size: int
    extents: Sequence[tuple[int, int]] | None
    offset: int
    stored: int
    layer: LayerApart

    def chunks(self) -> Iterable[Buffer]:
        """See `Content.chunks`."""
        layer = self.layer
        if layer.content is not self:
            raise StreamConsumed("the data of a file can be read once, before the next change is asked for")
        if not self.stored:
            layer.content = None
            return ()
        start = self.offset - layer.base
        if start + self.stored <= len(layer.buffer):
            layer.content = None
            return (layer.buffer[start : start + self.stored],)
        reading = layer.content = object()
        return self._stream(start, reading)

    def _stream(self, start: int, reading: object) -> Iterator[Buffer]:
        layer, left = self.layer, self.stored
        while left:
            if layer.content is not reading:
                raise StreamConsumed("the data of a file was to be read before the next change was asked for")
            if start == len(layer.buffer):
                layer.advance()
                if not layer.buffer:
                    layer.fail()
                start = 0
            part = layer.buffer[start : start + left]
            start += len(part)
            left -= len(part)
            yield part


class _There(Exception):
    """Where in the other process something went wrong: its traceback, for whoever prints causes."""


def _revived(raw: bytes, where: str) -> BaseException:
    import pickle

    made = pickle.loads(raw)  # noqa: S301  # from our own fork
    error: BaseException
    if isinstance(made, tuple):
        kind, arguments, attributes = made
        error = kind.__new__(kind)
        error.args = arguments
        error.__dict__.update(attributes)
    else:
        error = made
    error.__cause__ = _There(f"\n{where}")
    return error
