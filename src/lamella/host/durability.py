# SPDX-License-Identifier: Apache-2.0
"""Durability of outputs: layouts, archives, blobs, composite images and reports that a call writes under a name.

By default, an output is on the disk before the call returns: its bytes first, then its name, so that a power cut never
leaves an incomplete file under the final name. The store does not look at this setting; it is always durable.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_durable: ContextVar[bool] = ContextVar("durable outputs", default=True)


@contextmanager
def durable_outputs(durable: bool) -> Iterator[None]:
    """Set whether outputs that this thread or task writes in the block are durable."""
    token = _durable.set(durable)
    try:
        yield
    finally:
        _durable.reset(token)


def outputs_are_durable() -> bool:
    """Whether outputs are durable: the setting of the innermost block, else true."""
    return _durable.get()


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make the names in a directory durable; Windows has no such call. Raises OSError."""
    if sys.platform == "win32":
        return
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def sync_file_system(path: str | os.PathLike[str]) -> None:
    """Flush the file system of the directory ``path`` (syncfs(2)); outside Linux, all of them. Raises OSError."""
    if sys.platform != "linux":
        os.sync()
        return
    from lamella.host import linux

    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        linux.sync_file_system(directory)
    finally:
        os.close(directory)


def make_directories(path: str | os.PathLike[str], *, durable: bool) -> None:
    """Create the directory ``path`` and its missing parents. If ``durable``, sync their names. Raises OSError."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(os.path.abspath(path))
    if parent != os.path.abspath(path):
        make_directories(parent, durable=durable)
    try:
        os.mkdir(path)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
        return
    if durable:
        sync_directory(parent)
