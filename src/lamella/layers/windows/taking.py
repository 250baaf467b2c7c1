# SPDX-License-Identifier: Apache-2.0
"""The tar of a Windows layer as the sink of a layer takes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lamella.layers.windows.framing import FramingWriter
from lamella.layers.windows.place import FRAMING
from lamella.layers.windows_tar import windows_tar_changes

if TYPE_CHECKING:
    from lamella.changes.model import Change
    from lamella.layers.windows.sink import WindowsSink
    from lamella.layers.windows_names import NameRules
    from lamella.streams.reading import BlobReader


def taken_tar(reader: BlobReader, sink: WindowsSink, rules: NameRules | None = None) -> Iterator[Change]:
    """The changes of the blob, for ``sink``, whose folder gets the framing of the tar beside what it makes of them.

    So the folder gives the tar back to the byte. See `windows_tar_changes` for ``rules`` and the errors.
    """
    file = sink.beside(FRAMING)
    if file is None:
        yield from windows_tar_changes(reader.next_buffer, end=reader.finish, rules=rules, linked=sink.link_facet)
        return
    with file:
        framing = FramingWriter(reader.next_buffer, file.write)
        changes = windows_tar_changes(framing.next_buffer, rules=rules, linked=sink.link_facet)
        yield from framing.noted(changes)
        framing.finish(reader.finish().diff_id)
