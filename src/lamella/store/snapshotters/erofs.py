# SPDX-License-Identifier: Apache-2.0
"""Snapshots whose committed layers are EROFS images, made by ``mkfs.erofs`` and laid over each other by the kernel.

An active snapshot is an upper directory as `overlay` has it; committing makes ``layer.erofs`` of it, with whiteouts
and opaque directories in the overlay's form. The same tree comes to the same image. Images are mounted at ``mnt`` of
their places when something lies on them, and let go when the snapshot is removed. That needs the rights to mount.
Where it is asked for, the kernel checks them as they are read (`verity`).

An image is not made from the layer's tar itself: mkfs.erofs knows neither what lies below nor the rules of
`lamella.changes`, so that the result could be another one than all else here shows.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lamella.errors import Exhausted, LamellaError, Unsupported, from_os
from lamella.layers.erofs.files import ErofsLayer
from lamella.layers.erofs.tree import ErofsTree
from lamella.layers.stack import LayerStack
from lamella.store.contract import ErofsMount, Mount, SnapshotKind, Usage
from lamella.store.mounting import mount_all, unmount
from lamella.store.snapshotters.copying import measure
from lamella.store.snapshotters.forms import OpenTree
from lamella.store.snapshotters.overlay import UPPER, WORK, OverlayForm
from lamella.store.snapshotters.places import locked
from lamella.store.snapshotters.verity import check_seal, checked, hash_files, parse_verity, release, seal, unseal

IMAGE: Final = "layer.erofs"
SHOWN: Final = "mnt"

_PROGRAM: Final = "mkfs.erofs"
_HINT: Final = "install erofs-utils, 1.8 or newer"
_NO_UUID: Final = "00000000-0000-0000-0000-000000000000"
_CHUNK: Final = 1 << 16
"""Bytes of the smallest hole that an image keeps, in files that are not huge."""
_MOST_CHUNKS: Final = 1 << 20
"""In one file: each takes four bytes of the image."""


class ErofsForm(OverlayForm):
    """Each committed snapshot is an image."""

    name = "erofs"

    def __init__(self, verity: str = "") -> None:
        self._verity = parse_verity(verity)

    def make(self, place: Path, kind: SnapshotKind, parents: LayerStack[Path], *, unpacking: bool) -> None:
        """See `Form.make`. Raises Denied, Unsupported where the parents cannot be mounted."""
        self.mounts(place, kind, parents)  # mounts them now, before anybody is told that there is a snapshot
        super().make(place, kind, parents, unpacking=unpacking)
        (place / SHOWN).mkdir(mode=0o700)

    def shown(self, parents: LayerStack[Path]) -> tuple[Mount, ...]:
        """See `OverlayForm.shown`. The image of a single one is mounted as it is."""
        if len(parents) == 1:
            image = parents.nearest_first()[0] / IMAGE
            check_seal(image, self._verity)
            return (ErofsMount(self._checked(image)),)
        return super().shown(parents)

    def seal(self, place: Path) -> None:
        """See `Form.seal`. Raises Unsupported, where there is no mkfs.erofs among others, and Exhausted."""
        image, unfinished = place / IMAGE, place / f"{IMAGE}.new"
        try:
            unfinished.unlink(missing_ok=True)
            unseal(place)
            _make_image(place / UPPER, unfinished)
            descriptor = os.open(unfinished, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fchmod(descriptor, 0o400)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if self._verity is not None:
                seal(unfinished, self._verity)
            os.rename(unfinished, image)
        except OSError as error:
            raise from_os(error, f"make the image {os.fspath(image)!r}") from error

    def settle(self, place: Path) -> Sequence[Path]:
        """See `Form.settle`."""
        return [path for path in (place / UPPER, place / WORK) if path.exists()]

    def release(self, place: Path) -> None:
        """See `Form.release`."""
        if _is_shown(place):
            unmount(place / SHOWN, lazy=True)
        release(place / IMAGE)

    def usage(self, place: Path, kind: SnapshotKind) -> Usage:
        """See `Form.usage`: of a committed one that of its image, and of what seals it."""
        if kind is not SnapshotKind.COMMITTED:
            return super().usage(place, kind)
        try:
            files = [place / IMAGE, *hash_files(place)]
            return Usage(sum(os.stat(path).st_blocks for path in files) * 512, len(files))
        except OSError as error:
            raise from_os(error, f"measure {os.fspath(place / IMAGE)!r}") from error

    def tree(self, place: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> OpenTree:
        """See `Form.tree`. What is committed is read from the images, which takes no rights and mounts nothing."""
        images = LayerStack(ErofsLayer(parent / IMAGE) for parent in parents.base_first())
        if kind is SnapshotKind.COMMITTED:
            images = images.with_top(ErofsLayer(place / IMAGE))
        if kind is SnapshotKind.ACTIVE or not len(images):
            return super().tree(place, kind, parents)
        return ErofsTree(images)

    def lower(self, place: Path) -> Path:
        """See `OverlayForm.lower`. Mounts the image where that has not been done."""
        shown = place / SHOWN
        if not _is_shown(place):
            try:
                with locked(place):
                    if not _is_shown(place):
                        check_seal(place / IMAGE, self._verity)
                        mount_all((ErofsMount(checked(place / IMAGE)),), shown)
            except OSError as error:
                raise from_os(error, f"mount the layer {os.fspath(place)!r}") from error
        return shown

    def _checked(self, image: Path) -> Path:
        """See `checked`; also where several ask at once."""
        try:
            with locked(image.parent):
                return checked(image)
        except OSError as error:
            raise from_os(error, f"open the image {os.fspath(image)!r}") from error


def _is_shown(place: Path) -> bool:
    """Whether the image is mounted, as this process sees it: another file system begins there."""
    try:
        return os.lstat(place / SHOWN).st_dev != os.lstat(place).st_dev
    except FileNotFoundError:
        return False


def _make_image(tree: Path, image: Path) -> None:
    program = shutil.which(_PROGRAM)
    if program is None:
        raise Unsupported(f"there is no {_PROGRAM} on this system, which makes the images of layers", hint=_HINT)
    options = ["--quiet", "-T0", "--mkfs-time", "--preserve-mtime", "-U", _NO_UUID]
    sparse = measure(tree).sparse
    if sparse:  # holes would be written out else
        chunk = _CHUNK
        while sparse > chunk * _MOST_CHUNKS:
            chunk *= 2
        options.append(f"--chunksize={chunk}")
    # What the environment says of times must not reach the image, nor its language the messages.
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "TMPDIR": os.fspath(image.parent),
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(
        [program, *options, os.fspath(image), os.fspath(tree)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        image.unlink(missing_ok=True)
        raise _failure(done.stderr.decode(errors="replace"), done.returncode)


def _failure(said: str, status: int) -> LamellaError:
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("Try ")]
    text = f"{_PROGRAM}: {lines[-1] if lines else f'exit status {status}'}"
    if os.strerror(errno.ENOSPC).lower() in said.lower():
        return Exhausted(text, hint="free some space in the store's file system and run again")
    if "unrecognized option" in said or "Usage:" in said:
        return Unsupported(text, hint=_HINT)
    return LamellaError(text)
