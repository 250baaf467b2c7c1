# SPDX-License-Identifier: Apache-2.0
"""What every source of changes promises."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lamella.changes.contracts import Source
from lamella.changes.dump import dump
from lamella.changes.model import Change, Content, Kind, Put
from lamella.errors import Conflict
from lamella.paths import parse_path
from lamella.testing.builders import directory, fifo, file, link, opaque, sparse, symlink, whiteout

SECOND = 1_000_000_000

SOME: tuple[Change, ...] = (
    directory("a", mode=0o750, mtime=5 * SECOND),
    file("a/b", b"text", mode=0o640, mtime=6 * SECOND, xattrs={"user.a": b"\0\xff"}),
    link("a/c", "a/b"),
    file("a/d", bytes(range(256)) * 5000, mtime=0),
    file("a/e", mtime=0),
    fifo("a/f", mtime=0),
    symlink("a/g", "../some where", mtime=0),
    file("a/é\udcff\n", b"odd", mtime=0),
    whiteout("a/gone"),
    opaque("h"),
    directory("h", mtime=0),
    file("h/i", sparse(2 << 20, [(1 << 20, b"x" * 4096)]), mtime=0),
    file("j", b"last", mtime=0),
)
"""Times of whole seconds, since many places keep no others."""


class SourceTests:
    """Bind with ``make``, which gives a source of changes as a place has them."""

    some: tuple[Change, ...] = SOME
    """What the sources are made from; override where a place holds no POSIX metadata. The last file holds "last"."""

    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Source:
        """A source; ``tmp_path`` is an empty directory for it."""
        raise NotImplementedError

    def expected(self) -> list[str]:
        """The canonical text of what a place makes of `some`; override where it has an order of its own."""
        return list(dump(self.some, inline=64, extents=False))

    def test_a_source_gives_what_its_place_was_given(self, tmp_path: Path) -> None:
        assert self.expected() == list(dump(self.make(tmp_path, self.some), inline=64, extents=False))

    def test_paths_are_canonical(self, tmp_path: Path) -> None:
        for change in self.make(tmp_path, self.some):
            path = change.entry.path if isinstance(change, Put) else change.path
            assert path == parse_path(path)

    def test_files_have_content_of_their_size_and_nothing_else_has(self, tmp_path: Path) -> None:
        for change in self.make(tmp_path, self.some):
            if isinstance(change, Put):
                assert (change.content is not None) == (change.entry.kind is Kind.FILE)
                if change.content is not None:
                    assert change.entry.size == change.content.size
                    extents = change.content.extents
                    data = change.content.size if extents is None else sum(length for _, length in extents)
                    assert data == sum(map(len, change.content.chunks()))

    def test_content_need_not_be_read(self, tmp_path: Path) -> None:
        paths = [change.entry.path for change in self.make(tmp_path, self.some) if isinstance(change, Put)]
        assert sorted(paths) == sorted(change.entry.path for change in self.some if isinstance(change, Put))

    def test_content_need_not_be_read_to_its_end(self, tmp_path: Path) -> None:
        last = b""
        for change in self.make(tmp_path, self.some):
            if isinstance(change, Put) and change.content is not None:
                for chunk in change.content.chunks():
                    last = bytes(chunk[:4])
                    break
        assert last == b"last"

    def test_content_that_is_read_too_late_or_twice_is_right_or_an_error(self, tmp_path: Path) -> None:
        puts = (change for change in self.make(tmp_path, self.some) if isinstance(change, Put))
        late = [(put.content, _read(put.content)) for put in puts if put.content is not None]
        assert len(late) == sum(isinstance(change, Put) and change.content is not None for change in self.some)
        for content, expected in late:
            try:
                again = _read(content)
            except Conflict:
                continue
            assert expected == again

    def test_content_that_was_passed_over_is_right_or_an_error(self, tmp_path: Path) -> None:
        passed = [change for change in self.make(tmp_path, self.some) if isinstance(change, Put)]
        expected = {change.entry.path: change.content for change in self.some if isinstance(change, Put)}
        for change in passed:
            if change.content is None:
                continue
            try:
                found = _read(change.content)
            except Conflict:
                continue
            original = expected[change.entry.path]
            assert original is not None
            assert _read(original).strip(b"\0") == found.strip(b"\0")


def _read(content: Content) -> bytes:
    return b"".join(map(bytes, content.chunks()))
