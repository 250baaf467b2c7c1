# SPDX-License-Identifier: Apache-2.0
"""Sealed images: the kernel checks them against a hash tree as they are read, so that damage gives an I/O error.

fs-verity is a feature of the file system; a sealed file is immutable. dm-verity is a block device over the image, which
``veritysetup`` opens for a mount. Its hash tree and root hash are files beside the image; equal images have equal
trees. An image with a dm-verity tree is always mounted through its device.
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
DEVICES: Final = Path("/dev/mapper")
_STEP: Final = 1 << 20


class Verity(StrEnum):
    """How the kernel checks an image."""

    FS = "fs-verity"
    DM = "dm-verity"


def parse_verity(text: str) -> Verity | None:
    """Return the member named ``text``; None if it is empty. Raises Unsupported."""
    if not text:
        return None
    try:
        return Verity(text)
    except ValueError:
        raise Unsupported(f"unknown verity {text!r}", hint=f"choose {' or '.join(Verity)}") from None


def unseal(directory: Path) -> None:
    """Remove the files of an interrupted `seal` in ``directory``. Raises OSError."""
    for name in (_ROOT, _TREE):
        for left in (name, f"{name}{_NEW}"):
            (directory / left).unlink(missing_ok=True)


def seal(image: Path, verity: Verity) -> None:
    """Seal an image; its hash tree, if any, is durable when this returns.

    Raises Unsupported, Exhausted, OSError.
    """
    match verity:
        case Verity.FS:
            _enable(image)
        case Verity.DM:
            _write_tree(image)


def hash_files(directory: Path) -> list[Path]:
    """Return the files that seal the image in ``directory``."""
    return [path for path in (directory / _TREE, directory / _ROOT) if path.exists()]


def check_seal(image: Path, verity: Verity | None) -> None:
    """Raise Conflict if ``verity`` is required and the image is not sealed with it."""
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
            hint="remove the snapshot and unpack it again, or omit --verity",
        )


def open_verified(image: Path) -> Path:
    """Return what to mount for an image: its dm-verity device, opened if necessary, or the image itself.

    Not thread-safe; the caller holds the lock of the directory. Raises Unsupported (no device mapper), Integrity
    (hash tree and root hash differ), Denied.
    """
    if not _is_in_tree(image):
        return image
    root = _root_hash(image)
    name = _device_name(image)
    device = DEVICES / name
    if not device.exists():
        _run("open", os.fspath(image), name, os.fspath(image.with_name(_TREE)), root)
    return device


def release(image: Path) -> None:
    """Close the dm-verity device of an image, if there is one, once it is not mounted any more."""
    try:
        if not _is_in_tree(image) or not (DEVICES / _device_name(image)).exists():
            return
        _run("close", "--deferred", _device_name(image))
    except (OSError, LamellaError):
        pass  # in use elsewhere; the removal of the image goes on


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
    """Return a name that is unique on this machine, and stays when the image is renamed."""
    status = os.stat(image)
    return f"lamella-{status.st_dev:x}-{status.st_ino:x}-{_root_hash(image)[:16]}"


def _write_tree(image: Path) -> None:
    """Write the hash tree, then the root hash, whose presence marks the image as sealed."""
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


def verify_seal(image: Path, step: Callable[[int], object]) -> None:
    """Read all of a sealed image and compare it with its hash tree; do nothing for one that is not sealed.

    dm-verity is checked in this process. ``step`` receives the number of bytes read, and may raise to stop.
    Raises Integrity, FormatError, Unsupported, OSError.
    """
    from lamella.formats.verity import check_tree
    from lamella.host.linux import verity_digest

    tree = image.with_name(_TREE)
    if not _is_in_tree(image):
        if tree.exists():
            raise Integrity("its hash tree exists, but the root hash is missing")
        if verity_digest(os.fspath(image)) is None:
            return
        with open(image, "rb", buffering=0) as data:
            while chunk := data.read(_STEP):  # the kernel checks it
                step(len(chunk))
        return
    root = _root_hash(image)
    if not tree.exists():
        raise Integrity("its root hash exists, but the hash tree is missing")
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
        raise Unsupported(f"dm-verity needs {_PROGRAM}, which is not installed", hint=_HINT)
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
        return Unsupported(text, hint="dm-verity needs root, and a kernel with CONFIG_BLK_DEV_DM and CONFIG_DM_VERITY")
    if "verification" in lower or "corrupted" in lower:
        return Integrity(text, hint="lamella store check --repair")
    return LamellaError(text)


def _enable(image: Path) -> None:
    from lamella.host.linux import enable_verity

    try:
        enable_verity(os.fspath(image))
    except OSError as error:
        if error.errno == errno.EEXIST:  # an interrupted attempt has sealed it
            return
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL):
            raise Unsupported(
                f"the store's file system cannot seal files with {Verity.FS}: {error.strerror}",
                hint="ext4 (feature verity), f2fs and btrfs can, where the kernel has CONFIG_FS_VERITY",
            ) from error
        raise
