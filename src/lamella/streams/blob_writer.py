# SPDX-License-Identifier: Apache-2.0
"""Writing a layer's blob: compressed by several threads into bytes that depend on the tar and the level alone."""

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
"""Where nobody asks for more: beyond them the one thread that writes the tar can't keep up."""

_PATIENCE: Final = 1.0
"""Seconds that giving up waits for a thread; only a sink that blocks takes as long."""


class BlobWriter:
    """Takes a tar in pieces of any size and gives its blob to the sink, with both digests from the same pass.

    The blob's bytes depend on the tar, the compression and the level, never on the number of threads or on how the
    tar came in pieces. They may change with a version of the libraries beneath, and isal and zlib-ng choose their code
    by the processor: what is promised everywhere and for good is the diff id. zstd's bytes depend on its version alone.

    gzip's levels, with the size and time of two threads against Go's gzip (level 6, one thread), which containerd
    writes; measured on 320 MB of Python, documentation and headers and on 310 MB of large libraries:

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

    ``sink`` is called from a thread of the writer with buffers that hold until it returns; a file gets all of each
    even where it takes less at once. ``threads`` compress, as many as there are processors to run on by default, and
    as many blocks of 1 MiB and two more are held. A tar of one block is compressed in the caller's thread.

    Leaving the block without `finish` gives up: the threads end, and what the sink has is no blob. Raises InvalidInput
    for a compression or level that there is not, and from `write` and `finish` whatever the sink raises.
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
        self._line: _Line | None = None
        self._facts: BlobFacts | None = None
        self._ended = False

    def write(self, data: Buffer) -> None:
        """The next bytes of the tar; the buffer is the caller's again on return."""
        end = self._filled + len(data)
        if end <= BLOCK_SIZE:
            self._block[self._filled : end] = data
            self._filled = end
            return
        rest = memoryview(data)
        while rest:
            if self._filled == BLOCK_SIZE:
                self._hand_over()
            part = rest[: BLOCK_SIZE - self._filled]
            end = self._filled + len(part)
            self._block[self._filled : end] = part
            self._filled = end
            rest = rest[len(part) :]

    def finish(self) -> BlobFacts:
        """Write what is left and say what was written. No bytes may follow. The sink is not closed."""
        if self._facts is not None:
            return self._facts
        self._usable()
        output, encoder = self._output, self._encoder
        last = self._block[: self._filled]
        try:
            if self._line is None:
                output.tar(last)
                output.blob(encoder.whole(last))
            else:
                self._hand_over()
                self._line.finish()
                output.blob(encoder.tail())
        except BaseException:
            self.abort()
            raise
        self._end()
        self._facts = output.facts(self._compression)
        return self._facts

    def abort(self) -> None:
        """Give up at once. May be called again, and after `finish`, when it does nothing."""
        line = self._line
        self._end()
        if line is not None:
            line.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._facts is None:
            self.abort()

    def _end(self) -> None:
        self._ended = True
        self._line = None
        self._filled = BLOCK_SIZE  # so that whatever is written from here on is refused

    def _usable(self) -> None:
        if self._ended:
            raise StreamConsumed("the blob is finished or given up; nothing more can be written")

    def _hand_over(self) -> None:
        self._usable()
        if self._line is None:
            self._output.blob(self._encoder.head)
            self._line = _Line(self._encoder, self._output, self._threads)
        block = self._block
        part = block[: self._filled]
        before, self._before = self._before, bytes(part[-WINDOW:])
        self._block = self._line.put(block, part, before)
        self._filled = 0


class _Output:
    """Hashes and counts on both sides, and passes the blob on."""

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


class _Line:
    """Threads that compress blocks, and one that puts what they give into the order of the stream."""

    def __init__(self, encoder: Encoder, output: _Output, threads: int) -> None:
        self._encoder = encoder
        self._output = output
        self._to_make = threads + 1  # and the writer's own
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
        """Take a block, and give an empty one for it as soon as there is one."""
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
        # After a failure blocks are still taken, so that the caller is not left waiting for an empty one.
        while (job := self._order.get()) is not None:
            if self._failure is None and not self._stopping:
                try:
                    self._one(job)
                except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
                    self._failure = error
            self._free.put(job.block)

    def _one(self, job: _Job) -> None:
        self._output.tar(job.data)
        self._encoder.account(job.data)
        result = job.result.get() if self._encoder.workers else self._encoder.block(job.data, job.before)
        if isinstance(result, BaseException):
            raise result
        self._output.blob(result)


def _whole_writes(sink: Callable[[Buffer], object] | BinaryIO) -> Callable[[Buffer], object]:
    if not hasattr(sink, "write"):
        return sink
    write: Callable[[Buffer], int | None] = sink.write
    raw = isinstance(sink, io.RawIOBase)

    def write_all(data: Buffer) -> None:
        rest = memoryview(data)
        while rest:
            written = write(rest)
            if written is None:
                if raw:
                    raise BlockingIOError(errno.EAGAIN, "the output does not block, and has no room")
                return
            rest = rest[written:]

    return write_all


def _processors() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, _MOST_THREADS)
