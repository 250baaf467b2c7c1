# SPDX-License-Identifier: Apache-2.0
"""CIMs in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from lamella.errors import NotFound
from lamella.formats.cim.reader import CimReader
from lamella.formats.cim.structures import RegionType
from lamella.formats.cim.writer import CimWriter

GUIDS = [UUID(int=number) for number in range(1, 100)]


class Memory:
    """A region file in memory, as it is written and read."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def swap(self, buffer: memoryview, filled: int) -> memoryview:
        self.data += buffer[:filled]
        return memoryview(bytearray(b"?" * len(buffer)))

    def truncate(self, size: int) -> None:
        del self.data[size:]


@dataclass
class Files:
    """The files of one directory of CIMs."""

    regions: dict[tuple[UUID, int], Memory] = field(default_factory=dict)
    names: dict[str, bytes] = field(default_factory=dict)

    def region(self, guid: UUID, number: int) -> Memory:
        try:
            return self.regions[guid, number]
        except KeyError:
            raise NotFound(f"region_{guid}_{number}") from None

    def read(self, name: str) -> CimReader:
        return CimReader(self.names[name], self.region)

    def write(self, name: str, fill: Callable[[CimWriter], object], parent: str | None = None) -> CimReader:
        guid = GUIDS[len(self.names)]
        made: dict[RegionType, Memory] = {}
        writer = CimWriter(
            lambda kind: made.setdefault(kind, Memory()), parent=self.read(parent) if parent is not None else None
        )
        fill(writer)
        root = writer.write_tables()
        self.names[name] = writer.file(root, guid)
        self.regions |= {(guid, kind): region for kind, region in made.items()}
        return self.read(name)


def listed(image: CimReader, path: str = "", file: int | None = None) -> dict[str, int]:
    """Every path below a directory with its file id."""
    record = image.record(image.root if file is None else file)
    found: dict[str, int] = {}
    for name, child in image.links(record):
        below = f"{path}/{name}" if path else name
        found[below] = child
        if image.record(child).is_directory:
            found |= listed(image, below, child)
    return found


def content(image: CimReader, file: int) -> bytes:
    return b"".join(image.read(image.record(file).data))
