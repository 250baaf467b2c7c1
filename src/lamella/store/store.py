# SPDX-License-Identifier: Apache-2.0
"""An open store, and its namespaces. Several processes and threads may have one store open."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from msgspec.structs import replace

from lamella.errors import Conflict, Denied, InvalidInput, NotFound, from_os
from lamella.host.durability import sync_directory
from lamella.store.context import Clock, StoreContext
from lamella.store.disk_layout import BLOBS, DATABASE, INGEST, LOCKS, SNAPSHOTS, TRASH, keep_reserve, spend_reserve
from lamella.store.metadata.labels import check_key, check_namespace

if TYPE_CHECKING:
    from lamella.store.content.store import LocalContent
    from lamella.store.contract import Lease
    from lamella.store.database import Database
    from lamella.store.metadata.images import LocalImages
    from lamella.store.metadata.leases import LocalLeases
    from lamella.store.metadata.namespaces import LocalNamespaces
    from lamella.store.snapshots.snapshotter import LocalSnapshots

ROOT: Final = "LAMELLA_ROOT"
"""The environment variable that sets the store's directory."""

_FOLDERS: Final = (BLOBS, INGEST, SNAPSHOTS, LOCKS, TRASH)
_IGNORED: Final = frozenset({"lost+found"})
"""Names that an empty directory may contain."""


def default_root() -> Path:
    """Return ``LAMELLA_ROOT``, or else the platform's directory for such data."""
    named = os.environ.get(ROOT, "")
    if named:
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/lamella")
    import platformdirs

    return platformdirs.user_data_path("lamella", appauthor=False)


class Store:
    """An open store. Close it, or use it as a context manager."""

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
        """Absolute, without symbolic links."""
        self.database = database
        self.clock = clock
        """Nanoseconds since the Unix epoch, strictly increasing."""
        self.readonly = readonly
        self.isolated = isolated
        """Whether a namespace must receive the bytes of a blob that another namespace has."""
        self.verity = verity
        """The integrity check that snapshots of the snapshotter ``erofs`` require; empty for none."""

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
        frees: bool = False,
    ) -> Self:
        """Open the store at ``root``; make it if it is missing, unless ``create`` is false.

        A store that is opened to remove objects (``frees``) may use the disk reserve to open on a full disk.

        Raises NotFound, Denied (permissions, a directory of another user), Conflict (a directory that holds something
        else), Unsupported (written by a newer Lamella), Integrity, Exhausted.
        """
        from lamella.store.database import Database

        path = Path(os.path.realpath(root))
        try:
            _make_root(path, create=create and not readonly)
            if not readonly:
                if frees:
                    spend_reserve(path)
                # The database comes first: without one, the directory would not be recognised as a store.
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

    def namespace(self, name: str, lease: str | None = None) -> LocalNamespace:
        """Return a namespace whose new objects are added to ``lease``. Raises InvalidInput."""
        if lease is not None:
            check_key(lease, "the lease")
        context = StoreContext(
            self.root, self.database, check_namespace(name), lease, self.clock, self.readonly, self.isolated
        )
        return LocalNamespace(self, context)

    @cached_property
    def namespaces(self) -> LocalNamespaces:
        """The list of namespaces, and their labels."""
        from lamella.store.metadata.namespaces import LocalNamespaces

        return LocalNamespaces(self.database)

    def leases(self, prefix: str) -> list[tuple[str, Lease]]:
        """Return the leases of all namespaces whose ids start with ``prefix``, each after its namespace."""
        from lamella.store.metadata.leases import leases_by_prefix

        return leases_by_prefix(self.database, prefix)

    def snapshot_key(self, number: int) -> str | None:
        """Return the key or name of the snapshot whose directory is ``number``; None if there is none."""
        from lamella.store.snapshots.table import snapshot_key

        with self.database.read() as connection:
            return snapshot_key(connection, number)

    def close(self) -> None:
        """Close the database. May be called again."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class LocalNamespace:
    """A namespace of an open store (`lamella.store.contract.Namespace`)."""

    def __init__(self, store: Store, context: StoreContext) -> None:
        self.store = store
        self.context = context
        self.name = context.namespace
        self.lease = context.lease
        self.clock = context.clock
        self._snapshotters: dict[str, LocalSnapshots] = {}

    @cached_property
    def content(self) -> LocalContent:
        from lamella.store.content.store import LocalContent

        return LocalContent(self.context)

    @cached_property
    def images(self) -> LocalImages:
        from lamella.store.metadata.images import LocalImages

        return LocalImages(self.context)

    @cached_property
    def leases(self) -> LocalLeases:
        from lamella.store.metadata.leases import LocalLeases

        return LocalLeases(self.context)

    def under(self, lease: str) -> Self:
        return type(self)(self.store, replace(self.context, lease=check_key(lease, "the lease")))

    def at(self, time: int) -> Self:
        """Return the same namespace with a clock that always shows ``time``, in nanoseconds since the Unix epoch."""
        return type(self)(self.store, replace(self.context, clock=lambda: time))

    def snapshots(self, name: str) -> LocalSnapshots:
        found = self._snapshotters.get(name)
        if found is None:
            from lamella.store.snapshots.kinds import SNAPSHOTTERS, canonical
            from lamella.store.snapshots.snapshotter import open_snapshotter

            verity = self.store.verity if SNAPSHOTTERS[canonical(name)].verity else ""
            found = self._snapshotters[name] = open_snapshotter(name, self.context, verity=verity)
        return found


def _make_folders(path: Path) -> None:
    made = False
    for folder in _FOLDERS:
        try:
            (path / folder).mkdir(mode=0o700)
            made = True
        except FileExistsError:
            pass
    if made:
        sync_directory(path)
        sync_directory(path.parent)


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
            f"the store's root {str(path)!r} is writable by other users (mode {status.st_mode & 0o7777:04o})",
            hint=f"chmod 700 {path}, if you trust its content",
        )
    if not (path / DATABASE).exists():
        names = set(os.listdir(path)) - _IGNORED
        has_traces = any(name.startswith(DATABASE) for name in names)
        if has_traces or names.issuperset((BLOBS, INGEST, SNAPSHOTS)):  # an OCI layout has blobs/ too
            from lamella.store.database import refuse_lost

            refuse_lost(path / DATABASE)
        if not create:
            raise NotFound(f"there is no store at {str(path)!r}")
        if names and not has_traces:
            raise Conflict(
                f"{str(path)!r} is not a store, and the directory is not empty", hint="name an empty or a new directory"
            )
        if status.st_mode & 0o077:
            path.chmod(0o700)  # other users must not reach set-id files of images
