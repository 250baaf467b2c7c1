# SPDX-License-Identifier: Apache-2.0
"""Region files of a new image, written by a thread while the caller fills the next buffer."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from pathlib import Path
from typing import Final

from lamella.errors import from_os
from lamella.formats.cim.contents import ROOM
from lamella.host import file_io
from lamella.host.file_io import read_at

NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | file_io.O_NOFOLLOW | file_io.O_CLOEXEC | file_io.O_BINARY

_BUFFERS: Final = 6
"""Buffers in addition to those that regions fill; if all are full, the caller waits."""


class WriteBehind:
    """The writer thread. It writes buffers in the order of `give`, and starts with the first one.

    Errors in the thread are raised by the next call of an output.
    """

    def __init__(self) -> None:
        self._todo: queue.SimpleQueue[tuple[RegionOutput, memoryview, int] | threading.Event | None]
        self._todo = queue.SimpleQueue()
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._to_make = _BUFFERS
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def give(self, output: RegionOutput, buffer: memoryview, filled: int) -> memoryview:
        """Queue ``filled`` bytes of ``buffer`` for writing; return another buffer with arbitrary content."""
        self.check()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="lamella-cim", daemon=True)
            self._thread.start()
        self._todo.put((output, buffer, filled))
        if self._to_make:
            self._to_make -= 1
            return memoryview(bytearray(ROOM))
        return self._free.get()

    def check(self) -> None:
        """Raise the error of the thread, if any."""
        if self._error is not None:
            raise self._error

    def drain(self) -> None:
        """Wait until all buffers are written."""
        if self._thread is not None:
            done = threading.Event()
            self._todo.put(done)
            done.wait()
        self.check()

    def stop(self) -> None:
        """End the thread after the last buffer. Can be called repeatedly."""
        if self._thread is not None:
            self._todo.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (item := self._todo.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            output, buffer, filled = item
            if self._error is None:
                try:
                    output.append(buffer[:filled])
                except BaseException as problem:  # noqa: BLE001  # raised by `check`
                    self._error = problem
            output.written()
            self._free.put(buffer)


class RegionOutput:
    """A region file (`lamella.formats.cim.contents.Output`). Close it only after the thread has stopped."""

    __slots__ = ("_behind", "_file", "_given", "_reading", "_waiting", "path")

    def __init__(self, path: Path, behind: WriteBehind) -> None:
        self.path = path
        self._behind = behind
        self._given = 0
        self._reading = -1
        """A second descriptor for reading; opened on demand."""
        self._waiting: deque[tuple[int, memoryview, int]] = deque()
        """Buffers that are not written yet: offset in the file, buffer, count of bytes."""
        try:
            self._file = os.open(path, NEW, 0o600)
        except OSError as problem:
            raise from_os(problem, f"make {os.fspath(path)!r}") from problem

    def swap(self, buffer: memoryview, filled: int) -> memoryview:
        self._waiting.append((self._given, buffer, filled))
        self._given += filled
        return self._behind.give(self, buffer, filled)

    def truncate(self, size: int) -> None:
        self._behind.drain()
        self._given = size
        try:
            os.ftruncate(self._file, size)
            os.lseek(self._file, size, os.SEEK_SET)
        except OSError as problem:
            raise from_os(problem, f"write {os.fspath(self.path)!r}") from problem

    def read(self, offset: int, length: int) -> bytes:
        self._behind.check()
        for start, buffer, filled in tuple(self._waiting):
            if offset + length > start and offset < start + filled:
                if start <= offset and offset + length <= start + filled:
                    return bytes(buffer[offset - start : offset - start + length])
                self._behind.drain()
                break
        try:
            if self._reading < 0:
                self._reading = os.open(self.path, file_io.READ_FILE)
            return read_at(self._reading, length, offset)
        except OSError as problem:
            raise from_os(problem, f"read {os.fspath(self.path)!r}") from problem

    def append(self, data: memoryview) -> None:
        """Write ``data`` now; called by the thread."""
        done = 0
        try:
            while done < len(data):
                done += os.write(self._file, data[done:])
        except OSError as problem:
            raise from_os(problem, f"write {os.fspath(self.path)!r}") from problem

    def written(self) -> None:
        """Drop the oldest waiting buffer; called by the thread."""
        self._waiting.popleft()

    def sync(self) -> None:
        """Flush the file to the disk. Call it only after the thread has stopped. Raises OSError."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file. Can be called repeatedly."""
        for file in (self._file, self._reading):
            if file >= 0:
                os.close(file)
        self._file = self._reading = -1
