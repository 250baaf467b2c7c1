# SPDX-License-Identifier: Apache-2.0
"""Contract suite of sinks for values at the limits of formats and file systems."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from lamella.changes.apply import apply
from lamella.changes.contracts import Source, Tree
from lamella.changes.model import EMPTY, Change, Link, Put, Windows
from lamella.changes.tree import fold
from lamella.errors import LamellaError
from lamella.formats.ntfs.basic_information import DERIVED, NORMAL
from lamella.testing.builders import device, directory, fifo, file, link, sparse, symlink
from lamella.testing.reading import closed_after
from lamella.testing.sink_suite import Place
from lamella.times import SECOND

NUMBERS: Final = tuple(number for bits in (16, 31, 32, 34, 53, 63) for number in ((1 << bits) - 1, 1 << bits))[:-1]
"""Limits of the fields of formats and system calls; sources yield no number above 2**63 - 1."""


def _layers() -> Iterator[Sequence[Change]]:
    for length in (255, 256, 5000):
        name = "n" * length
        yield from ([file(name)], [directory(name)], [symlink(name, "a")], [fifo(name)])
        yield [file(f"{name}/a")]
        yield [file("a"), link(name, "a")]
    yield [file("\u00e9" * 128)]
    for length in (4095, 4096, 9000):
        yield [symlink("a", "t" * length)]
    for number in NUMBERS:
        yield from ([file("a", uid=number)], [directory("a", gid=number)], [symlink("a", "b", uid=number)])
        yield from ([device("a", 1, number)], [device("a", number, 1, block=True)], [fifo("a", gid=number)])
        for time in (number, -number, number * SECOND, -number * SECOND):
            yield from ([file("a", mtime=time)], [directory("a", mtime=time)])
            yield from ([symlink("a", "b", mtime=time)], [fifo("a", mtime=time)], [directory("", mtime=time)])
    for minor in (255, 256, (1 << 20) - 1, 1 << 20):
        yield from ([device("a", 4095, minor)], [device("a", 4096, minor, block=True)])
    for length in (0, 65535, 65536, 1 << 21):
        xattrs = {"user.one": bytes(length)}
        yield from ([file("a", xattrs=xattrs)], [directory("a", xattrs=xattrs)])
    for length in (250, 251, 255, 256, 5000):
        yield [file("a", xattrs={"user." + "n" * length: b"1"})]
    yield [file("a", xattrs={f"user.{number}": bytes(4000) for number in range(100)})]
    yield [file("a"), *(link(f"l{number}", "a") for number in range(200))]


def windows_layers() -> Iterator[Sequence[Change]]:
    """The same for files with Windows metadata. Times are whole ticks of 100 nanoseconds."""
    for name in ("n" * 255, "n" * 256, "n" * 5000, "\U0001f600" * 127, "\U0001f600" * 128):
        yield [_windows_file(f"Files/{name}")]
        yield [_windows_file(f"Files/{name}/a")]
    for number in NUMBERS:
        for time in (number * 100, -number * 100, number * SECOND, -number * SECOND):
            yield [_windows_file("Files/a", Windows(0x20, time, 0, 0, 0, _DESCRIPTOR))]
            yield [_windows_file("Files/a", Windows(0x20, 0, time, 0, 0, _DESCRIPTOR))]
            yield [_windows_file("Files/a", Windows(0x20, 0, 0, time, 0, _DESCRIPTOR))]
            yield [_windows_file("Files/a", Windows(0x20, 0, 0, 0, time, _DESCRIPTOR))]
    for length in (0xFFFF, 1 << 16, 1 << 20):
        yield [_windows_file("Files/a", Windows(0x20, 0, 0, 0, 0, _DESCRIPTOR + bytes(length - len(_DESCRIPTOR))))]
        yield [_windows_file("Files/a", Windows(0x20, 0, 0, 0, 0, _DESCRIPTOR, {"A": bytes(length)}))]
    for length in (254, 255, 256):
        yield [_windows_file("Files/a", Windows(0x20, 0, 0, 0, 0, _DESCRIPTOR, {"A" * length: b"1"}))]
    many = {f"A{number}": bytes(4000) for number in range(40)}
    yield [_windows_file("Files/a", Windows(0x20, 0, 0, 0, 0, _DESCRIPTOR, many))]
    for attribute in (1 << bit for bit in range(32)):
        # The others follow from the kind and the content of the file, or mean that it has no attribute.
        if not attribute & (DERIVED | NORMAL):
            yield [_windows_file("Files/a", Windows(attribute, 0, 0, 0, 0, _DESCRIPTOR))]


_DESCRIPTOR: Final = b"\1\0\4\x80" + bytes(16)
_PLAIN: Final = Windows(0x20, 0, 0, 0, 0, _DESCRIPTOR)


def _windows_file(path: str, windows: Windows = _PLAIN) -> Put:
    put = file(path, windows=windows)
    put.entry.posix = None
    return put


class LimitTests:
    """Contract: a sink keeps a value, reports its loss, or refuses the layer with a `LamellaError`.

    A binding defines ``make``. ``sizes`` are the sizes of files that are one hole.
    """

    layers: Sequence[Sequence[Change]] = tuple(_layers())
    sizes: Sequence[int] = NUMBERS

    def make(self, tmp_path: Path) -> Place:
        """Return an empty place; ``tmp_path`` is an empty directory for it."""
        raise NotImplementedError

    def test_values_that_a_place_cannot_store_are_refused_or_reported(self, tmp_path: Path) -> None:
        silent: list[str] = []
        layers = [*self.layers, *([file("a", sparse(size))] for size in self.sizes)]
        for number, layer in enumerate(layers):
            where = tmp_path / str(number)
            where.mkdir()
            place = self.make(where)
            try:
                apply(layer, place.sink())
            except LamellaError:
                continue
            lost = {loss.path for loss in place.losses}
            with closed_after(place.tree()) as tree:
                silent += _differences(tree, layer, lost)
        assert silent == []


def without_contents(changes: Source) -> Tree:
    """The tree of ``changes``, whose files are empty: for sources whose contents can be read only once."""
    return fold(replace(change, content=EMPTY) if isinstance(change, Put) else change for change in changes)


def _differences(tree: Tree, layer: Sequence[Change], lost: set[str]) -> Iterator[str]:
    """Yield the differences between ``tree`` and ``layer`` that no loss reports."""
    for change in layer:
        path = change.entry.path if isinstance(change, Put) else change.path
        found = tree.lookup(path)
        if path in lost or (isinstance(change, Link) and found is not None):
            continue
        if not isinstance(change, Put) or found != change.entry:
            yield f"{str(change)[:200]} became {str(found)[:200]}"
