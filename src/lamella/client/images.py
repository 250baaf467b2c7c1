# SPDX-License-Identifier: Apache-2.0
"""Images of a running containerd, read and written as those of any other place."""

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
"""Where a containerd listens unless it is told otherwise."""

_NAMESPACE: Final = "default"


class ContainerdReader(StoreReader):
    """An image of a containerd's namespace."""

    def __init__(self, space: RemoteNamespace, name: ImageName) -> None:
        self.place = _place(space)
        self.hint = f"ctr -a {space.store.connection.address} -n {space.name} images ls lists the images"
        super().__init__(space, name, closing=space.store.close)


class ContainerdWriter(StoreWriter):
    """Puts an image into a containerd's namespace, under a lease until it has its name."""

    def __init__(self, space: RemoteNamespace, name: ImageName, *, replace: bool = False) -> None:
        self.place = _place(space)
        super().__init__(space, name, replace=replace, closing=space.store.close)


def open_containerd_reader(name: ImageName, options: ContainerdOptions) -> ContainerdReader:
    """A reader of the image that ``name`` names. Raises InvalidInput, Unsupported."""
    return ContainerdReader(open_remote(options), name)


def open_containerd_writer(name: ImageName, options: ContainerdOptions, *, replace: bool = False) -> ContainerdWriter:
    """A writer of the image that ``name`` names. Raises InvalidInput, Unsupported, Unavailable."""
    return ContainerdWriter(open_remote(options), name, replace=replace)


def open_remote(options: ContainerdOptions) -> RemoteNamespace:
    """The namespace that ``options`` say, whose store is to be closed. Raises InvalidInput, Unsupported."""
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
