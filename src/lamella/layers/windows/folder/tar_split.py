# SPDX-License-Identifier: Apache-2.0
"""The framing of a layer's tar: all its bytes but the content of files, kept in the folder beside the files.

Tools write the same layer in different bytes. With the framing, the folder gives back those that it was made of.

The file is 8 bytes of magic, the last of them the version, and one zstd frame. In it stand numbers, each in groups of
seven bits, the lowest first, the last without the high bit. An even one is twice the count of bytes that follow it as
they are in the tar. An odd one is twice the bytes, and one, of the next content that the folder's index states: of a
file or an alternate stream, holes left out. 0 is the end; the digest of the tar follows it, as text with its length
before it.
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
    """Keeps the framing of a tar that is being read, as long as its changes pass through `noted`.

    ``next_buffer`` gives the tar, as for `TarReader`, which is to be given this one's `next_buffer`. What `finish` has
    not ended is no framing.
    """

    __slots__ = ("_base", "_buffer", "_compressor", "_held", "_next", "_raw", "_spans", "_write")

    def __init__(self, next_buffer: Callable[[], memoryview], write: Callable[[bytes], object]) -> None:
        self._compressor = frame_compressor(_LEVEL, _WINDOW_LOG)
        self._next = next_buffer
        self._write = write
        self._buffer = memoryview(b"")
        self._base = 0  # of the buffer in the tar
        self._spans: list[tuple[int, int]] = []
        """Content that begins in this buffer or goes on in it, by where it begins and ends in the tar."""
        self._raw = bytearray()
        """Bytes since the last content."""
        self._held = bytearray()
        """What is to be compressed."""
        write(_MAGIC + bytes([_VERSION]))

    def next_buffer(self) -> memoryview:
        """The next part of the tar."""
        self._cut()
        self._base += len(self._buffer)
        self._buffer = memoryview(b"")
        self._buffer = following = self._next()
        return following

    def noted(self, changes: Source) -> Iterator[Change]:
        """``changes`` of the tar, as they are, each before anything reads its content."""
        spans = self._spans
        for change in changes:
            if type(change) is Put or type(change) is Stream:
                content = change.content
                if type(content) is TarMember and content.stored_size:
                    start = content.data_offset
                    spans.append((start, start + content.stored_size))
            yield change

    def finish(self, diff_id: Digest) -> None:
        """The end: the whole tar has passed by."""
        self._cut()
        digest = diff_id.encode("ascii")
        self._flush()
        self._write(self._compressor.compress(encode_varint(0) + encode_varint(len(digest)) + digest))
        self._write(self._compressor.flush())

    def _cut(self) -> None:
        """Take what of the buffer is not content."""
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
    """Gives the tar back that `FramingWriter` saw, once, from the content in ``changes`` of the folder.

    Memory is bounded whatever the file says. Raises FormatError for what is damaged or no framing, Unsupported for a
    version to come.
    """

    def __init__(self, file: BinaryIO, changes: Source) -> None:
        self._changes = changes
        self.entries = 0
        """Changes that went by."""
        magic = file.read(len(_MAGIC) + 1)
        if magic[:-1] != _MAGIC:
            raise FormatError(FRAMING, 0, "this is no framing of a layer")
        if magic[-1] != _VERSION:
            raise Unsupported(f"{FRAMING} is of version {magic[-1]}; {_VERSION} is known")
        self._bytes = FramedReader(file, FRAMING, _WINDOW_LOG)
        self.diff_id: Digest
        """Of the tar; known when all pieces have been given."""

    def pieces(self) -> Iterator[Buffer]:
        """The tar. Raises FormatError where content has another size than stated, Conflict where a file is another."""
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
                raise source.error(f"the index of the layer has no content of {size} bytes here")
            yield from content.chunks()
        digest = source.take(source.number("digest", _MAX_DIGEST)).decode("latin-1")
        try:
            self.diff_id = parse_digest(digest)
        except (InvalidInput, Unsupported) as error:
            raise source.error(str(error)) from None
        source.expect_end()
        if next(contents, None) is not None:
            raise source.error("the index of the layer has more content than it")

    def _contents(self) -> Iterator[Content]:
        """The content of each file and stream that has any, each before the next change is asked for."""
        for change in self._changes:
            self.entries += 1
            if type(change) is Put or type(change) is Stream:
                content = change.content
                if content is not None and content.size and (content.extents is None or content.extents):
                    yield content
