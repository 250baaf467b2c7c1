# SPDX-License-Identifier: Apache-2.0
"""Writes a layer blob: compresses it in several threads; the bytes depend on the tar and the level only."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import queue
import threading
from collections.abc import Callable
from typing import BinaryIO, Final, Self

from lamella.digests import Digest
from lamella.errors import StreamConsumed
from lamella.streams.compress import BLOCK_SIZE, WINDOW, Encoder
from lamella.streams.compressions import NONE, new_encoder
from lamella.streams.limits import BlobFacts, Buffer

__all__ = ["BlobWriter"]

_MOST_THREADS: Final = 8
"""The default limit of threads: the thread that writes the tar cannot supply more."""

_PATIENCE: Final = 1.0
"""Seconds that `abort` waits for a thread, which takes as long only in a blocking sink."""


class BlobWriter:
    """Compresses a tar, passed in pieces of any size, to the sink, and computes both digests in the same pass.

    The bytes of the blob depend on the tar, the compression and the level, not on the number of threads or the pieces.
    They can change with the version of a library, and isal and zlib-ng choose their code by the processor: only the
    diff id is the same everywhere and for good. The bytes of zstd depend on its version only.

    The levels of gzip, with size and time (two threads) relative to Go's gzip at level 6 (one thread), which containerd
    uses; measured on 320 MB of Python, documentation and headers and on 310 MB of large libraries:

    ======  =========  ===============  ====
    level   by         size             time
    ======  =========  ===============  ====
    1, 2    isal 1     +11 %, +7 %      0.07
    3       isal 3     +7.5 %, +4 %     0.10
    4       zlib-ng 4  +1.8 %, +1.2 %   0.18
    5       zlib-ng 5  +0.4 %, +0.2 %   0.20
    6       zlib-ng 6  +0.1 %, +0.1 %   0.24
    9       zlib-ng 9  -1.1 %, -0.6 %   0.54
    ======  =========  ===============  ====

    gzip defaults to 5: one member, without name or time. zstd takes 1 to 19 and defaults to 3: one frame with a
    checksum, a window of 8 MiB; levels above 9 take much memory. ``none`` takes no level.

    ``sink`` is called in a thread of the writer, with buffers that are valid until it returns; short writes to a file
    are continued. ``threads`` defaults to the number of usable processors, up to 8. The writer holds two blocks of
    1 MiB more than it has threads. A tar of one block is compressed in the caller's thread.

    Leaving the block without `finish` aborts: the threads end, and the output is no blob. Raises InvalidInput for an
    unknown compression or level; `write` and `finish` raise the errors of the sink.
    """

    def __init__(
        self,
        sink: Callable[[Buffer], object] | BinaryIO,
        *,
        compression: str,
        level: int | None = None,
        threads: int | None = None,
    ) -> None:
        threads = _processors() if threads is None else max(1, threads)
        self._encoder = new_encoder(compression, level, threads)
        self._compression = compression
        self._threads = threads
        self._output = _Output(sink, same=compression == NONE)
        self._block = memoryview(bytearray(BLOCK_SIZE))
        self._filled = 0
        self._before = b""
        self._pipeline: _Pipeline | None = None
        self._facts: BlobFacts | None = None
        self._ended = False

    def write(self, data: Buffer) -> None:
        """Append bytes of the tar; the buffer may be reused on return."""
        end = self._filled + len(data)
        if end <= BLOCK_SIZE:
            self._block[self._filled : end] = data
            self._filled = end
            return
        rest = memoryview(data)
        while rest:
            if self._filled == BLOCK_SIZE:
                self._queue_block()
            part = rest[: BLOCK_SIZE - self._filled]
            end = self._filled + len(part)
            self._block[self._filled : end] = part
            self._filled = end
            rest = rest[len(part) :]

    def finish(self) -> BlobFacts:
        """End the blob and return its facts. The sink is not closed."""
        if self._facts is not None:
            return self._facts
        self._check_open()
        output, encoder = self._output, self._encoder
        last = self._block[: self._filled]
        try:
            if self._pipeline is None:
                output.tar(last)
                output.blob(encoder.whole(last))
            else:
                self._queue_block()
                self._pipeline.finish()
                output.blob(encoder.tail())
        except BaseException:
            self.abort()
            raise
        self._end()
        self._facts = output.facts(self._compression)
        return self._facts

    def abort(self) -> None:
        """Stop without completing the blob. May be called again; after `finish` it does nothing."""
        pipeline = self._pipeline
        self._end()
        if pipeline is not None:
            pipeline.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._facts is None:
            self.abort()

    def _end(self) -> None:
        self._ended = True
        self._pipeline = None
        self._filled = BLOCK_SIZE  # the next write is refused

    def _check_open(self) -> None:
        if self._ended:
            raise StreamConsumed("the blob is finished or aborted")

    def _queue_block(self) -> None:
        self._check_open()
        if self._pipeline is None:
            self._output.blob(self._encoder.head)
            self._pipeline = _Pipeline(self._encoder, self._output, self._threads)
        block = self._block
        part = block[: self._filled]
        before, self._before = self._before, bytes(part[-WINDOW:])
        self._block = self._pipeline.put(block, part, before)
        self._filled = 0


class _Output:
    """Hashes and counts the tar and the blob, and passes the blob to the sink."""

    def __init__(self, sink: Callable[[Buffer], object] | BinaryIO, *, same: bool) -> None:
        self._sink = _whole_writes(sink)
        self._same = same
        self._tar = hashlib.sha256()
        self._blob = self._tar if same else hashlib.sha256()
        self._tar_size = 0
        self._size = 0

    def tar(self, data: memoryview) -> None:
        self._tar.update(data)
        self._tar_size += len(data)

    def blob(self, data: Buffer) -> None:
        if not data:
            return
        if not self._same:
            self._blob.update(data)
        self._size += len(data)
        self._sink(data)

    def facts(self, compression: str) -> BlobFacts:
        return BlobFacts(Digest.finish(self._blob), self._size, Digest.finish(self._tar), self._tar_size, compression)


class _Job:
    __slots__ = ("before", "block", "data", "result")

    def __init__(self, block: memoryview, data: memoryview, before: bytes) -> None:
        self.block = block
        self.data = data
        self.before = before
        self.result: queue.SimpleQueue[Buffer | BaseException] = queue.SimpleQueue()


class _Pipeline:
    """Threads that compress blocks, and one that writes the results in order."""

    def __init__(self, encoder: Encoder, output: _Output, threads: int) -> None:
        self._encoder = encoder
        self._output = output
        self._to_make = threads + 1  # the writer has one more
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._order: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._compress, name="lamella_compress", daemon=True)
            for _ in range(encoder.workers)
        ]
        self._threads.append(threading.Thread(target=self._write, name="lamella_write", daemon=True))
        for thread in self._threads:
            thread.start()

    def put(self, block: memoryview, data: memoryview, before: bytes) -> memoryview:
        """Queue a block and return an empty one once it is available."""
        self._check()
        job = _Job(block, data, before)
        if self._encoder.workers:
            self._jobs.put(job)
        self._order.put(job)
        if self._to_make:
            self._to_make -= 1
            return memoryview(bytearray(BLOCK_SIZE))
        return self._free.get()

    def finish(self) -> None:
        self._end()
        for thread in self._threads:
            thread.join()
        self._check()

    def stop(self) -> None:
        self._stopping = True
        self._end()
        for thread in self._threads:
            thread.join(_PATIENCE)

    def _end(self) -> None:
        for _ in range(self._encoder.workers):
            self._jobs.put(None)
        self._order.put(None)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _compress(self) -> None:
        block = self._encoder.block
        while (job := self._jobs.get()) is not None:
            try:
                job.result.put(b"" if self._stopping or self._failure else block(job.data, job.before))
            except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
                job.result.put(error)

    def _write(self) -> None:
        # After a failure blocks are still returned, so that the caller does not wait forever.
        while (job := self._order.get()) is not None:
            if self._failure is None and not self._stopping:
                try:
                    self._write_block(job)
                except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
                    self._failure = error
            self._free.put(job.block)

    def _write_block(self, job: _Job) -> None:
        self._output.tar(job.data)
        self._encoder.account(job.data)
        result = job.result.get() if self._encoder.workers else self._encoder.block(job.data, job.before)
        if isinstance(result, BaseException):
            raise result
        self._output.blob(result)


def _whole_writes(sink: Callable[[Buffer], object] | BinaryIO) -> Callable[[Buffer], object]:
    if callable(sink):
        return sink
    write: Callable[[Buffer], int | None] = sink.write
    raw = isinstance(sink, io.RawIOBase)

    def write_all(data: Buffer) -> None:
        rest = memoryview(data)
        while rest:
            written = write(rest)
            if written is None:
                if raw:
                    raise BlockingIOError(errno.EAGAIN, "the output is non-blocking and full")
                return
            rest = rest[written:]

    return write_all


def _processors() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, _MOST_THREADS)
