# SPDX-License-Identifier: Apache-2.0
"""The folder of a Windows layer as a source of changes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType
from typing import BinaryIO, Self

from lamella.changes.model import EMPTY, Change, Content, Entry, Kind, Link, Put, Stream, Whiteout, Windows
from lamella.errors import FormatError, NotFound, Unsupported
from lamella.formats.ntfs.attributes import DIRECTORY
from lamella.layers.windows.folder.index import BASE, IndexReader, LinkFact, PutFact, StreamFact
from lamella.layers.windows.folder.layout import (
    DIRECTORY_SUFFIX,
    FRAMING,
    INDEX,
    STREAMS,
    TOMBSTONES,
    WindowsLayer,
    disk_path,
    in_transport,
)
from lamella.layers.windows.folder.parents import open_index
from lamella.layers.windows.folder.read import Folder, FolderContent
from lamella.layers.windows.folder.tar_split import FramingReader
from lamella.layers.windows.folder.transport import Exported
from lamella.layers.windows.tar_source import EMPTY_DATA
from lamella.paths import LayerPath


class WindowsChanges:
    """What the folder ``layer`` states: in the order of its index, or where it has none, as Windows exports it.

    A folder without an index is a transport folder that Windows wrote (HCS ExportLayer): directories before what is in
    them, names by their bytes, and right after each directory the whiteouts in it. Its times are those of its own
    files. Content can be opened again until this is closed; the changes are given once for each iteration.

    Raises NotFound, FormatError, Unsupported (a base layer's folder that only Windows can read), Conflict.
    """

    def __init__(self, layer: WindowsLayer) -> None:
        self.layer = layer
        self._folder = Folder(layer.path)
        self._linked: tuple[LayerPath, Windows] | None = None
        self._framing: BinaryIO | None = None

    def lookup(self, path: LayerPath) -> Entry | None:
        """The attributes and times of the target of the link that was given last."""
        if self._linked is None or self._linked[0] != path:
            return None
        return Entry(path, Kind.FILE, None, 0, "", self._linked[1])

    def __iter__(self) -> Iterator[Change]:
        if self._folder.has(INDEX):
            return self._indexed()
        if self._folder.has(TOMBSTONES):
            return Exported(self._folder).changes()
        raise Unsupported(
            f"{os.fspath(self.layer.path)!r} has neither {INDEX} nor {TOMBSTONES}",
            hint="what Windows keeps of a base layer is in NTFS alone; read it there",
        )

    def tar(self) -> FramingReader | None:
        """The very tar that the folder was made of, to be read until this is closed; None where it is not kept.

        Raises FormatError, Unsupported, Conflict, Denied.
        """
        try:
            self._framing = os.fdopen(self._folder.open(FRAMING), "rb")
        except NotFound:
            return None
        return FramingReader(self._framing, self)

    def close(self) -> None:
        """Let go of the folder."""
        if self._framing is not None:
            self._framing.close()
        self._folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _indexed(self) -> Iterator[Change]:
        folder = self._folder
        with open_index(self.layer) as file:
            reader = IndexReader(file)
            base = reader.form == BASE
            held = STREAMS  # the file that has the streams of the file put last
            owner = ""
            for fact in reader:
                if isinstance(fact, PutFact):
                    entry = fact.entry
                    owner = path = entry.path
                    place = disk_path(path)
                    held = STREAMS
                    attributes = 0 if entry.windows is None else entry.windows.attributes
                    if in_transport(path, base=base):
                        folder_like = entry.kind is Kind.DIRECTORY or attributes & DIRECTORY
                        held = place + DIRECTORY_SUFFIX if folder_like else place
                    content: Content | None = None
                    if entry.kind is Kind.FILE:
                        if entry.size:
                            content = FolderContent(folder, place, entry.size, fact.at, fact.extents)
                        else:
                            content = EMPTY_DATA if fact.has_data else EMPTY
                    yield Put(entry, content)
                elif isinstance(fact, StreamFact):
                    if fact.path != owner:
                        raise FormatError(INDEX, 0, f"the stream {fact.name!r} does not follow its file {fact.path!r}")
                    yield Stream(fact.path, fact.name, FolderContent(folder, held, fact.size, fact.at))
                elif isinstance(fact, LinkFact):
                    self._linked = fact.target, fact.windows
                    yield Link(fact.path, fact.target)
                else:
                    yield Whiteout(fact.path)
