# SPDX-License-Identifier: Apache-2.0
"""Reads a layer blob: decompresses it into full buffers and verifies digests and sizes in the same pass."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol, Self, TypeAlias

from lamella.digests import Digest
from lamella.errors import DigestMismatch, FormatError, SizeMismatch, from_os
from lamella.progress import Cancellation
from lamella.streams.buffers import NOTHING, OwnRing, Ring
from lamella.streams.compressions import NONE, identify, new_decoder
from lamella.streams.decompress import Bounded, Source
from lamella.streams.limits import DEFAULT_LIMITS, BlobFacts, BlobLimits

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["BlobFacts", "BlobLimits", "BlobReader", "open_blob"]

BUFFERS: Final = 16
"""Buffers in the ring, 16 MiB together; three or four are in use if the caller keeps up."""

SMALL_BLOB: Final = 256 << 10
"""A blob up to this size is read without threads: starting them costs more than they save."""

_PIECES: Final = 8
"""Pieces of the blob, as read from the source, that may wait to be hashed."""

_PATIENCE: Final = 1.0
"""Seconds that `BlobReader.close` waits for a thread; only one in a blocking read takes longer."""

_POLL: Final = 0.1
"""Seconds between checks for cancellation while waiting for a buffer."""


class BlobReader:
    """One pass over a blob: its uncompressed stream in buffers; `finish` verifies the blob.

    Reading begins with the first buffer. A blob larger than `SMALL_BLOB` is read by three threads: one decompresses,
    two hash the blob and the stream; the caller's thread parses. Leaving the block closes the reader without reading
    the rest. The blob is verified only after `finish` has returned; until then nothing made from it may become visible.

    gzip may have several members, zstd several frames, also skippable ones. Other bytes after them are an error, zeros
    too.

    ``source`` need not be seekable and may return short reads. A path is opened here; an open file is closed by the
    caller. ``compression`` is the one of the media type; None trusts the magic. ``digest``, ``size`` (of the blob) and
    ``diff_id`` are expected values. Without ``hash_blob`` or ``hash_stream`` the respective digest is not computed: it
    cannot be expected, and is empty in the facts. ``progress`` is called in the caller's thread with the number of
    bytes of the blob read since the last call. ``buffers`` limits the ring; fewer than four are slower. ``ring``
    replaces the reader's own ring and is not closed with the reader.

    `next_buffer` and `finish` raise FormatError for damaged or truncated data, SizeMismatch and DigestMismatch (instead
    of FormatError if the whole blob differs from the expected one), Exhausted for a limit, InvalidInput and Unsupported
    for the compression, Cancelled, and the errors of the source.
    """

    def __init__(
        self,
        source: BinaryIO | Path,
        *,
        compression: str | None = None,
        digest: Digest | None = None,
        size: int | None = None,
        diff_id: Digest | None = None,
        limits: BlobLimits | None = None,
        hash_blob: bool = True,
        hash_stream: bool = True,
        progress: Callable[[int], object] | None = None,
        cancel: Cancellation | None = None,
        buffers: int = BUFFERS,
        ring: Ring | None = None,
    ) -> None:
        if (digest and not hash_blob) or (diff_id and not hash_stream):
            raise ValueError("a digest is expected that is not computed")
        self._from = source
        self._expected = compression
        self._digest = digest
        self._size = size
        self._diff_id = diff_id
        self._limits = limits or DEFAULT_LIMITS
        self._hash_blob = hash_blob
        self._hash_stream = hash_stream
        self._progress = progress
        self._reported = 0
        self._cancel = cancel
        self._buffers = buffers
        self._ring = ring
        self._opened: BinaryIO | None = None
        self._pass: _Pass | None = None
        self._failure: BaseException | None = None
        self._facts: BlobFacts | None = None
        self._closed = False

    def next_buffer(self) -> memoryview:
        """The next buffer of the uncompressed stream, `BUFFER_SIZE` bytes except for the last; empty at the end.

        Valid until the next call. After an error every call raises the same error.
        """
        if self._failure is not None:
            raise self._failure
        try:
            if self._cancel is not None:
                self._cancel.check()
            reading = self._start()
            buffer = reading.feed.next_buffer()
            if self._progress is not None and (advance := reading.source.count - self._reported):
                self._reported += advance
                self._progress(advance)
        except Exception as error:
            better = self._failure = self._explain(error)
            if better is error:
                raise
            raise better from error
        return buffer

    def finish(self) -> BlobFacts:
        """Read the rest of the blob, verify it, and return its facts."""
        if self._facts is not None:
            return self._facts
        while self.next_buffer():
            pass
        reading = self._start()
        try:
            self._check_blob(reading)
            diff_id = _digest(reading.tar_hash)
            if self._diff_id is not None and diff_id != self._diff_id:
                raise DigestMismatch("uncompressed layer (diff id)", expected=self._diff_id, actual=diff_id)
        except Exception as error:
            self._failure = error
            raise
        facts = BlobFacts(
            _digest(reading.blob_hash), reading.source.count, diff_id, reading.decoder.size, reading.compression
        )
        self.close()
        self._facts = facts
        return facts

    def close(self) -> None:
        """Stop the threads and close the blob, without verifying it. May be called again.

        Waits for the current step of each thread. A thread that is blocked in a read is left running and ends after
        that read.
        """
        self._closed = True
        stopped = self._pass is None or self._pass.feed.stop()
        self._pass = None
        if self._opened is not None and stopped:
            self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> _Pass:
        if self._closed:
            raise ValueError("the reader is closed")
        if self._pass is None:
            raw = self._from
            if isinstance(raw, Path):
                raw = self._opened = open_blob(raw)
            source = Source(raw, size=self._size, cancel=self._cancel)
            hashes = (
                _new_hash(self._digest) if self._hash_blob else None,
                _new_hash(self._diff_id) if self._hash_stream else None,
            )
            self._pass = _Pass(
                source, self._expected, hashes, self._limits, self._ring or OwnRing(self._buffers), self._cancel
            )
        return self._pass

    def _check_blob(self, reading: _Pass) -> None:
        if self._size is not None and reading.source.count != self._size:
            raise SizeMismatch("layer blob", expected=self._size, actual=reading.source.count)
        if self._digest is not None and (actual := _digest(reading.blob_hash)) != self._digest:
            raise DigestMismatch("layer blob", expected=self._digest, actual=actual)

    def _explain(self, error: Exception) -> Exception:
        # A mismatch of the whole blob explains more than a format error at some offset.
        if isinstance(error, FormatError) and self._pass is not None and self._pass.source.ended:
            try:
                self._check_blob(self._pass)
            except (SizeMismatch, DigestMismatch) as mismatch:
                return mismatch
        return error


class _Pass:
    """The state of a pass. Making it reads the first bytes, to identify the compression and choose the feed."""

    def __init__(
        self,
        source: Source,
        expected: str | None,
        hashes: tuple[_Hash | None, _Hash | None],
        limits: BlobLimits,
        ring: Ring,
        cancel: Cancellation | None,
    ) -> None:
        head = source.peek(SMALL_BLOB + 1)
        self.source = source
        self.compression = identify(head, expected)
        self.decoder = Bounded(source, new_decoder(self.compression, source, limits), limits)
        pieces, self.tar_hash = hashes
        self.blob_hash = pieces
        stream = [] if self.tar_hash is None else [self.tar_hash]
        if pieces is not None and self.compression == NONE:
            # The blob is the stream: hash it once, unless the algorithms differ.
            if self.tar_hash is not None and pieces.name == self.tar_hash.name:
                self.blob_hash = self.tar_hash
            else:
                stream.append(pieces)
            pieces = None
        self.feed: _Feed
        if len(head) <= SMALL_BLOB:
            self.feed = _Direct(source, self.decoder, pieces, stream, ring)
        else:
            self.feed = _Threaded(source, self.decoder, pieces, stream, ring, cancel)


class _Feed(Protocol):
    """Decompresses into buffers, and updates the hashes of blob and stream."""

    def next_buffer(self) -> memoryview: ...

    def stop(self) -> bool:
        """Stop reading. Return whether no thread reads from the source any more."""
        ...


class _Direct:
    """Reads and hashes in the caller's thread."""

    def __init__(self, source: Source, decoder: Bounded, blob: _Hash | None, stream: list[_Hash], ring: Ring) -> None:
        source.taken = None if blob is None else blob.update
        self._source = source
        self._decoder = decoder
        self._hashes = stream
        self._ring = ring
        self._current: memoryview | None = None
        self._ended = False

    def next_buffer(self) -> memoryview:
        if self._current is not None:
            self._ring.give(self._current)
            self._current = None
        if self._ended:
            return NOTHING
        whole = self._current = self._ring.take()
        if whole is None:
            raise _Stopped
        try:
            filled = self._decoder.fill(whole)
        except FormatError:
            self._source.drain()
            raise
        self._ended = filled < len(whole)
        buffer = whole[:filled]
        for state in self._hashes:
            state.update(buffer)
        return buffer

    def stop(self) -> bool:
        self._ended = True
        return True


class _Stopped(Exception):
    """The reader was closed."""


class _End:
    __slots__ = ("error",)

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


_Filled: TypeAlias = tuple[memoryview, memoryview]
"""A buffer and its filled part."""


class _Threaded:
    """A pipeline: buffers are filled, hashed, parsed by the caller, and filled again.

    ``_filled`` and ``_hashed`` are the queues between these steps; an `_End` in them carries the error after the last
    buffer before it. ``_pieces`` holds pieces of the blob for its hash, ``_room`` one item for each free slot there.

    The blob is hashed in a separate thread: in the thread that decompresses it would take 15 % of the time of large
    files, and in the thread that hashes buffers it would delay them.
    """

    def __init__(
        self,
        source: Source,
        decoder: Bounded,
        blob: _Hash | None,
        stream: list[_Hash],
        ring: Ring,
        cancel: Cancellation | None,
    ) -> None:
        self._source = source
        self._decoder = decoder
        self._stream = stream
        self._ring = ring
        self._cancel = cancel
        self._filled: queue.SimpleQueue[_Filled | _End] = queue.SimpleQueue()
        self._hashed = queue.SimpleQueue() if stream else self._filled
        self._pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopping = False
        self._current: memoryview | None = None
        self._end: _End | None = None
        self._filler = _thread(self._fill)
        self._hashers = [_thread(self._hash)] if stream else []
        if blob is not None:
            source.taken = self._queue_piece
            for _ in range(_PIECES):
                self._room.put(None)
            self._hashers.append(_thread(self._hash_blob, blob))
        self._started = False

    def next_buffer(self) -> memoryview:
        if not self._started:
            self._started = True
            for thread in (self._filler, *self._hashers):
                thread.start()
        if self._end is None:
            if self._current is not None:
                self._ring.give(self._current)
                self._current = None
            item = self._wait()
            if not isinstance(item, _End):
                self._current, part = item
                return part
            for thread in self._hashers:  # their digests are read next
                thread.join()
            self._end = item
        if self._end.error is not None:
            raise self._end.error
        return NOTHING

    def stop(self) -> bool:
        self._wake_threads()
        for thread in (self._filler, *self._hashers):
            if thread.ident is not None:  # an interrupt can come before all are started
                thread.join(_PATIENCE)
        if self._filler.is_alive():
            return False
        self._source.taken = None  # breaks a reference cycle that would keep the ring in memory
        return True

    def _wake_threads(self) -> None:
        self._stopping = True
        # Wake every thread.
        self._ring.close()
        self._room.put(None)
        self._filled.put(_End(None))
        self._pieces.put(None)

    def _wait(self) -> _Filled | _End:
        if self._cancel is None:
            return self._hashed.get()
        while True:
            try:
                return self._hashed.get(timeout=_POLL)
            except queue.Empty:
                self._cancel.check()

    def _fill(self) -> None:
        decoder, put = self._decoder, self._filled.put
        end = _End(None)
        try:
            while True:
                buffer = self._take()
                filled = decoder.fill(buffer)
                if filled:
                    put((buffer, buffer[:filled]))
                if filled < len(buffer):
                    break
        except FormatError as error:
            end.error = error
            try:
                self._source.drain()
            except BaseException as worse:  # noqa: BLE001 - raised in the caller's thread
                end.error = worse
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            end.error = error
        self._pieces.put(None)
        put(end)

    def _hash(self) -> None:
        get, put, states = self._filled.get, self._hashed.put, self._stream
        try:
            while not isinstance(item := get(), _End):
                part = item[1]
                for state in states:
                    state.update(part)
                put(item)
            put(item)
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            put(_End(error))
            self._wake_threads()

    def _hash_blob(self, state: _Hash) -> None:
        get, more = self._pieces.get, self._room.put
        try:
            while (piece := get()) is not None:
                state.update(piece)
                more(None)
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            self._hashed.put(_End(error))
            self._wake_threads()

    def _take(self) -> memoryview:
        buffer = self._ring.take()
        if buffer is None or self._stopping:
            raise _Stopped
        return buffer

    def _queue_piece(self, piece: bytes) -> None:
        self._room.get()
        if self._stopping:
            raise _Stopped
        self._pieces.put(piece)


def _thread(work: Callable[..., None], *arguments: object) -> threading.Thread:
    return threading.Thread(target=work, args=arguments, name=f"lamella{work.__name__}", daemon=True)


def open_blob(path: Path) -> BinaryIO:
    """Open ``path`` for one sequential read. Raises NotFound, Denied and the like."""
    try:
        raw = path.open("rb", buffering=0)
    except OSError as error:
        raise from_os(error, f"open {str(path)!r}") from error
    if hasattr(os, "posix_fadvise"):
        try:
            os.posix_fadvise(raw.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        except OSError:  # a pipe
            pass
    return raw


def _new_hash(promised: Digest | None) -> _Hash:
    return hashlib.new(promised.algorithm if promised else "sha256")


def _digest(state: _Hash | None) -> Digest:
    return Digest("") if state is None else Digest.finish(state)
