# SPDX-License-Identifier: Apache-2.0
"""Reading a layer's blob: decompressed in full buffers, with every promise about it checked in the same pass."""

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
"""Buffers in the ring: with all of them in use reading takes 16 MiB; a caller that keeps up needs three or four."""

SMALL_BLOB: Final = 256 << 10
"""A blob of at most this many bytes is read without threads, whose start would cost more than they gain."""

_PIECES: Final = 8
"""Pieces of the blob on their way to be hashed."""

_PATIENCE: Final = 1.0
"""Seconds that `BlobReader.close` waits for a thread; only a read that blocks takes as long."""

_POLL: Final = 0.1
"""Seconds between two looks at the cancellation while waiting for a buffer."""


class BlobReader:
    """One pass over a blob: its uncompressed stream in buffers, then `finish` says whether all was as promised.

    Nothing is read before the first buffer is asked for. A blob above `SMALL_BLOB` is read by three threads: one
    decompresses, two hash what goes in and what comes out; the caller's thread parses. Leaving the block closes the
    reader at any point without reading further. The digest stands only once `finish` has returned: whatever the
    buffers led to must not become visible before.

    gzip may have several members, zstd several frames and skippable ones; bytes after the last that belong to none
    are an error, zeros too.

    ``source`` need not be seekable and may give short reads; a path is opened here, an open file stays the caller's.
    ``compression`` is what the media type says, None to go by the magic alone. ``digest``, ``size`` (of the blob) and
    ``diff_id`` are what was promised. Without ``hash_blob`` or ``hash_stream`` that one is not hashed, which saves its
    time: its digest may not be promised, and is empty among the facts.
    ``progress`` is called in the caller's thread with the bytes of the blob read since it was last called.
    ``buffers`` bounds the ring; fewer than four cost speed. With ``ring`` the buffers are those of that one, which goes
    on when this reader is closed.

    Raises, from `next_buffer` and `finish`: FormatError for damaged or truncated data, SizeMismatch and
    DigestMismatch (rather than FormatError where the blob as a whole is not the promised one), Exhausted for a limit,
    InvalidInput and Unsupported for the compression, Cancelled, and whatever the source raises.
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
            raise ValueError("a digest is promised of what is not to be hashed")
        self._from = source
        self._expected = compression
        self._digest = digest
        self._size = size
        self._diff_id = diff_id
        self._limits = limits or DEFAULT_LIMITS
        self._hash_blob = hash_blob
        self._hash_stream = hash_stream
        self._progress = progress
        self._told = 0
        self._cancel = cancel
        self._buffers = buffers
        self._ring = ring
        self._opened: BinaryIO | None = None
        self._pass: _Pass | None = None
        self._failure: BaseException | None = None
        self._facts: BlobFacts | None = None
        self._closed = False

    def next_buffer(self) -> memoryview:
        """The next of the uncompressed stream, `BUFFER_SIZE` bytes save for the last; empty at the end.

        Valid until the next call. After an error every further call raises the same error.
        """
        if self._failure is not None:
            raise self._failure
        try:
            if self._cancel is not None:
                self._cancel.check()
            reading = self._begun()
            buffer = reading.feed.next_buffer()
            if self._progress is not None and (news := reading.source.count - self._told):
                self._told += news
                self._progress(news)
        except Exception as error:
            better = self._failure = self._better(error)
            if better is error:
                raise
            raise better from error
        return buffer

    def finish(self) -> BlobFacts:
        """Read what is left of the stream and of the blob, check what was promised, and tell what was found."""
        if self._facts is not None:
            return self._facts
        while self.next_buffer():
            pass
        reading = self._begun()
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
        """Stop the threads and let go of the blob; what was not read raises nothing. May be called again.

        Waits for no more than a step of a thread. One that is stuck reading a source which gives nothing is left
        behind and ends as soon as that read does.
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

    def _begun(self) -> _Pass:
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

    def _better(self, error: Exception) -> Exception:
        # Damaged on its way is a better answer than broken at some offset.
        if isinstance(error, FormatError) and self._pass is not None and self._pass.source.ended:
            try:
                self._check_blob(self._pass)
            except (SizeMismatch, DigestMismatch) as mismatch:
                return mismatch
        return error


class _Pass:
    """What one pass over a blob consists of, set up once its first bytes are there."""

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
            # The blob is the stream: hashed once, unless the two digests are of different kinds.
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
    def next_buffer(self) -> memoryview: ...

    def stop(self) -> bool:
        """Whether nothing reads from the source any more."""
        ...


class _Direct:
    """All in the caller's thread."""

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
    """Nobody wants the rest."""


class _End:
    __slots__ = ("error",)

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


_Filled: TypeAlias = tuple[memoryview, memoryview]
"""A buffer, and the part of it that is filled."""


class _Threaded:
    """A chain: fill a buffer, hash it, parse it, fill it again. What goes wrong travels along it, in its place.

    The blob itself is hashed beside the chain: in the thread that fills it would cost big files 15 % of the time, in
    the one that hashes buffers it would hold those up.
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
            source.taken = self._pass_on
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
            for thread in self._hashers:  # what they have come to is looked at next
                thread.join()
            self._end = item
        if self._end.error is not None:
            raise self._end.error
        return NOTHING

    def stop(self) -> bool:
        self._let_go()
        for thread in (self._filler, *self._hashers):
            if thread.ident is not None:  # an interrupt may come before all have started
                thread.join(_PATIENCE)
        if self._filler.is_alive():
            return False
        self._source.taken = None  # the way round through it would keep the ring in memory
        return True

    def _let_go(self) -> None:
        self._stopping = True
        # Whatever a thread waits for comes now.
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
            self._let_go()

    def _hash_blob(self, state: _Hash) -> None:
        get, more = self._pieces.get, self._room.put
        try:
            while (piece := get()) is not None:
                state.update(piece)
                more(None)
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            self._hashed.put(_End(error))
            self._let_go()

    def _take(self) -> memoryview:
        buffer = self._ring.take()
        if buffer is None or self._stopping:
            raise _Stopped
        return buffer

    def _pass_on(self, piece: bytes) -> None:
        self._room.get()
        if self._stopping:
            raise _Stopped
        self._pieces.put(piece)


def _thread(work: Callable[..., None], *arguments: object) -> threading.Thread:
    return threading.Thread(target=work, args=arguments, name=f"lamella{work.__name__}", daemon=True)


def open_blob(path: Path) -> BinaryIO:
    """The file ``path``, to be read once from start to end. Raises NotFound, Denied and the like."""
    try:
        raw = path.open("rb", buffering=0)
    except OSError as error:
        raise from_os(error, f"open {str(path)!r}") from error
    if hasattr(os, "posix_fadvise"):
        try:
            os.posix_fadvise(raw.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        except OSError:  # a pipe has no use for it
            pass
    return raw


def _new_hash(promised: Digest | None) -> _Hash:
    return hashlib.new(promised.algorithm if promised else "sha256")


def _digest(state: _Hash | None) -> Digest:
    return Digest("") if state is None else Digest.finish(state)
