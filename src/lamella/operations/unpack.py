# SPDX-License-Identifier: Apache-2.0
"""An image onto a directory: all of its layers, the base first."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, cast

from msgspec import Struct

from lamella import host
from lamella.changes.apply import Counts, apply
from lamella.changes.job import Job
from lamella.changes.losses import Losses
from lamella.errors import AlreadyExists, InvalidInput, LamellaError, from_os
from lamella.layers import kinds
from lamella.layers.directory.dirfd_cache import remove_path
from lamella.layers.kinds import UnpackForm
from lamella.operations.atomic_file import unfinished
from lamella.operations.layers.apply import Applied
from lamella.operations.layers.read import checked_reader

if TYPE_CHECKING:
    from lamella.images.resolve import ImageLayer, PlatformImage
    from lamella.layers.policy import Policy
    from lamella.layers.process_reader import ReaderProcess
    from lamella.layers.windows.names import NameRules
    from lamella.progress import Cancellation, Progress

_DEFAULT: Final = "directory"
MANIFEST: Final = "manifest.json"
CONFIG: Final = "config.json"
"""The documents of an image beside its layers; see `LayerKind.keeps_documents`."""


def image_applied(
    kind: str,
    layers: Sequence[ImageLayer],
    path: Path,
    losses: Losses,
    progress: Progress | None,
    cancel: Cancellation | None,
) -> Iterator[Applied]:
    """Apply ``layers`` to one new image file at ``path``, which appears once the last layer has been checked.

    Files that upper layers hide still take space in the image.
    """
    sink = cast("kinds.SeveralLayersSink", kinds.sink(kind, path, losses=losses))
    try:
        for number, layer in enumerate(layers, 1):
            counts = Counts()
            sink.more = number < len(layers)
            with checked_reader(layer, Job(progress=progress, cancel=cancel)) as reader:
                apply(kinds.tar_changes(kind, reader, sink), sink, cancel=cancel, counts=counts)
                yield Applied(reader.finish(), counts.changes, losses)
        if not layers:
            sink.commit()
    except BaseException:
        sink.abort()
        raise


class Unpacked(Struct, frozen=True):
    """What came of an image."""

    directory: Path
    layers: tuple[Applied, ...]
    """The base first."""
    losses: Losses


def unpack(
    image: PlatformImage,
    directory: Path,
    *,
    policy: Policy | None = None,
    merge: bool = False,
    kind: str | None = None,
    losses: Losses | None = None,
    rules: NameRules | None = None,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
    apart: bool = False,
) -> Unpacked:
    """Unpack the layers of ``image`` into ``directory``.

    The work is done in a hidden directory beside it, which gets the name when everything has been checked; a failure
    leaves nothing. With ``merge`` the layers go straight into ``directory``, over what is in it, and what was written
    before a failure stays.

    Of a Windows image ``kind`` says what is wanted: ``"directory"`` for what its containers have as drive C, as a plain
    tree; ``"windows"`` for a folder of each layer, named by its number from 0 at the base; ``"cim"`` for a composite
    image of each, ``0.cim`` and so on, with the image's documents beside them; ``"blockcim"``, on Windows alone, for a
    block image of each, ``0/layer.vhd/layer.cim`` and so on, with the documents too. Others become a plain tree, or
    with ``"erofs"`` a single EROFS image called ``directory``, whose files have the owners and devices that layers say.
    ``rules`` are for the names in folders and composite images.

    With ``apart`` the layers of a large image on this machine are read by another process, a fork of this one, which is
    a tenth to a fifth faster: for callers that know of no other threads, those of libraries among them. A Windows
    image's are for composite images only.

    Raises AlreadyExists where the directory is there and ``merge`` is false, InvalidInput where ``kind`` does not
    fit the image; else as `apply_blob`.
    """
    losses = losses if losses is not None else Losses()
    _check_kind(image, kind)
    form = kinds.LAYER_KINDS[kind or _DEFAULT].unpack
    if merge and form is not UnpackForm.TREE:
        raise InvalidInput("only a plain directory can be merged into an existing one")
    if form is UnpackForm.IMAGE and policy is not None:
        raise InvalidInput("owners and devices are chosen for directories; an image file has those of the layers")
    if merge:
        try:
            return _unpack(image, directory, directory, policy, kind, losses, rules, progress, cancel, apart)
        except BaseException as error:
            error.add_note(f"what was unpacked so far is left in {os.fspath(directory)!r}")
            raise
    if os.path.lexists(directory):
        hint = "choose another name"
        if form is UnpackForm.TREE and os.path.isdir(directory):
            hint = "choose a new directory, or give --merge to unpack over this one"
        raise AlreadyExists(f"{os.fspath(directory)!r} exists", hint=hint)
    if form is UnpackForm.IMAGE:
        return _unpack(image, directory, directory, policy, kind, losses, rules, progress, cancel, apart)
    with _Aside(directory) as aside:
        unpacked = _unpack(image, aside.path, directory, policy, kind, losses, rules, progress, cancel, apart)
        aside.commit()
        return unpacked


def _unpack(
    image: PlatformImage,
    where: Path,
    directory: Path,
    policy: Policy | None,
    kind: str | None,
    losses: Losses,
    rules: NameRules | None,
    progress: Progress | None,
    cancel: Cancellation | None,
    apart: bool,
) -> Unpacked:
    layers = image.layers
    kind = kind or _DEFAULT
    row = kinds.LAYER_KINDS[kind]
    windows_files = image.config.os == "windows" and not row.windows
    applied: Iterator[Applied]
    with ExitStack() as stack:
        # Before anything shows progress, which may take a thread.
        other = _start_reader(layers, stack, row, rules) if apart and row.other_process and not windows_files else None
        if progress is not None:
            progress.start("unpack", sum(layer.descriptor.size for layer in layers))
            stack.callback(progress.finish)
        if windows_files:
            from lamella.operations.windows.unpack import files_applied

            applied = files_applied(layers, where, policy, losses, progress, cancel)
        elif row.unpack is UnpackForm.TREE:
            applied = _tree_applied(kind, layers, other, where, policy, losses, progress, cancel)
        elif row.unpack is UnpackForm.IMAGE:
            applied = image_applied(kind, layers, where, losses, progress, cancel)
        else:
            applied = _layers_applied(kind, image, where, losses, rules, progress, cancel, other)
        return Unpacked(directory, tuple(applied), losses)


def _tree_applied(
    kind: str,
    layers: Sequence[ImageLayer],
    other: ReaderProcess | None,
    where: Path,
    policy: Policy | None,
    losses: Losses,
    progress: Progress | None,
    cancel: Cancellation | None,
) -> Iterator[Applied]:
    # Loaded while another process, if there is one, begins to read.
    from lamella.operations.layers.apply import apply_image_layer

    for layer in layers:
        yield apply_image_layer(
            layer, where, other=other, kind=kind, policy=policy, losses=losses, progress=progress, cancel=cancel
        )


def _layers_applied(
    kind: str,
    image: PlatformImage,
    directory: Path,
    losses: Losses,
    rules: NameRules | None,
    progress: Progress | None,
    cancel: Cancellation | None,
    other: ReaderProcess | None,
) -> Iterator[Applied]:
    """Apply each layer of ``image`` to a place of its own in ``directory``, over the places before it.

    If the row of the kind says so, the manifest and the config of the image are written beside them.
    """
    from lamella.operations.layers.apply import apply_image_layer

    row = kinds.LAYER_KINDS[kind]
    kinds.required_directory(kind, directory / row.layer_place.format(0))  # fails early if this host cannot write it
    if row.keeps_documents:
        for name, descriptor in ((MANIFEST, image.descriptor), (CONFIG, image.manifest.config)):
            try:
                (directory / name).write_bytes(image.reader.read_document(descriptor))
            except OSError as problem:
                raise from_os(problem, f"write {os.fspath(directory / name)!r}") from problem
    parents: list[Path] = []
    for number, layer in enumerate(image.layers):
        place = directory / row.layer_place.format(number)
        yield apply_image_layer(
            layer,
            place,
            other=other,
            kind=kind,
            parents=parents if row.has_parents else (),
            losses=losses,
            rules=rules if row.windows else None,
            progress=progress,
            cancel=cancel,
        )
        parents.insert(0, place)


def _start_reader(
    layers: Sequence[ImageLayer], stack: ExitStack, row: kinds.LayerKind, rules: NameRules | None
) -> ReaderProcess | None:
    """Another process that reads the layers, those of plain files; see `started`."""
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

    if not all(layer.reader.plain_files for layer in layers):
        return None
    return start_reader(stack, sum(layer.descriptor.size for layer in layers), blobs)


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


class _Aside:
    """A directory that gets the wanted name when it is committed, and is removed when it is not.

    Until then it lies in a hidden directory that nobody else may enter: neither is half an image to be seen, nor are
    its set-id files of use to anybody, whatever mode the image gives its root.
    """

    def __init__(self, wanted: Path) -> None:
        self._wanted = wanted
        self._parent = wanted.absolute().parent
        self._hidden = unfinished(wanted.absolute())
        self.path = self._hidden / "root"
        self._committed = False

    def __enter__(self) -> Self:
        try:
            os.mkdir(self._hidden, 0o700)
        except OSError as error:
            raise from_os(error, f"make a directory in {os.fspath(self._parent)!r}") from error
        try:
            os.mkdir(self.path)
            # An image without an entry for its root has this one, whatever our umask and the time of day.
            os.chmod(self.path, 0o755)  # noqa: S103
            os.utime(self.path, ns=(0, 0))
        except BaseException as error:
            self.__exit__(None, error, None)
            if isinstance(error, OSError):
                raise from_os(error, f"make a directory in {os.fspath(self._hidden)!r}") from error
            raise
        return self

    def commit(self) -> None:
        """Give the directory its name. Raises AlreadyExists where that has come to be taken."""
        try:
            mode = stat.S_IMODE(os.lstat(self.path).st_mode)
            if os.geteuid() and not mode & stat.S_IWUSR:
                # The system writes to a directory that changes its parent, and asks whether we may.
                os.chmod(self.path, mode | stat.S_IWUSR)
                host.rename_exclusive(self.path, self._wanted)
                os.chmod(self._wanted, mode)
            else:
                host.rename_exclusive(self.path, self._wanted)
        except OSError as error:
            raise from_os(error, f"name the unpacked directory {os.fspath(self._wanted)!r}") from error
        self._committed = True
        try:
            os.rmdir(self._hidden)
        except OSError:
            pass  # empty and harmless; what was asked for is done

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
