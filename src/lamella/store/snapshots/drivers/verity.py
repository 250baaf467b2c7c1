# SPDX-License-Identifier: Apache-2.0
"""Images that the kernel checks against a tree of hashes as they are read, so that damage is an error and not a file.

fs-verity is a file system's own: once a file is sealed it cannot change any more. dm-verity is a block device over the
image, which ``veritysetup`` sets up when it is mounted. The tree of hashes and its root are made here and lie beside
the image, and equal images have equal trees. What is sealed with it is always mounted by way of the device.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from enum import StrEnum
from io import FileIO
from pathlib import Path
from typing import Final

from lamella.errors import Conflict, Exhausted, Integrity, LamellaError, Unsupported, from_os
from lamella.host.open_files import with_original_limit

_TREE: Final = "layer.verity"
_ROOT: Final = "layer.roothash"
_NEW: Final = ".new"
_ROOT_HASH: Final = re.compile(r"[0-9a-f]{64}")

_PROGRAM: Final = "veritysetup"
_HINT: Final = "install cryptsetup-bin"
_DEVICES: Final = Path("/dev/mapper")
_STEP: Final = 1 << 20


class Verity(StrEnum):
    """What checks an image."""

    FS = "fs-verity"
    DM = "dm-verity"


def parse_verity(text: str) -> Verity | None:
    """What ``text`` asks for; None where it is empty. Raises Unsupported."""
    if not text:
        return None
    try:
        return Verity(text)
    except ValueError:
        raise Unsupported(f"layers are not sealed with {text!r}", hint=f"{' and '.join(Verity)} are there") from None


def unseal(place: Path) -> None:
    """Drop what an earlier attempt to seal an image in ``place`` has left. Raises OSError."""
    for name in (_ROOT, _TREE):
        for left in (name, f"{name}{_NEW}"):
            (place / left).unlink(missing_ok=True)


def seal(image: Path, verity: Verity) -> None:
    """Seal an image that is about to be put beside: what is written for it is on the disk when this returns.

    Raises Unsupported, Exhausted, OSError.
    """
    match verity:
        case Verity.FS:
            _enable(image)
        case Verity.DM:
            _write_tree(image)


def hash_files(place: Path) -> list[Path]:
    """The files of a place that are there for the sake of its image's seal."""
    return [path for path in (place / _TREE, place / _ROOT) if path.exists()]


def check_seal(image: Path, verity: Verity | None) -> None:
    """Let no image be mounted unchecked where checks are asked for. Raises Conflict."""
    if verity is None:
        return
    from lamella.host.linux import verity_digest

    try:
        sealed = _is_in_tree(image) if verity is Verity.DM else verity_digest(os.fspath(image)) is not None
    except OSError as error:
        raise from_os(error, f"open the image {os.fspath(image)!r}") from error
    if not sealed:
        raise Conflict(
            f"the image {os.fspath(image)!r} is not sealed with {verity}",
            hint="remove the snapshot and unpack it again, or do without",
        )


def checked(image: Path) -> Path:
    """What to mount to see an image: the device that checks it, begun where it is not there, or the image itself.

    For one caller at a time. Raises Unsupported (no device mapper), Integrity (the tree is not the root's), Denied.
    """
    if not _is_in_tree(image):
        return image
    root = _root_hash(image)
    name = _device_name(image)
    device = _DEVICES / name
    if not device.exists():
        _run("open", os.fspath(image), name, os.fspath(image.with_name(_TREE)), root)
    return device


def release(image: Path) -> None:
    """End the device that checks an image, if there is one, once nothing has it mounted any more."""
    try:
        if not _is_in_tree(image) or not (_DEVICES / _device_name(image)).exists():
            return
        _run("close", "--deferred", _device_name(image))
    except (OSError, LamellaError):
        pass  # in use elsewhere; it does no harm to what is removed


def _is_in_tree(image: Path) -> bool:
    return image.with_name(_ROOT).exists()


def _root_hash(image: Path) -> str:
    try:
        root = image.with_name(_ROOT).read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise from_os(error, f"read the root hash of {os.fspath(image)!r}") from error
    if not _ROOT_HASH.fullmatch(root):
        raise Integrity(f"the root hash of {os.fspath(image)!r} is malformed", hint="lamella store check --repair")
    return root


def _device_name(image: Path) -> str:
    """One for each image of this machine, wherever it is moved to within its file system."""
    status = os.stat(image)
    return f"lamella-{status.st_dev:x}-{status.st_ino:x}-{_root_hash(image)[:16]}"


def _write_tree(image: Path) -> None:
    """Write the tree of hashes; its root comes last, and on its own says that the image is sealed."""
    from lamella.formats.verity import write_tree

    tree, root = (image.with_name(name) for name in (_TREE, _ROOT))
    new_root = root.with_name(f"{_ROOT}{_NEW}")
    with open(image, "rb", buffering=0) as data, _new(tree) as hashes:
        reading, writing = data.fileno(), hashes.fileno()
        size = os.fstat(reading).st_size

        def write(offset: int, block: bytes) -> None:
            while block:
                done = os.pwrite(writing, block, offset)
                offset, block = offset + done, block[done:]

        top = write_tree(lambda offset, length: os.pread(reading, length, offset), size, write)
        os.fsync(writing)
    with _new(new_root) as said:
        said.write(top.encode())
        os.fsync(said.fileno())
    os.rename(new_root, root)


def _new(path: Path) -> FileIO:
    return FileIO(path, "xb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400))


def examine(image: Path, step: Callable[[int], object]) -> None:
    """Read all of a sealed image, and hold it against its hashes; of one that is not sealed nothing is read.

    The kernel's help is not needed for dm-verity. ``step`` is told of bytes that were read, and may raise to stop.
    Raises Integrity, FormatError, Unsupported, OSError.
    """
    from lamella.formats.verity import check_tree
    from lamella.host.linux import verity_digest

    tree = image.with_name(_TREE)
    if not _is_in_tree(image):
        if tree.exists():
            raise Integrity("its hashes are there, and their root is missing")
        if verity_digest(os.fspath(image)) is None:
            return
        with open(image, "rb", buffering=0) as data:
            while held := data.read(_STEP):  # which the kernel checks
                step(len(held))
        return
    root = _root_hash(image)
    if not tree.exists():
        raise Integrity("its hashes are missing, and their root is there")
    with open(image, "rb", buffering=0) as data, open(tree, "rb", buffering=0) as hashes:
        reading, looking = data.fileno(), hashes.fileno()
        check_tree(
            lambda offset, length: os.pread(reading, length, offset),
            os.fstat(reading).st_size,
            lambda offset, length: os.pread(looking, length, offset),
            root,
            step,
        )


def _run(*arguments: str) -> None:
    program = shutil.which(_PROGRAM)
    if program is None:
        raise Unsupported(f"there is no {_PROGRAM} on this system, which dm-verity takes", hint=_HINT)
    done = subprocess.run(
        with_original_limit([program, *arguments]),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
        check=False,
    )
    if done.returncode:
        raise _failure(done.stderr.decode(errors="replace"), arguments[0], done.returncode)


def _failure(said: str, verb: str, status: int) -> LamellaError:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    text = f"{_PROGRAM} {verb}: {lines[0] if lines else f'exit status {status}'}"
    lower = said.lower()
    if os.strerror(errno.ENOSPC).lower() in lower:
        return Exhausted(text, hint="free some space in the store's file system and run again")
    if "device-mapper" in lower or "device mapper" in lower or "dm_mod" in lower:
        return Unsupported(text, hint="it takes a kernel with CONFIG_BLK_DEV_DM and CONFIG_DM_VERITY, and root")
    if "verification" in lower or "corrupted" in lower:
        return Integrity(text, hint="lamella store check --repair")
    return LamellaError(text)


def _enable(image: Path) -> None:
    from lamella.host.linux import enable_verity

    try:
        enable_verity(os.fspath(image))
    except OSError as error:
        if error.errno == errno.EEXIST:  # an earlier attempt came so far
            return
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL):
            raise Unsupported(
                f"the store's file system cannot seal files with {Verity.FS}: {error.strerror}",
                hint="ext4 (feature verity), f2fs and btrfs can, where the kernel has CONFIG_FS_VERITY",
            ) from error
        raise
