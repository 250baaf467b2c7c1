# SPDX-License-Identifier: Apache-2.0
"""Files that the host needs outside of an image, such as hives and boot files. They are removed if an import fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from lamella.changes.model import Buffer
from lamella.errors import AlreadyExists, NotFound, from_os
from lamella.formats.ntfs.names import usual_upcase
from lamella.layers.windows.hives import merge_deltas
from lamella.layers.windows.layout import HIVE_NAMES

HIVES: Final = {name: stem.upper() for name, stem in HIVE_NAMES.items()}
"""The name of a hive in `CONFIG` -> the prefix of its delta and its merged hive in ``Hives``."""

CONFIG: Final = "Files/Windows/System32/config"
LAYOUT: Final = b"vhd-with-hives\n"
"""The content of the file ``layout`` of a base layer."""

fold: Final = usual_upcase().fold
"""Folds a path; paths of the same file have equal results."""

_IGNORING_CASE: Final = frozenset(
    {fold(f"{CONFIG}/{name}") for name in HIVES} | {fold(f"Hives/{name}_Delta") for name in HIVES.values()}
)
_EXACTLY: Final = frozenset(
    {
        "UtilityVM/Files/Windows/System32/config/SYSTEM",
        "UtilityVM/Files/Windows/System32/config/SOFTWARE",
        "UtilityVM/Files/EFI/Microsoft/Boot/BCD",
        "UtilityVM/Files/EFI/Microsoft/Boot/bootmgfw.efi",
    }
)


_MERGED: Final = frozenset({fold(f"Hives/{stem}_Base") for stem in HIVES.values()})

LENGTHS: Final = frozenset(map(len, _IGNORING_CASE | _EXACTLY | _MERGED))
"""The lengths of all paths for which `is_special` is true, and of the merged hives."""


def is_special(path: str) -> bool:
    """Whether the host needs the file ``path`` outside of the image."""
    return len(path) in LENGTHS and (fold(path) in _IGNORING_CASE or path in _EXACTLY)


def is_derived(path: str) -> bool:
    """Whether an import may generate the file ``path``: everything in ``Hives``."""
    return path[:1] in ("H", "h") and fold(path[:6]) == "HIVES/"


def find(folder: Path, path: str) -> Path | None:
    """The regular file ``path`` in ``folder``, in any case. Follows no links."""
    at = folder
    for part in path.split("/"):
        exact = at / part
        if os.path.lexists(exact):
            at = exact
            continue
        try:
            names = [name for name in os.listdir(at) if name.upper() == part.upper()]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as problem:
            raise from_os(problem, f"list {os.fspath(at)!r}") from problem
        if not names:
            return None
        at /= names[0]
    return at if at.is_file() and not at.is_symlink() else None


def merge_hive(base: Path, delta: Path, result: Path, logs: Callable[[], Iterable[bytes]], *, dirty: bool) -> None:
    """Write to ``result`` the hive ``base`` with ``delta`` merged in; ``logs`` are read if ``base`` is dirty.

    Raises NotFound, FormatError, InvalidInput, Unsupported (a dirty hive without a log that applies to it).
    """
    from lamella.formats.regf.log import is_dirty, replay_logs

    try:
        below, above = base.read_bytes(), delta.read_bytes()
    except FileNotFoundError as problem:
        raise NotFound(f"the hive {problem.filename!r} does not exist") from None
    except OSError as problem:
        raise from_os(problem, f"read {problem.filename!r}") from problem
    if is_dirty(below):
        below = replay_logs(below, logs())
    raw = merge_deltas(below, [above], dirty=dirty)
    try:
        with result.open("xb") as file:
            file.write(raw)
    except OSError as problem:
        raise from_os(problem, f"write {os.fspath(result)!r}") from problem


_STEP: Final = 1 << 20


class HostFiles:
    """Files in a folder that contains no links: it is created here, or used by this layer alone."""

    def __init__(self, folder: Path, *, own: bool) -> None:
        """``own``: the folder is for these files alone; it must not exist yet, and is removed with them."""
        self.folder = folder
        self._own = own
        self._made: dict[Path, None] = {}
        """Created files and directories, in order."""

    def write(self, path: str, chunks: Iterable[Buffer]) -> int:
        """Create a file, or replace one created here; return its size. Raises AlreadyExists, Denied, Exhausted."""
        self.directory(path.rpartition("/")[0])
        target = self.folder / path
        done = 0
        try:
            if target in self._made:
                target.unlink(missing_ok=True)
            with target.open("xb", buffering=0) as file:
                self._made[target] = None
                for chunk in chunks:
                    view = memoryview(chunk)
                    done += len(view)
                    while view:
                        view = view[file.write(view) :]
        except OSError as problem:
            raise from_os(problem, f"write {os.fspath(target)!r}") from problem
        return done

    def directory(self, path: str) -> None:
        """Create the directory ``path`` and its missing parents."""
        todo = [self.folder / path]
        while todo[-1] != self.folder:
            todo.append(todo[-1].parent)
        for directory in reversed(todo):
            try:
                directory.mkdir(0o700 if directory == self.folder else 0o777)
                self._made[directory] = None
            except FileExistsError as problem:
                if not self._own or directory in self._made:
                    continue
                raise AlreadyExists(f"{os.fspath(directory)!r} exists", hint="it belongs to another image") from problem
            except OSError as problem:
                raise from_os(problem, f"make {os.fspath(directory)!r}") from problem

    def link(self, source: Path, path: str) -> None:
        """Create the hard link ``path`` to the file ``source``."""
        self.directory(path.rpartition("/")[0])
        target = self.folder / path
        try:
            if os.link in os.supports_follow_symlinks:
                os.link(source, target, follow_symlinks=False)
            else:
                os.link(source, target)
        except OSError as problem:
            raise from_os(problem, f"link {os.fspath(target)!r}") from problem
        self._made[target] = None

    def merge_hive(
        self, base: Path, delta: Path, path: str, logs: Callable[[], Iterable[bytes]], *, dirty: bool
    ) -> None:
        """Create the hive ``base`` with ``delta`` merged in. Raises what `merge_hive` raises, AlreadyExists."""
        self.directory(path.rpartition("/")[0])
        target = self.folder / path
        merge_hive(base, delta, target, logs, dirty=dirty)
        self._made[target] = None

    def find(self, path: str) -> Path | None:
        """The regular file ``path``, in any case."""
        return find(self.folder, path)

    def size(self, path: str) -> int:
        """The size of a file, in bytes. Raises NotFound."""
        try:
            return (self.folder / path).stat().st_size
        except OSError as problem:
            raise from_os(problem, f"read {os.fspath(self.folder / path)!r}") from problem

    def read(self, path: str) -> Iterator[bytes]:
        """The content of a file, in pieces. Raises NotFound."""
        try:
            with (self.folder / path).open("rb", buffering=0) as file:
                while piece := file.read(_STEP):
                    yield piece
        except OSError as problem:
            raise from_os(problem, f"read {os.fspath(self.folder / path)!r}") from problem

    def discard(self) -> None:
        """Remove everything that was created, and nothing else."""
        for path in reversed(self._made):
            try:
                if path.is_dir():
                    path.rmdir()
                else:
                    path.unlink(missing_ok=True)
            except OSError:
                pass  # a directory that another program has put files into
        self._made.clear()
