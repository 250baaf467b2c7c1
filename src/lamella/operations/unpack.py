# SPDX-License-Identifier: Apache-2.0
"""Unpacks an image: applies its layers, base first."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, cast

from msgspec import Struct
from msgspec.structs import replace

from lamella import host
from lamella.changes.apply import Counts, apply
from lamella.changes.job import Job
from lamella.changes.losses import Losses
from lamella.errors import AlreadyExists, InvalidInput, LamellaError, from_os
from lamella.host.durability import sync_directory, sync_file_system
from lamella.images.staging import Staging
from lamella.layers import kinds
from lamella.layers.directory.dirfd_cache import remove_path
from lamella.layers.kinds import UnpackForm
from lamella.operations.atomic_file import unfinished_prefix
from lamella.operations.layers.apply import READER_MIN_SIZE, Applied, ApplyOptions, apply_image_layer
from lamella.operations.layers.read import checked_reader

if TYPE_CHECKING:
    from lamella.images.resolve import ImageLayer, PlatformImage
    from lamella.layers.policy import Policy
    from lamella.layers.process_reader import ReaderProcess
    from lamella.layers.windows.names import NameRules

_DEFAULT: Final = "directory"
MANIFEST: Final = "manifest.json"
CONFIG: Final = "config.json"
"""The documents of an image beside its layers; see `LayerKind.keeps_documents`."""


class UnpackOptions(Struct, frozen=True):
    """How to unpack an image."""

    kind: str | None = None
    """A name of `lamella.layers.kinds`, see `unpack`; None for a plain directory."""
    policy: Policy | None = None
    """Owners and devices, for directories."""
    merge: bool = False
    """Unpack over an existing directory."""
    rules: NameRules | None = None
    """Unusual names that folders and composite images may have."""
    dirty: bool = False
    """Merge registry hives without their last changes if these are in no transaction log."""
    durable: bool = False
    """Flush the file system (syncfs) before a directory gets its name. A single EROFS image is always durable, as other
    outputs are (`durable_outputs`)."""
    reader_process: bool = False
    """Read the layers of a large image on this machine in a fork of this process, which saves a tenth to a fifth of the
    time. This process must have no other threads, those of libraries included."""


DEFAULT_OPTIONS: Final = UnpackOptions()


class Unpacked(Struct, frozen=True):
    """An image that was unpacked."""

    directory: Path
    layers: tuple[Applied, ...]
    """Base first."""
    losses: Losses


def unpack(
    image: PlatformImage, directory: Path, options: UnpackOptions = DEFAULT_OPTIONS, *, job: Job | None = None
) -> Unpacked:
    """Unpack the layers of ``image`` into ``directory``.

    The work is done in a hidden directory beside it, which gets the name once everything has been checked; a failure
    leaves nothing. With ``options.merge`` the layers are applied to ``directory`` itself, over its content, and a
    failure leaves what was written.

    An image for Linux becomes a plain tree, or with the kind ``"erofs"`` a single EROFS image called ``directory``,
    whose files have the owners and devices of the layers. An image for Windows needs a kind: ``"directory"`` for drive
    C of its containers, as a plain tree; ``"windows"`` for a folder of each layer, named by its number from 0 at the
    base; ``"cim"`` for a composite image of each, ``0.cim`` and so on, with the documents of the image beside them;
    ``"blockcim"``, only on Windows, for a block image of each, ``0/layer.vhd/layer.cim`` and so on, with the documents.

    Raises AlreadyExists (the directory, without merge), InvalidInput (the kind does not fit the image); else as
    `apply_blob`.
    """
    job = job or Job()
    kind = options.kind
    _check_kind(image, kind)
    form = kinds.LAYER_KINDS[kind or _DEFAULT].unpack
    if options.merge and form is not UnpackForm.TREE:
        raise InvalidInput("only a plain directory can be merged into an existing one")
    if form is UnpackForm.IMAGE and options.policy is not None:
        raise InvalidInput("owners and devices are chosen for directories; an image file has those of the layers")
    if options.merge:
        try:
            layers = _apply_layers(image, directory, options, job)
            if options.durable:
                sync_file_system(directory)
            return Unpacked(directory, layers, job.losses)
        except BaseException as error:
            error.add_note(f"what was unpacked so far is left in {os.fspath(directory)!r}")
            raise
    if os.path.lexists(directory):
        hint = "choose another name"
        if form is UnpackForm.TREE and os.path.isdir(directory):
            hint = "choose a new directory, or give --merge to unpack over this one"
        raise AlreadyExists(f"{os.fspath(directory)!r} exists", hint=hint)
    if form is UnpackForm.IMAGE:
        return Unpacked(directory, _apply_layers(image, directory, options, job), job.losses)
    with _UnfinishedDirectory(directory) as target:
        layers = _apply_layers(image, target.path, options, job)
        target.commit(durable=options.durable)
        return Unpacked(directory, layers, job.losses)


def _apply_layers(image: PlatformImage, place: Path, options: UnpackOptions, job: Job) -> tuple[Applied, ...]:
    layers = image.layers
    kind = options.kind or _DEFAULT
    row = kinds.LAYER_KINDS[kind]
    windows_files = image.config.os == "windows" and not row.windows
    applied: Iterator[Applied]
    with ExitStack() as stack:
        worker = None
        if options.reader_process and row.other_process and not windows_files:
            # Before anything shows progress, which may take a thread.
            worker = _start_reader(layers, stack, row, options.rules)
        stack.enter_context(job.step("unpack", sum(layer.descriptor.size for layer in layers)))
        if windows_files:
            from lamella.operations.windows.layers import apply_drive

            applied = apply_drive(layers, place, options.policy, job)
        elif row.unpack is UnpackForm.IMAGE:
            applied = apply_to_image(kind, layers, place, job)
        elif row.unpack is UnpackForm.TREE:
            applied = _apply_to_tree(layers, place, ApplyOptions(kind, policy=options.policy), job, worker)
        else:
            if row.keeps_documents:
                kinds.required_directory(kind, place / row.layer_place.format(0))  # fails early on a wrong host
                _write_documents(image, place)
            rules = options.rules if row.windows else None
            applied = _apply_to_places(layers, place, ApplyOptions(kind, rules=rules, dirty=options.dirty), job, worker)
        return tuple(applied)


def apply_to_image(kind: str, layers: Sequence[ImageLayer], path: Path, job: Job) -> Iterator[Applied]:
    """Apply ``layers`` to one new image file at ``path``, which appears once the last layer has been checked.

    Files that upper layers hide still take space in the image.
    """
    sink = cast("kinds.SeveralLayersSink", kinds.sink(kind, path, options=kinds.SinkOptions(losses=job.losses)))
    try:
        for number, layer in enumerate(layers, 1):
            counts = Counts()
            sink.more = number < len(layers)
            with checked_reader(layer, job) as reader:
                apply(kinds.tar_changes(kind, reader, sink), sink, cancel=job.cancel, counts=counts)
                yield Applied(reader.finish(), counts.changes, job.losses)
        if not layers:
            sink.commit()
    except BaseException:
        sink.abort()
        raise


def _apply_to_tree(
    layers: Sequence[ImageLayer], place: Path, options: ApplyOptions, job: Job, worker: ReaderProcess | None
) -> Iterator[Applied]:
    """Apply all layers to one directory."""
    for layer in layers:
        yield apply_image_layer(layer, place, options, job, worker)


def _apply_to_places(
    layers: Sequence[ImageLayer], directory: Path, options: ApplyOptions, job: Job, worker: ReaderProcess | None
) -> Iterator[Applied]:
    """Apply each layer to its own place in ``directory``, over the places of the layers below."""
    row = kinds.LAYER_KINDS[options.kind]
    parents: list[Path] = []
    for number, layer in enumerate(layers):
        place = directory / row.layer_place.format(number)
        above = replace(options, parents=tuple(parents) if row.has_parents else ())
        yield apply_image_layer(layer, place, above, job, worker)
        parents.insert(0, place)


def _write_documents(image: PlatformImage, directory: Path) -> None:
    for name, descriptor in ((MANIFEST, image.descriptor), (CONFIG, image.manifest.config)):
        try:
            (directory / name).write_bytes(image.reader.read_document(descriptor))
        except OSError as error:
            raise from_os(error, f"write {os.fspath(directory / name)!r}") from error


def _start_reader(
    layers: Sequence[ImageLayer], stack: ExitStack, row: kinds.LayerKind, rules: NameRules | None
) -> ReaderProcess | None:
    """Start a worker that reads the layers; None if it cannot start, or if they are small or not plain files."""
    size = sum(layer.descriptor.size for layer in layers)
    if size < READER_MIN_SIZE or not all(layer.reader.plain_files for layer in layers):
        return None
    from lamella.layers.process_reader import Blob, start_reader

    windows = None
    if row.windows:
        from lamella.layers.windows.names import NameRules

        windows = rules or NameRules()

    def blobs(opened: ExitStack) -> list[Blob]:
        return [
            Blob(
                opened.enter_context(layer.open()),
                layer.compression,
                layer.descriptor.digest,
                layer.descriptor.size,
                layer.diff_id,
                windows=windows,
            )
            for layer in layers
        ]

    return start_reader(stack, blobs)


def _check_kind(image: PlatformImage, kind: str | None) -> None:
    built_for = image.config.os
    if kind is None and built_for == "windows":
        raise InvalidInput(
            "the image is for Windows, and can be unpacked in several ways",
            hint="--as directory gives drive C as a plain tree, --as windows or cim gives each layer by itself",
        )
    row = kinds.LAYER_KINDS[kind or _DEFAULT]
    if row.unpack is None:
        takes = ", ".join(kinds.LAYER_KINDS.select(lambda row: row.unpack))
        raise InvalidInput(f"images are not unpacked as {row.summary}; choose from {takes}")
    if row.windows and built_for != "windows":
        raise InvalidInput(f"the image is for {built_for}, not for Windows")
    if not row.windows and kind not in (None, _DEFAULT) and built_for == "windows":
        raise InvalidInput(f"the image is for Windows, and {row.summary} does not hold the metadata of its files")


class _UnfinishedDirectory:
    """A directory that gets its name when it is committed, and is removed otherwise.

    Until then it is in a hidden directory of mode 0700: other users neither see half an image nor run its set-id files,
    whatever mode the image gives its root. The next unpack to the same name removes that of a killed process.
    """

    def __init__(self, wanted: Path) -> None:
        self._wanted = wanted
        self._parent = wanted.absolute().parent
        self._committed = False

    def __enter__(self) -> Self:
        self._staging = Staging(os.fspath(self._parent), prefix=unfinished_prefix(self._wanted))
        self._hidden = Path(self._staging.path)
        self.path = self._hidden / "root"
        try:
            os.mkdir(self.path)
            # The root of an image that has no entry for it, whatever the umask and the time.
            os.chmod(self.path, 0o755)  # noqa: S103
            os.utime(self.path, ns=(0, 0))
        except BaseException as error:
            self.__exit__(None, error, None)
            if isinstance(error, OSError):
                raise from_os(error, f"make a directory in {os.fspath(self._hidden)!r}") from error
            raise
        return self

    def commit(self, *, durable: bool) -> None:
        """Give the directory its name. Raises AlreadyExists if something has taken the name since."""
        try:
            if durable:
                sync_file_system(self.path)
            mode = stat.S_IMODE(os.lstat(self.path).st_mode)
            if os.geteuid() and not mode & stat.S_IWUSR:
                # Renaming a directory writes its `..`, which needs write permission on it.
                os.chmod(self.path, mode | stat.S_IWUSR)
                host.rename_exclusive(self.path, self._wanted)
                os.chmod(self._wanted, mode)
            else:
                host.rename_exclusive(self.path, self._wanted)
            if durable:
                sync_directory(self._parent)
        except OSError as error:
            raise from_os(error, f"name the unpacked directory {os.fspath(self._wanted)!r}") from error
        self._committed = True
        self._staging.remove()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._committed:
            return
        try:
            remove_path(self._hidden)
        except OSError as failure:
            note = f"the unfinished directory {os.fspath(self._hidden)!r} is left: {failure}"
            if isinstance(error, LamellaError) and error.hint is None:
                error.hint = note
            elif error is not None:
                error.add_note(note)
        finally:
            self._staging.remove()
