# SPDX-License-Identifier: Apache-2.0
"""A store: a directory that one or many processes keep images in, and the views of its namespaces.

::

    lamella.db                          what there is: `lamella.store.database`
    blobs/ALGORITHM/HEX                 files of blobs, never changed once they are there
    ingest/FOLDER/data                  blobs in the making
    snapshots/SNAPSHOTTER/NUMBER/       files of snapshots
    locks/                              of work that is to be done once
    trash/                              what is being removed
    reserve                             room that a full disk leaves to what frees space

The database says what there is. A file that no row names is left over from work that was broken off, and is swept.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from lamella.errors import Conflict, Denied, InvalidInput, NotFound, from_os
from lamella.store.clock import Clock
from lamella.store.metadata.labels import check_key, check_namespace

if TYPE_CHECKING:
    from lamella.store.content.store import Content
    from lamella.store.database import Database
    from lamella.store.metadata.images import Images
    from lamella.store.metadata.leases import Leases
    from lamella.store.metadata.namespaces import Namespaces
    from lamella.store.snapshots.snapshotter import Snapshots

ROOT: Final = "LAMELLA_ROOT"
"""The variable that says where the store is."""

DATABASE: Final = "lamella.db"
BLOBS: Final = "blobs"
INGEST: Final = "ingest"
SNAPSHOTS: Final = "snapshots"
LOCKS: Final = "locks"
TRASH: Final = "trash"

_FOLDERS: Final = (BLOBS, INGEST, SNAPSHOTS, LOCKS, TRASH)
_NO_MATTER: Final = frozenset({"lost+found"})
"""What may lie in a directory that is to become a store."""


def folders_with_files(root: Path) -> list[str]:
    """Return which of `BLOBS` and `SNAPSHOTS` hold a blob or a snapshot, with a row in the database or without one."""
    return [folder for folder in (BLOBS, SNAPSHOTS) if _has_grandchild(root / folder)]


def default_root() -> Path:
    """Where the store is unless somebody says otherwise: ``LAMELLA_ROOT``, or where the platform keeps such things."""
    named = os.environ.get(ROOT, "")
    if named:
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/lamella")
    import platformdirs

    return platformdirs.user_data_path("lamella", appauthor=False)


def fsync_directory(path: str | os.PathLike[str]) -> None:
    """Bring the names in a directory to the disk."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class Store:
    """An open store. Several processes and threads may have one open; close it, or use it as a context."""

    def __init__(
        self,
        root: Path,
        database: Database,
        clock: Callable[[], int],
        *,
        readonly: bool,
        isolated: bool,
        verity: str = "",
    ) -> None:
        self.root = root
        """Absolute, without links."""
        self.database = database
        self.clock = clock
        """Nanoseconds since the Unix epoch, each later than the last one (`lamella.store.clock.Clock`)."""
        self.readonly = readonly
        self.isolated = isolated
        """Whether a namespace must be sent the bytes of a blob that another one has."""
        self.verity = verity
        """What the images of the snapshotter ``erofs`` are sealed with, and must be; empty for nothing."""

    @classmethod
    def open(
        cls,
        root: str | os.PathLike[str],
        *,
        readonly: bool = False,
        create: bool = True,
        clock: Callable[[], int] | None = None,
        isolated: bool = False,
        verity: str = "",
    ) -> Self:
        """The store at ``root``, which is made where there is none, unless ``create`` is false.

        Raises NotFound, Denied (rights, somebody else's directory), Conflict (a directory with something else in it),
        Unsupported (written by a newer Lamella), Integrity, Exhausted.
        """
        from lamella.store.database import Database
        from lamella.store.disk_reserve import keep_reserve

        path = Path(os.path.realpath(root))
        try:
            _make_root(path, create=create and not readonly)
            if not readonly:
                # The database comes first: without it the directory would be somebody else's.
                database = Database(path / DATABASE)
                try:
                    _make_folders(path)
                    keep_reserve(path)
                except BaseException:
                    database.close()
                    raise
            else:
                database = Database(path / DATABASE, readonly=True)
        except OSError as problem:
            raise from_os(problem, f"open the store {str(path)!r}") from problem
        return cls(path, database, Clock(clock), readonly=readonly, isolated=isolated, verity=verity)

    def namespace(self, name: str, lease: str | None = None) -> Space:
        """The view of one namespace; what is made through it is put under ``lease``. Raises InvalidInput."""
        return Space(self, check_namespace(name), None if lease is None else check_key(lease, "the lease"))

    @cached_property
    def namespaces(self) -> Namespaces:
        """Which namespaces there are."""
        from lamella.store.metadata.namespaces import Namespaces

        return Namespaces(self.database)

    def close(self) -> None:
        """Close the database. May be called again."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Space:
    """A namespace of a store. What is made through it is held by its lease, where it has one."""

    def __init__(self, store: Store, name: str, lease: str | None) -> None:
        self.store = store
        self.name = name
        self.lease = lease
        self._snapshotters: dict[str, Snapshots] = {}

    @property
    def content(self) -> Content:
        """Its blobs. Made anew each time: the two would keep each other, and a server makes a view for each call."""
        from lamella.store.content.store import Content

        return Content(self)

    @cached_property
    def images(self) -> Images:
        """Its images."""
        from lamella.store.metadata.images import Images

        return Images(self.store.database, self.name, self.lease, self.store.clock)

    @cached_property
    def leases(self) -> Leases:
        """Its leases."""
        from lamella.store.metadata.leases import Leases

        return Leases(self.store.database, self.name, self.store.clock)

    def clock(self) -> int:
        """The time by the store's clock."""
        return self.store.clock()

    def under(self, lease: str) -> Self:
        """The view of the same namespace whose new objects ``lease`` holds. Raises InvalidInput."""
        return type(self)(self.store, self.name, check_key(lease, "the lease"))

    def snapshots(self, name: str) -> Snapshots:
        """Its snapshots that the snapshotter ``name`` keeps. Raises InvalidInput, Unsupported."""
        found = self._snapshotters.get(name)
        if found is None:
            from lamella.store.snapshots.kinds import SEALING, canonical, open_snapshotter

            verity = self.store.verity if canonical(name) == SEALING else ""
            found = self._snapshotters[name] = open_snapshotter(name, self, verity=verity)
        return found


def _has_grandchild(folder: Path) -> bool:
    try:
        with os.scandir(folder) as children:
            return any(not child.is_dir(follow_symlinks=False) or os.listdir(child.path) for child in children)
    except FileNotFoundError:
        return False


def _make_folders(path: Path) -> None:
    made = False
    for folder in _FOLDERS:
        try:
            (path / folder).mkdir(mode=0o700)
            made = True
        except FileExistsError:
            pass
    if made:
        fsync_directory(path)
        fsync_directory(path.parent)


def _make_root(path: Path, *, create: bool) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        if not create:
            raise NotFound(f"there is no store at {str(path)!r}") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.stat()
    if not path.is_dir():
        raise InvalidInput(f"the store's root {str(path)!r} is not a directory")
    if status.st_uid != os.geteuid():
        raise Denied(
            f"the store's root {str(path)!r} belongs to user {status.st_uid}, and this is user {os.geteuid()}",
            hint="run as that user, or name another root",
        )
    if status.st_mode & 0o022:
        raise Denied(
            f"the store's root {str(path)!r} can be written by others (mode {status.st_mode & 0o7777:04o})",
            hint=f"chmod 700 {path}, if what is in it can be trusted",
        )
    if not (path / DATABASE).exists():
        names = set(os.listdir(path)) - _NO_MATTER
        has_traces = any(name.startswith(DATABASE) for name in names)
        if has_traces or names.issuperset((BLOBS, INGEST, SNAPSHOTS)):  # an OCI layout has blobs/ too
            from lamella.store.database import refuse_lost

            refuse_lost(path / DATABASE)
        if not create:
            raise NotFound(f"there is no store at {str(path)!r}")
        if names and not has_traces:
            raise Conflict(
                f"{str(path)!r} is not a store, and there is something in it", hint="name an empty or a new directory"
            )
        if status.st_mode & 0o077:
            path.chmod(0o700)  # set-id files of images are nothing for other users to reach
