# SPDX-License-Identifier: Apache-2.0
"""Typed mounts made real: by the kernel, or by fuse-overlayfs where the kernel refuses an overlay."""

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

_PATIENCE: Final = 60.0
"""Seconds that a program gets."""

_REFUSED: Final = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENODEV, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a kernel says that makes no overlay for us, or not of these directories."""

_RIGHTS: Final = "it takes root, or a user namespace of one's own, as `unshare --user --map-root-user --mount` makes"


def mount_all(mounts: Sequence[Mount], target: Path) -> None:
    """Mount each of ``mounts`` at the directory ``target``, in order; where one fails, none is left.

    Raises InvalidInput (nothing to mount), NotFound, Denied, Unsupported.
    """
    _on_linux()
    if not mounts:
        raise InvalidInput("there is nothing to mount")
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
    """Unmount all that is mounted at ``target`` and beneath.

    ``lazy`` takes away also what is in use, which goes on for who uses it. Raises NotFound (nothing is mounted
    there), Conflict (in use), Denied.
    """
    _on_linux()
    points = _points(target)
    if os.path.realpath(target) not in points:
        raise NotFound(f"nothing is mounted at {os.fspath(target)!r}")
    for point in reversed(points):
        _unmount(point, lazy=lazy)


def is_mounted(target: Path) -> bool:
    """Whether something is mounted at ``target``, as this process sees it."""
    return sys.platform == "linux" and os.path.realpath(target) in _points(target)


@contextmanager
def mounted(mounts: Sequence[Mount]) -> Iterator[Path]:
    """The directory that ``mounts`` come to, out of reach for other users, as long as the block lasts.

    Raises as `mount_all`.
    """
    _on_linux()
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
        # Never more than what was made here: if it should still be mounted, nothing in it may go.
        for directory in (root, hidden):
            try:
                directory.rmdir()
            except OSError:
                break


def _mount(mount: Mount, target: Path) -> None:
    from lamella.host import mounting

    where = os.fspath(target)
    with _told(mount, where):
        match mount:
            case BindMount(source, True):
                _show(os.fspath(source), where)
            case BindMount(source):
                mounting.bind(os.fspath(source), where)
            case OverlayMount((), Path() as upper, _, _):
                mounting.bind(os.fspath(upper), where)
            case OverlayMount(lower, None, _, _) if len(lower) == 1:
                # An overlay of one directory, which the kernel does not make, is that directory.
                _show(os.fspath(lower[0]), where)
            case OverlayMount():
                _mount_overlay(mount, where)
            case ErofsMount(image, options):
                mounting.erofs(os.fspath(image), where, options)
            case WindowsLayerMount() | CimMount() | BlockCimMount():
                raise Unsupported(
                    "layers of Windows are mounted by Windows alone",
                    hint="look into them with ls, cat and find, or extract them",
                )
            case AddedMount(kind):
                raise Unsupported(f"a layer of the kind {kind!r} cannot be mounted")
            case _:
                assert_never(mount)


def _show(source: str, target: str) -> None:
    """A directory that can only be looked at."""
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
    # It knows no way to write a colon, so that what the names begin with is left to the working directory.
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
            timeout=_PATIENCE,
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
            raise Conflict(f"unmount {target!r}: it is in use", hint="end what uses it, or give --lazy") from error
        raise from_os(error, f"unmount {target!r}") from error


def _unmount_fuse(target: str, lazy: bool) -> bool:
    """Whether it was a mount of fuse-overlayfs, which needs no rights to be undone."""
    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        return False
    try:
        done = subprocess.run(
            with_original_limit([program, "-u", *(["-z"] if lazy else []), "--", target]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _points(target: Path) -> list[str]:
    from lamella.host.mounting import mount_points

    try:
        return mount_points(os.fspath(target))
    except OSError as error:
        raise from_os(error, "read which mounts there are") from error


def _on_linux() -> None:
    if sys.platform != "linux":
        raise Unsupported("mounts are made on Linux alone")


@contextmanager
def _told(mount: Mount, target: str) -> Iterator[None]:
    """Put the kernel's refusals into the categories."""
    try:
        yield
    except OSError as error:
        raise _category(error, mount, target) from error


def _category(error: OSError, mount: Mount, target: str) -> LamellaError:
    kind = {BindMount: "directory", OverlayMount: "overlay", ErofsMount: "EROFS image"}[type(mount)]
    doing = f"mount the {kind} at {target!r}"
    notes = getattr(error, "__notes__", [])
    text = f"{doing}: {error.strerror or error}" + "".join(f"; {note}" for note in notes)
    match error.errno:
        case errno.EPERM | errno.EACCES:
            hint = _RIGHTS + ("; or fuse-overlayfs for overlays" if isinstance(mount, OverlayMount) else "")
            if isinstance(mount, ErofsMount):  # which no user namespace may mount
                hint = "it takes root; the snapshotters overlay and directory do without"
            return Denied(text, hint=hint)
        case errno.ENODEV:
            return Unsupported(text, hint="the kernel lacks the file system, or its module is not loaded")
        case errno.ENOTBLK:
            return Unsupported(text, hint="images in files take Linux 6.12, or loop devices")
        case errno.EINVAL if isinstance(mount, OverlayMount):
            return Unsupported(
                text,
                hint="the kernel takes no overlay of these directories: an upper directory cannot lie in an overlay, "
                "nor in most network file systems, and there are 500 layers at most",
            )
        case errno.ENOENT if isinstance(mount, BindMount) and not os.path.lexists(mount.source):
            return NotFound(f"{doing}: {os.fspath(mount.source)!r} is not there")
        case _:
            return from_os(error, doing)
