# SPDX-License-Identifier: Apache-2.0
"""Mounts snapshots: by the kernel, or by fuse-overlayfs if the kernel refuses an overlay."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, assert_never

from lamella.errors import Conflict, Denied, InvalidInput, LamellaError, NotFound, Unsupported, from_os
from lamella.host.open_files import with_original_limit
from lamella.store.contract import (
    AddedMount,
    BindMount,
    BlockCimMount,
    CimMount,
    ErofsMount,
    Mount,
    OverlayMount,
    WindowsLayerMount,
)

_TIMEOUT: Final = 60.0
"""Seconds for a helper program."""

_REFUSED: Final = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENODEV, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of a kernel that does not let this process mount an overlay, or not of these directories."""

_RIGHTS: Final = "run as root, or in a user namespace: `unshare --user --map-root-user --mount`"


def mount_all(mounts: Sequence[Mount], target: Path) -> None:
    """Mount each of ``mounts`` at the directory ``target``, in order; after an error, unmount all.

    Raises InvalidInput (nothing to mount), NotFound, Denied, Unsupported.
    """
    _require_linux()
    if not mounts:
        raise InvalidInput("nothing to mount")
    done = 0
    try:
        for mount in mounts:
            _mount(mount, target)
            done += 1
    except BaseException:
        for _ in range(done):
            _unmount(os.fspath(target), lazy=True)
        raise


def unmount(target: Path, *, lazy: bool = False) -> None:
    """Unmount everything at ``target`` and below.

    ``lazy`` detaches mounts that are in use, which end with their last user. Raises NotFound (not a mount point),
    Conflict (in use), Denied.
    """
    _require_linux()
    points = _mount_points(target)
    if os.path.realpath(target) not in points:
        raise NotFound(f"nothing is mounted at {os.fspath(target)!r}")
    for point in reversed(points):
        _unmount(point, lazy=lazy)


def is_mounted(target: Path) -> bool:
    """Return whether ``target`` is a mount point in this process's mount namespace."""
    return sys.platform == "linux" and os.path.realpath(target) in _mount_points(target)


@contextmanager
def mounted(mounts: Sequence[Mount]) -> Iterator[Path]:
    """Mount ``mounts`` at a temporary directory that other users cannot reach, for the block.

    Raises as `mount_all`.
    """
    _require_linux()
    hidden = Path(tempfile.mkdtemp(prefix="lamella-"))
    root = hidden / "root"
    try:
        root.mkdir()
        mount_all(mounts, root)
        try:
            yield root
        finally:
            try:
                unmount(root)
            except Conflict:
                unmount(root, lazy=True)
    finally:
        # rmdir only: if it is still mounted, its files must stay.
        for directory in (root, hidden):
            try:
                directory.rmdir()
            except OSError:
                break


def _mount(mount: Mount, target: Path) -> None:
    from lamella.host import mounting

    where = os.fspath(target)
    with _translate_errors(mount, where):
        match mount:
            case BindMount(source, True):
                _bind_readonly(os.fspath(source), where)
            case BindMount(source):
                mounting.bind(os.fspath(source), where)
            case OverlayMount((), Path() as upper, _, _):
                mounting.bind(os.fspath(upper), where)
            case OverlayMount(lower, None, _, _) if len(lower) == 1:
                # The kernel mounts no overlay of a single directory.
                _bind_readonly(os.fspath(lower[0]), where)
            case OverlayMount():
                _mount_overlay(mount, where)
            case ErofsMount(image, options):
                mounting.erofs(os.fspath(image), where, options)
            case WindowsLayerMount() | CimMount() | BlockCimMount():
                raise Unsupported(
                    "only Windows can mount Windows layers",
                    hint="read them with ls, cat and find, or extract them",
                )
            case AddedMount(kind):
                raise Unsupported(f"a layer of the kind {kind!r} cannot be mounted")
            case _:
                assert_never(mount)


def _bind_readonly(source: str, target: str) -> None:
    from lamella.host import mounting

    try:
        mounting.bind(source, target, readonly=True)
    except OSError as error:
        program = _fuse_overlayfs()
        if error.errno not in (errno.EPERM, errno.EACCES) or program is None:
            raise
        _mount_fuse(program, target, [source], None, None, error)


def _fuse_overlayfs() -> str | None:
    return shutil.which("fuse-overlayfs") if os.path.exists("/dev/fuse") else None


def _mount_overlay(mount: OverlayMount, target: str) -> None:
    from lamella.host import mounting

    lower = [os.fspath(path) for path in mount.lower]
    upper = None if mount.upper is None else os.fspath(mount.upper)
    work = None if mount.work is None else os.fspath(mount.work)
    try:
        mounting.overlay(target, lower, upper, work, mount.options)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        program = _fuse_overlayfs()
        if program is None:
            raise
        _mount_fuse(program, target, lower, upper, work, error)


def _mount_fuse(
    program: str, target: str, lower: Sequence[str], upper: str | None, work: str | None, refusal: OSError
) -> None:
    # Its options cannot escape a colon: pass paths relative to a common working directory.
    above = os.path.commonpath([os.path.dirname(path) for path in lower]) if lower else "/"
    names = [os.path.relpath(path, above) for path in lower]
    if any(":" in name for name in names):
        raise refusal
    options = [f"lowerdir={':'.join(names)}"]
    if upper is not None and work is not None:
        options += [f"upperdir={upper}", f"workdir={work}"]
    else:
        options.append("ro")
    options = [option.replace("\\", "\\\\").replace(",", "\\,") for option in options]
    try:
        done = subprocess.run(
            with_original_limit([program, "-o", ",".join(options), os.path.abspath(target)]),
            cwd=above,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as failure:
        refusal.add_note(f"{program}: {failure}")
        raise refusal from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        refusal.add_note(f"{program}: {said[-1] if said else f'exit status {done.returncode}'}")
        raise refusal


def _unmount(target: str, *, lazy: bool) -> None:
    from lamella.host import mounting

    try:
        mounting.unmount(target, lazy=lazy)
    except OSError as error:
        if error.errno == errno.EPERM and _unmount_fuse(target, lazy):
            return
        if error.errno == errno.EBUSY:
            raise Conflict(
                f"unmount {target!r}: it is in use", hint="stop the processes that use it, or give --lazy"
            ) from error
        raise from_os(error, f"unmount {target!r}") from error


def _unmount_fuse(target: str, lazy: bool) -> bool:
    """Unmount a FUSE mount, which needs no privileges; return whether that succeeded."""
    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        return False
    try:
        done = subprocess.run(
            with_original_limit([program, "-u", *(["-z"] if lazy else []), "--", target]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _mount_points(target: Path) -> list[str]:
    from lamella.host.mounting import mount_points

    try:
        return mount_points(os.fspath(target))
    except OSError as error:
        raise from_os(error, "read the mount table") from error


def _require_linux() -> None:
    if sys.platform != "linux":
        raise Unsupported("mounting needs Linux")


@contextmanager
def _translate_errors(mount: Mount, target: str) -> Iterator[None]:
    """Translate the kernel's errors to the categories of `lamella.errors`."""
    try:
        yield
    except OSError as error:
        raise _translate(error, mount, target) from error


def _translate(error: OSError, mount: Mount, target: str) -> LamellaError:
    kind = {BindMount: "directory", OverlayMount: "overlay", ErofsMount: "EROFS image"}[type(mount)]
    doing = f"mount the {kind} at {target!r}"
    notes = getattr(error, "__notes__", [])
    text = f"{doing}: {error.strerror or error}" + "".join(f"; {note}" for note in notes)
    match error.errno:
        case errno.EPERM | errno.EACCES:
            hint = _RIGHTS + ("; or fuse-overlayfs for overlays" if isinstance(mount, OverlayMount) else "")
            if isinstance(mount, ErofsMount):  # user namespaces may not mount it
                hint = "mounting EROFS needs root; the snapshotters overlay and directory do not"
            return Denied(text, hint=hint)
        case errno.ENODEV:
            return Unsupported(text, hint="the kernel lacks the file system, or its module is not loaded")
        case errno.ENOTBLK:
            return Unsupported(text, hint="mounting image files needs Linux 6.12, or loop devices")
        case errno.EINVAL if isinstance(mount, OverlayMount):
            return Unsupported(
                text,
                hint="an upper directory cannot be on an overlay or most network file systems; at most 500 layers",
            )
        case errno.ENOENT if isinstance(mount, BindMount) and not os.path.lexists(mount.source):
            return NotFound(f"{doing}: {os.fspath(mount.source)!r} does not exist")
        case _:
            return from_os(error, doing)
