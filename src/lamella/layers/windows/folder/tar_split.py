# SPDX-License-Identifier: Apache-2.0
"""The framing of a layer's tar: all bytes except the content of files, kept in the folder beside the files.

Tools write the same layer as different tars. With the framing, the folder restores the tar that it was made from.

The file consists of 8 bytes of magic, of which the last is the version, and one zstd frame. The frame holds varints:
groups of seven bits, lowest first, with the high bit set in all but the last. An even number is twice the count of
bytes of the tar that follow. An odd number is twice the size, plus one, of the next content in the index of the folder:
of a file or an alternate stream, without holes. 0 ends the list; the digest of the tar follows, as text after its
length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

from lamella.changes.contracts import Source
from lamella.changes.model import Buffer, Change, Content, Put, Stream
from lamella.digests import Digest, parse_digest
from lamella.errors import FormatError, InvalidInput, Unsupported
from lamella.formats.container import FramedReader, encode_varint, frame_compressor
from lamella.formats.tar.reader import TarMember
from lamella.layers.windows.layout import FRAMING

_MAGIC: Final = b"LAYFRAM"
_VERSION: Final = 1
_LEVEL: Final = 1
_WINDOW_LOG: Final = 22
_MAX_DIGEST: Final = 256


class FramingWriter:
    """Records the framing of a tar while it is read; its changes must pass through `record`.

    ``next_buffer`` returns the tar, as for `TarReader`, which reads from the `next_buffer` of this object. The framing
    is valid only after `finish`.
    """

    __slots__ = ("_base", "_buffer", "_compressor", "_held", "_next", "_raw", "_spans", "_write")

    def __init__(self, next_buffer: Callable[[], memoryview], write: Callable[[bytes], object]) -> None:
        self._compressor = frame_compressor(_LEVEL, _WINDOW_LOG)
        self._next = next_buffer
        self._write = write
        self._buffer = memoryview(b"")
        self._base = 0  # offset of the buffer in the tar
        self._spans: list[tuple[int, int]] = []
        """Content that starts or continues in this buffer: its first and last offset in the tar."""
        self._raw = bytearray()
        """Bytes since the last content."""
        self._held = bytearray()
        """Bytes to be compressed."""
        write(_MAGIC + bytes([_VERSION]))

    def next_buffer(self) -> memoryview:
        """The next part of the tar."""
        self._cut()
        self._base += len(self._buffer)
        self._buffer = memoryview(b"")
        self._buffer = following = self._next()
        return following

    def record(self, changes: Source) -> Iterator[Change]:
        """Pass on the changes of the tar; record the content of each before it is read."""
        spans = self._spans
        for change in changes:
            if type(change) is Put or type(change) is Stream:
                content = change.content
                if type(content) is TarMember and content.stored_size:
                    start = content.data_offset
                    spans.append((start, start + content.stored_size))
            yield change

    def finish(self, diff_id: Digest) -> None:
        """End the framing, after the last byte of the tar."""
        self._cut()
        digest = diff_id.encode("ascii")
        self._flush()
        self._write(self._compressor.compress(encode_varint(0) + encode_varint(len(digest)) + digest))
        self._write(self._compressor.flush())

    def _cut(self) -> None:
        """Collect the bytes of the buffer that are not content."""
        buffer, base, raw, held = self._buffer, self._base, self._raw, self._held
        end = base + len(buffer)
        at = base
        spans = self._spans
        done = 0
        for start, stop in spans:
            if start >= end:
                break
            if at < start:
                raw += buffer[at - base : start - base]
            if start >= base:
                held += encode_varint(len(raw) << 1) + raw if raw else b""
                held += encode_varint((stop - start) << 1 | 1)
                raw.clear()
            at = stop
            if stop > end:
                break
            done += 1
        if at < end:
            raw += buffer[at - base :]
        del spans[:done]
        self._flush()

    def _flush(self) -> None:
        if self._raw:
            self._held += encode_varint(len(self._raw) << 1) + self._raw
            self._raw.clear()
        if self._held:
            self._write(self._compressor.compress(self._held))
            self._held.clear()


class FramingReader:
    """Restores the tar that `FramingWriter` recorded, once, with the content in ``changes`` of the folder.

    Memory is bounded for any file. Raises FormatError for damaged files, Unsupported for later versions.
    """

    def __init__(self, file: BinaryIO, changes: Source) -> None:
        self._changes = changes
        self.entries = 0
        """Changes in the pieces so far."""
        magic = file.read(len(_MAGIC) + 1)
        if magic[:-1] != _MAGIC:
            raise FormatError(FRAMING, 0, "not the framing of a layer")
        if magic[-1] != _VERSION:
            raise Unsupported(f"{FRAMING} has version {magic[-1]}; only version {_VERSION} is supported")
        self._bytes = FramedReader(file, FRAMING, _WINDOW_LOG)
        self.diff_id: Digest
        """The digest of the tar; known after the last piece."""

    def pieces(self) -> Iterator[Buffer]:
        """The tar. Raises FormatError if a content has another size than recorded, Conflict if a file has changed."""
        source = self._bytes
        contents = self._contents()
        while number := source.number("bytes"):
            size = number >> 1
            if not number & 1:
                while size:
                    piece = source.some(size)
                    size -= len(piece)
                    yield piece
                continue
            content = next(contents, None)
            extents = None if content is None else content.extents
            if content is None or size != (content.size if extents is None else sum(one[1] for one in extents)):
                raise source.error(f"the index of the layer does not have a content of {size} bytes here")
            yield from content.chunks()
        digest = source.take(source.number("digest", _MAX_DIGEST)).decode("latin-1")
        try:
            self.diff_id = parse_digest(digest)
        except (InvalidInput, Unsupported) as error:
            raise source.error(str(error)) from None
        source.expect_end()
        if next(contents, None) is not None:
            raise source.error("the index of the layer has more content than the framing")

    def _contents(self) -> Iterator[Content]:
        """The content of each file and stream that has any, each before the next change is requested."""
        for change in self._changes:
            self.entries += 1
            if type(change) is Put or type(change) is Stream:
                content = change.content
                if content is not None and content.size and (content.extents is None or content.extents):
                    yield content
