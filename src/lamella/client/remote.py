# SPDX-License-Identifier: Apache-2.0
"""A store that a server keeps, and the views of its namespaces."""

from __future__ import annotations

import os
from functools import cached_property
from types import TracebackType
from typing import Self

from lamella.client.connection import LEASE, NAMESPACE, Connection
from lamella.client.content import RemoteContent
from lamella.client.metadata import RemoteImages, RemoteLeases, RemoteNamespaces
from lamella.errors import InvalidInput
from lamella.store.labels import check_namespace


class RemoteStore:
    """The store of a containerd that listens at a socket. Close it, or use it as a context."""

    def __init__(self, address: str | os.PathLike[str]) -> None:
        self.connection = Connection(address)

    def namespace(self, name: str, lease: str | None = None) -> RemoteSpace:
        """The view of one namespace; what is made through it is put under ``lease``. Raises InvalidInput."""
        if lease is not None and not (lease and lease.isascii() and lease.isprintable()):
            raise InvalidInput(f"{lease[:100]!r} cannot be named as the lease of a call: it must be plain text")
        return RemoteSpace(self.connection, check_namespace(name), lease)

    @cached_property
    def namespaces(self) -> RemoteNamespaces:
        """Which namespaces there are."""
        return RemoteNamespaces(self.connection)

    def close(self) -> None:
        """Calls that are under way are broken off. May be called again."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class RemoteSpace:
    """A namespace of a server's store. What is made through it is held by its lease, where it has one."""

    def __init__(self, connection: Connection, name: str, lease: str | None = None) -> None:
        self.name = name
        self.lease = lease
        held = ((LEASE, lease),) if lease else ()
        self.content = RemoteContent(connection, ((NAMESPACE, name), *held))
        self.images = RemoteImages(connection, ((NAMESPACE, name), *held))
        self.leases = RemoteLeases(connection, ((NAMESPACE, name),))
