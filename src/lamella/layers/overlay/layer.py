# SPDX-License-Identifier: Apache-2.0
"""A layer kept as the upper directory of an overlay mount (Documentation/filesystems/overlayfs.rst)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from msgspec import Struct

from lamella import host
from lamella.errors import from_os
from lamella.layers.directory.dirfd_cache import Descriptors, open_root
from lamella.paths import LayerPath, split

TRUSTED: Final = "trusted.overlay."
USER: Final = "user.overlay."
WHITEOUT_DEVICE: Final = 0
"""The device number of a whiteout, major and minor 0; Windows has no os.makedev."""

_OPEN_DIRECTORIES: Final = 16


class OverlayLayer(Struct, frozen=True):
    """An upper directory; the lowest layer may be a plain directory."""

    path: Path
    user_xattrs: bool | None = None
    """Whether the overlay's attributes are ``user.overlay.*`` (mount option ``userxattr``) or ``trusted.overlay.*``.

    None: ``trusted.overlay.*`` for root, else ``user.overlay.*``.
    """

    def xattr_prefix(self) -> str:
        """The prefix of the names of the overlay's extended attributes."""
        user = os.geteuid() != 0 if self.user_xattrs is None else self.user_xattrs
        return USER if user else TRUSTED


def drop_whiteouts(layer: OverlayLayer, paths: Iterable[LayerPath]) -> None:
    """Remove the whiteouts at ``paths``, which hide nothing; other files stay. Directories keep their times.

    Raises Denied and the like.
    """
    mark = layer.xattr_prefix() + "whiteout"
    directories = Descriptors(open_root(layer.path), most=_OPEN_DIRECTORIES)
    try:
        for path in paths:
            parent, name = split(path)
            try:
                directory = directories.open(parent)
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if stat.S_ISREG(status.st_mode) and not status.st_size:
                is_whiteout = mark in host.list_xattrs(host.path_beneath(directory, name))
            else:
                is_whiteout = stat.S_ISCHR(status.st_mode) and status.st_rdev == WHITEOUT_DEVICE
            if is_whiteout:
                mtime = os.fstat(directory).st_mtime_ns
                os.unlink(name, dir_fd=directory)
                os.utime(directory, ns=(mtime, mtime))
    except OSError as error:
        raise from_os(error, f"remove whiteouts in {os.fspath(layer.path)!r}") from error
    finally:
        directories.close()
