# SPDX-License-Identifier: Apache-2.0
"""A remote store, and views of its namespaces."""

from __future__ import annotations

import os
import time
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from lamella.client.connection import Connection
from lamella.client.content import RemoteContent
from lamella.client.metadata import RemoteImages, RemoteLeases, RemoteNamespaces
from lamella.client.snapshots import RemoteSnapshots
from lamella.errors import InvalidInput, LamellaError, Unavailable
from lamella.protocol import LEASE, NAMESPACE
from lamella.protocol.proto import introspection_pb2
from lamella.store.metadata.labels import check_namespace


class RemoteStore:
    """The store of a containerd at a socket. Close it, or use it as a context manager."""

    def __init__(self, address: str | os.PathLike[str]) -> None:
        self.connection = Connection(address)

    def namespace(self, name: str, lease: str | None = None) -> RemoteNamespace:
        """A view of one namespace, whose new objects ``lease`` holds. Raises InvalidInput."""
        return RemoteNamespace(self, check_namespace(name), lease)

    @cached_property
    def namespaces(self) -> RemoteNamespaces:
        """The namespaces of the store."""
        return RemoteNamespaces(self.connection)

    @cached_property
    def blobs(self) -> Path | None:
        """The directory of the server's blobs, if the server names one that this process sees. Raises Unavailable."""
        request = introspection_pb2.PluginsRequest(filters=("type==io.containerd.content.v1",))
        try:
            answer = self.connection.ask(
                "introspection.v1.Introspection/Plugins", request, introspection_pb2.PluginsResponse.FromString
            )
        except Unavailable:
            raise
        except LamellaError:
            return None
        for plugin in answer.plugins:
            root = plugin.exports.get("root", "")
            if root.startswith("/") and os.path.isdir(f"{root}/blobs"):
                return Path(root, "blobs")
        return None

    def close(self) -> None:
        """Close the connection once no blob is open. Further calls do nothing."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class RemoteNamespace:
    """A view of a namespace, whose new objects its lease holds, if it has one."""

    def __init__(self, store: RemoteStore, name: str, lease: str | None = None) -> None:
        if lease is not None and not (lease and lease.isascii() and lease.isprintable()):
            raise InvalidInput(f"{lease[:100]!r} is no lease for a call: it must be printable ASCII")
        self.store = store
        self.name = name
        self.lease = lease
        self._headers = ((NAMESPACE, name), *(((LEASE, lease),) if lease else ()))
        self.content = RemoteContent(store.connection, self._headers, lambda: store.blobs)
        self.images = RemoteImages(store.connection, self._headers)
        self.leases = RemoteLeases(store.connection, ((NAMESPACE, name),))

    def snapshots(self, name: str) -> RemoteSnapshots:
        """The snapshots of the namespace in the server's snapshotter ``name``."""
        return RemoteSnapshots(self.store.connection, self._headers, name)

    def clock(self) -> int:
        """The time of this machine, in nanoseconds since the Unix epoch."""
        return time.time_ns()

    def under(self, lease: str) -> Self:
        """The same namespace, with new objects held by ``lease``."""
        return type(self)(self.store, self.name, lease)
