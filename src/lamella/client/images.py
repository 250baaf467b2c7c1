# SPDX-License-Identifier: Apache-2.0
"""Image reader and writer for the images of a running containerd."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from lamella.errors import Unsupported
from lamella.images.options import CONTAINERD_ADDRESS, CONTAINERD_NAMESPACE, ContainerdOptions
from lamella.images.transports import ImageName
from lamella.store.image_reader import StoreReader
from lamella.store.image_writer import StoreWriter

if TYPE_CHECKING:
    from lamella.client.remote import RemoteNamespace

SOCKET: Final = "/run/containerd/containerd.sock"
"""Default address of containerd."""

_NAMESPACE: Final = "default"


class ContainerdReader(StoreReader):
    """Reads an image of a namespace of containerd."""

    def __init__(self, space: RemoteNamespace, name: ImageName) -> None:
        self.place = _place(space)
        self.hint = f"ctr -a {space.store.connection.address} -n {space.name} images ls lists the images"
        super().__init__(space, name, closing=space.store.close)


class ContainerdWriter(StoreWriter):
    """Writes an image into a namespace of containerd; a lease holds its parts until it has a name."""

    def __init__(self, space: RemoteNamespace, name: ImageName, *, replace: bool = False) -> None:
        self.place = _place(space)
        super().__init__(space, name, replace=replace, closing=space.store.close)


def open_containerd_reader(name: ImageName, options: ContainerdOptions) -> ContainerdReader:
    """Reader of the image ``name``. Raises InvalidInput, Unsupported."""
    return ContainerdReader(open_remote(options), name)


def open_containerd_writer(name: ImageName, options: ContainerdOptions, *, replace: bool = False) -> ContainerdWriter:
    """Writer of the image ``name``. Raises InvalidInput, Unsupported, Unavailable."""
    return ContainerdWriter(open_remote(options), name, replace=replace)


def open_remote(options: ContainerdOptions) -> RemoteNamespace:
    """The namespace of ``options``; the caller closes its store. Raises InvalidInput, Unsupported."""
    try:
        from lamella.client.remote import RemoteStore
    except ModuleNotFoundError as missing:
        raise Unsupported(
            f"to talk to a containerd, the package {missing.name} is needed", hint="pip install 'lamella[containerd]'"
        ) from missing
    store = RemoteStore(options.address or os.environ.get(CONTAINERD_ADDRESS) or SOCKET)
    try:
        return store.namespace(options.namespace or os.environ.get(CONTAINERD_NAMESPACE) or _NAMESPACE)
    except BaseException:
        store.close()
        raise


def _place(space: RemoteNamespace) -> str:
    return f"namespace {space.name!r} of containerd at {space.store.connection.address!r}"
