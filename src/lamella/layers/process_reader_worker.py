# SPDX-License-Identifier: Apache-2.0
"""What the process does that reads layer blobs for another one: see `lamella.layers.process_reader`."""

from __future__ import annotations

import marshal
import os
import struct
from collections import deque
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeAlias

from msgspec import Struct

from lamella.changes.losses import Losses
from lamella.changes.model import Change, Content, Kind, Link, Opaque, Posix, Put, Stream, Whiteout
from lamella.digests import Digest
from lamella.errors import LamellaError
from lamella.formats.tar.reader import TarMember
from lamella.host.malloc import return_large_blocks
from lamella.layers.tar.source import tar_changes
from lamella.streams.blob_reader import BlobReader
from lamella.streams.limits import BlobLimits

if TYPE_CHECKING:
    from lamella.changes.model import Windows
    from lamella.layers.windows.names import NameRules

HEADER: Final = struct.Struct("<BIIQ")
"""Of a message: the buffer's number, the bytes in it, the bytes of the records after the header, blob bytes read."""
NO_BUFFER: Final = 255

KINDS: Final = tuple(Kind)
LINK, WHITEOUT, OPAQUE, UNUSUAL, POSIX, FORGET, END, FAILED, WINDOWS, WINDOWS_OTHER, FACET, STREAM = range(
    len(KINDS), len(KINDS) + 12
)
"""What a record begins with, if not with a path (of a file) or the number of a kind."""
_LARGE: Final = 1 << 20
"""Bytes of a block that is not kept when it has been freed: zstd's windows are."""
_MOST: Final = 8192
"""Metadata that records name by number, before all are forgotten."""
_MOST_BYTES: Final = 2 << 20
"""Bytes of extended attributes, security descriptors and reparse points in those."""
NO_DATA: Final = -1
"""In the place of an offset: the file is empty and has a data stream; see `windows.tar_source.EMPTY_DATA`."""

Record: TypeAlias = tuple[Any, ...]
"""Of a file: path, number of its metadata, size, offset in the stream. Others begin with a number that tells what.

Of a file of a Windows layer: path, number of what `FACET` has told, creation, access, write and change time, size and
offset.
"""


class Blob(Struct, frozen=True):
    """A layer's blob, and what was promised of it; see `BlobReader`."""

    file: BinaryIO
    """Open, and nobody else reads from it."""
    compression: str | None = None
    digest: Digest | None = None
    size: int | None = None
    diff_id: Digest | None = None
    limits: BlobLimits | None = None
    windows: NameRules | None = None
    """The rules for names, where it is a Windows layer's."""


def work(blobs: Sequence[Blob], ring: SharedRing, messages: int, others: tuple[int, ...]) -> None:
    """Read the blobs and say what is in them. ``others`` are the ends of pipes that are the other process's."""
    for end in others:
        os.close(end)
    return_large_blocks(_LARGE)
    for blob in blobs:
        if not _Telling(blob, ring, messages).tell():
            break


class SharedRing:
    """The buffers that the two processes share; the applying one gives them back, by their numbers."""

    def __init__(self, buffers: Sequence[memoryview], free: int) -> None:
        self._buffers = buffers
        self._free = free
        self._idle: list[int] = []
        self._taken: deque[int] = deque()

    def take(self) -> memoryview | None:
        """See `Ring.take`."""
        number = self._idle.pop() if self._idle else None
        if number is None:
            piece = os.read(self._free, 1)
            if not piece:
                os._exit(0)  # nobody is left who wants to know
            number = piece[0]
        self._taken.append(number)
        return self._buffers[number]

    def give(self, buffer: memoryview) -> None:
        """See `Ring.give`: it is in use until the other process gives it back."""

    def close(self) -> None:
        """See `Ring.close`: it goes on, and who waits for a buffer then is about to end with this process."""

    def hand_over(self) -> int:
        """The number of the buffer that was filled next."""
        return self._taken.popleft()

    def settle(self) -> None:
        """Keep what was taken and not filled, when a blob has ended."""
        self._idle.extend(self._taken)
        self._taken.clear()


class _Telling:
    """Tells what is in one blob."""

    def __init__(self, blob: Blob, ring: SharedRing, messages: int) -> None:
        self._ring = ring
        self._messages = messages
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
        self._records: list[Record] = []
        self._number = NO_BUFFER
        self._filled = 0
        self._news = 0
        self._end = 0
        """Of the buffer, in the stream."""
        self._windows = blob.windows
        self._numbers: dict[Hashable, int] = {}
        """Of metadata: by the object's id, of a Windows layer by what it says."""
        self._posix: list[Posix] = []
        """Those objects, so that no other has their ids."""
        self._held = 0
        """Bytes in what records name by number."""
        self._losses = Losses()

    def tell(self) -> bool:
        """Send all messages; whether the blob was as promised."""
        try:
            if self._windows is None:
                self._tell_changes()
            else:
                self._tell_windows_changes(self._windows)
            facts = self._reader.finish()
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                os._exit(0)
            self._fail(error)
            return False
        except BaseException as error:  # noqa: BLE001  # raised in the other process
            self._fail(error)
            return False
        self._ring.settle()
        lost = [(loss.path, loss.what, loss.why) for loss in self._losses.kept]
        self._records.append(
            (END, str(facts.digest), facts.size, str(facts.diff_id), facts.tar_size, facts.compression, lost)
        )
        self._send()
        return True

    def _fail(self, error: BaseException) -> None:
        import traceback

        self._records.append((FAILED, _preserved(error), "".join(traceback.format_exception(error))))
        self._send()

    def _tell_changes(self) -> None:
        add, numbers, file = self._records.append, self._numbers, Kind.FILE
        for change in tar_changes(self._next_buffer, losses=self._losses):
            if type(change) is Put:
                entry = change.entry
                posix = entry.posix
                number = numbers.get(id(posix))
                if number is None:
                    number = self._state(posix)  # type: ignore[arg-type]  # a tar's entries have them
                if entry.kind is not file:
                    add((KINDS.index(entry.kind), entry.path, number, entry.target))
                    continue
                content: TarMember[Posix] = change.content  # type: ignore[assignment]  # of a tar that streams
                size, stored, offset = entry.size, content.stored_size, content.data_offset
                if content.extents is None and stored == size:
                    add((entry.path, number, size, offset))
                else:
                    add((UNUSUAL, entry.path, number, size, offset, stored, _extents(content)))
                if offset + stored > self._end:
                    for _ in content.chunks():  # so that, where the stream ends too early, it is known of this file
                        pass
                continue
            self._tell_other(change)

    def _tell_windows_changes(self, rules: NameRules) -> None:
        from lamella.layers.windows.tar_source import EMPTY_DATA, windows_tar_changes

        add, numbers, file = self._records.append, self._numbers, Kind.FILE
        for change in windows_tar_changes(self._next_buffer, rules=rules):
            if type(change) is Put:
                entry, content = change.entry, change.content
                windows: Windows = entry.windows  # type: ignore[assignment]  # these entries have it
                descriptor, extended, reparse = (
                    windows.security_descriptor,
                    windows.extended_attributes,
                    windows.reparse,
                )
                key: tuple[object, ...] = (windows.attributes, descriptor)
                if extended or reparse is not None:
                    key = (windows.attributes, descriptor, tuple(extended.items()), reparse)
                number = numbers.get(key)
                if number is None:
                    number = self._facet(key, windows)
                said = (
                    entry.path,
                    number,
                    windows.creation_time,
                    windows.access_time,
                    windows.write_time,
                    windows.change_time,
                )
                size = entry.size
                if entry.kind is not file:
                    add((WINDOWS_OTHER, *said, size, NO_DATA, 0, None, KINDS.index(entry.kind), entry.target))
                elif content is EMPTY_DATA:
                    add((WINDOWS_OTHER, *said, size, NO_DATA, 0, None, KINDS.index(file), ""))
                else:
                    data: TarMember[Any] = content  # type: ignore[assignment]  # of a tar that streams
                    offset, stored = data.data_offset, data.stored_size
                    if data.extents is None and stored == size:
                        add((WINDOWS, *said, size, offset))
                    else:
                        add((WINDOWS_OTHER, *said, size, offset, stored, _extents(data), KINDS.index(file), ""))
                    if offset + stored > self._end:
                        for _ in data.chunks():
                            pass
            elif type(change) is Stream:
                data = change.content  # type: ignore[assignment]
                offset, stored = data.data_offset, data.stored_size
                add((STREAM, change.path, change.name, data.size, offset, stored, _extents(data)))
                if offset + stored > self._end:
                    for _ in data.chunks():
                        pass
            else:
                self._tell_other(change)

    def _tell_other(self, change: Change) -> None:
        match change:
            case Link(path, target):
                self._records.append((LINK, path, target))
            case Whiteout(path):
                self._records.append((WHITEOUT, path))
            case Opaque(path):
                self._records.append((OPAQUE, path))
            case _:
                raise AssertionError(f"a tar does not state {change!r}")

    def _state(self, posix: Posix) -> int:
        xattrs = dict(posix.xattrs) or None
        self._make_room(_held(xattrs))
        number = self._numbers[id(posix)] = len(self._numbers)
        self._posix.append(posix)
        self._records.append((POSIX, posix.mode, posix.uid, posix.gid, posix.mtime, xattrs, posix.device))
        return number

    def _facet(self, key: tuple[object, ...], windows: Windows) -> int:
        descriptor, reparse = windows.security_descriptor, windows.reparse
        extended = dict(windows.extended_attributes) or None
        self._make_room(len(descriptor or b"") + len(reparse or b"") + _held(extended))
        number = self._numbers[key] = len(self._numbers)
        self._records.append((FACET, windows.attributes, descriptor, extended, reparse))
        return number

    def _make_room(self, size: int) -> None:
        """Forget all metadata where there would be too much of it with ``size`` bytes more."""
        if self._held + size > _MOST_BYTES or len(self._numbers) >= _MOST:
            self._numbers.clear()
            self._posix.clear()
            self._held = 0
            self._records.append((FORGET,))
        self._held += size

    def _next_buffer(self) -> memoryview:
        if self._number != NO_BUFFER or self._records:
            self._send()
        buffer = self._reader.next_buffer()
        if buffer:
            self._number, self._filled = self._ring.hand_over(), len(buffer)
            self._end += len(buffer)
        return buffer

    def _send(self) -> None:
        records = marshal.dumps(self._records)
        view = memoryview(HEADER.pack(self._number, self._filled, len(records), self._news) + records)
        self._number, self._filled, self._news = NO_BUFFER, 0, 0
        self._records.clear()
        while view:
            view = view[os.write(self._messages, view) :]

    def _count(self, news: int) -> None:
        self._news += news


def _extents(content: Content) -> list[tuple[int, int]] | None:
    return None if content.extents is None else list(content.extents)


def _held(attributes: dict[str, bytes] | None) -> int:
    return 0 if attributes is None else sum(len(name) + len(value) for name, value in attributes.items())


def _preserved(error: BaseException) -> bytes:
    """An error in a form in which it can be made again, though its class may take other arguments than it keeps."""
    import pickle

    try:
        if isinstance(error, LamellaError):
            return pickle.dumps((type(error), error.args, error.__dict__))
        return pickle.dumps(error)
    except Exception:  # noqa: BLE001  # whatever does not fit a pickle
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
