# SPDX-License-Identifier: Apache-2.0
"""The plugin endpoint: snapshotters, a differ and a content store for a containerd (its ``[proxy_plugins]``).

containerd keeps names, labels and leases, collects garbage, and makes the keys of snapshots. Its collector removes
every object here that it does not know. So the plugins have a separate store, with one namespace, in which Lamella
collects no garbage. One store serves one containerd.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, assert_never

from lamella.client.images import SOCKET as CONTAINERD
from lamella.digests import Digest
from lamella.errors import InvalidInput, NotFound, Unsupported
from lamella.protocol import NAMESPACE
from lamella.service.grpc.rpc import Call, Method, methods
from lamella.service.services.served_store import ServedStore
from lamella.store.contract import (
    AddedMount,
    BindMount,
    BlockCimMount,
    CimMount,
    ErofsMount,
    Mount,
    OverlayMount,
    Snapshotter,
    WindowsLayerMount,
)
from lamella.store.disk_layout import SNAPSHOTS
from lamella.store.gc.labels import EXPIRE
from lamella.store.store import LocalNamespace, Store
from lamella.times import SECOND, format_rfc3339

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from lamella.client.remote import RemoteStore
    from lamella.service.services.diff import Blobs

FOLDER: Final = "plugin"
"""Directory of the plugins' store within the main store."""

SOCKET: Final = "/run/lamella/plugin.sock"

LEASE_SECONDS: Final = 600
"""Seconds of a lease that holds a new blob until the client refers to it."""

PROXY_SNAPSHOTTERS: Final = {"lamella": "overlayfs", "lamella-native": "native", "lamella-erofs": "erofs"}
"""Names of the snapshot plugins -> snapshotters of the store."""
DIFFER: Final = "lamella-diff"
CONTENT: Final = "lamella-content"

_SPACE: Final = "plugin"


@contextmanager
def opened_plugin(root: Path, containerd: str = CONTAINERD, *, verity: str = "") -> Iterator[Plugin]:
    """Open the plugins' store within the store at ``root``; a missing one is created. Raises as `Store.open`."""
    with Store.open(root / FOLDER, verity=verity) as store:
        plugin = Plugin(store, containerd)
        try:
            yield plugin
        finally:
            plugin.close()


class Plugin(ServedStore):
    """The plugins' store, and the containerd of the plugins."""

    def __init__(self, store: Store, containerd: str = CONTAINERD) -> None:
        """``containerd`` is the address at which blobs of its content store are read."""
        super().__init__(store)
        self._address = containerd

    def space(self, call: Call) -> LocalNamespace:  # noqa: ARG002  # containerd keeps namespaces and leases
        return self._space

    def snapshotter(self, name: str, call: Call) -> Snapshotter:
        """``name`` is a plugin's (`lamella.service.services.snapshots.Snapshotting`)."""
        kind = PROXY_SNAPSHOTTERS.get(name)
        if kind is None:
            raise InvalidInput(
                f"unknown snapshot plugin {name!r}", hint=f"name it one of {', '.join(PROXY_SNAPSHOTTERS)}"
            )
        return self.space(call).snapshots(kind)

    def happened(self, call: Call, topic: str, event: Message) -> None:
        """containerd publishes the events of its plugins."""

    def collect(self, *, wait: bool) -> None:
        """Garbage collection belongs to containerd here; never collect."""

    def reading(self, call: Call) -> AbstractContextManager[_AllBlobs]:
        """The blobs of the plugins' store, and those of containerd's content store."""
        return nullcontext(_AllBlobs(self, call))

    @contextmanager
    def writing(self, call: Call, mounts: Sequence[Mount]) -> Iterator[Blobs]:
        """Containerd's content store, under the lease of the call or a new one of ten minutes.

        Raises Unsupported if the namespace is unknown, so that containerd asks its next differ.
        """
        space = self.containerd.namespace(call.metadata.get(NAMESPACE) or self._namespace_of(mounts))
        lease = call.lease
        if lease is None:
            expire = format_rfc3339((time.time_ns() // SECOND + LEASE_SECONDS) * SECOND)
            lease = space.leases.create(f"lamella-{secrets.token_hex(8)}", {EXPIRE: expire}).id
        yield space.under(lease).content

    def namespaces(self, call: Call) -> list[str]:
        """Namespaces to look in for a blob: the call's, or all, since containerd 1.7 sends none."""
        named = call.metadata.get(NAMESPACE)
        return [named] if named else [one.name for one in self.containerd.namespaces.list()]

    def _namespace_of(self, mounts: Sequence[Mount]) -> str:
        """The namespace of a snapshot of this store, from containerd's key ``NAMESPACE/NUMBER/KEY``."""
        home = self.store.root / SNAPSHOTS
        for path in (path for mount in mounts for path in _paths(mount) if path.is_relative_to(home)):
            number = path.relative_to(home).parts[1]
            key = self.store.snapshot_key(int(number)) if number.isdecimal() else None
            namespace, slash, _ = (key or "").partition("/")
            if slash:
                return namespace
        raise Unsupported("containerd names no namespace, and the mounts belong to no snapshot of this store")

    @cached_property
    def containerd(self) -> RemoteStore:
        """Client of the containerd."""
        from lamella.client.remote import RemoteStore

        return RemoteStore(self._address)

    def close(self) -> None:
        """Stop background work and close the client. The store stays open."""
        super().close()
        if "containerd" in self.__dict__:
            self.containerd.close()

    @cached_property
    def _space(self) -> LocalNamespace:
        return self.store.namespace(_SPACE)


def plugin_methods(plugin: Plugin) -> dict[str, Method]:
    """The methods of the plugin endpoint, by path."""
    from lamella.protocol.proto import content_pb2, diff_pb2, health_pb2, snapshots_pb2
    from lamella.service.services.content import Content
    from lamella.service.services.diff import Diff
    from lamella.service.services.health import Health
    from lamella.service.services.snapshots import Snapshots

    health = Health()
    plugin.endings.append(health.leave)
    return {
        **methods(snapshots_pb2.DESCRIPTOR, Snapshots(plugin)),
        **methods(diff_pb2.DESCRIPTOR, Diff(plugin)),
        **methods(content_pb2.DESCRIPTOR, Content(plugin)),
        **methods(health_pb2.DESCRIPTOR, health, name="grpc.health.v1.Health"),
    }


class _AllBlobs:
    """The blobs of the plugins' store and of containerd's content store."""

    def __init__(self, plugin: Plugin, call: Call) -> None:
        self._plugin = plugin
        self._call = call

    def open(self, digest: Digest) -> BinaryIO:
        """Open a blob. Raises NotFound, Unavailable (containerd does not answer)."""
        try:
            return self._plugin.space(self._call).content.open(digest)
        except NotFound:
            pass
        for namespace in self._plugin.namespaces(self._call):
            try:
                return self._plugin.containerd.namespace(namespace).content.open(digest)
            except NotFound:
                continue
        raise NotFound(f"containerd has no blob {digest}")


def _paths(mount: Mount) -> tuple[Path, ...]:
    match mount:
        case BindMount(source, _):
            return (source,)
        case OverlayMount(lower, upper, _, _):
            return lower if upper is None else (upper, *lower)
        case ErofsMount(image, _):
            return (image,)
        case WindowsLayerMount(folder, parents, _) | CimMount(folder, _, parents, _, _):
            return (folder, *parents)
        case BlockCimMount(source, images, _, _, _, _):
            return (source, *images)
        case AddedMount(_, place, parents, _):
            return (place, *parents)
        case _:
            assert_never(mount)


# Configuration -----------------------------------------------------------------------------------------------------


def containerd_config(address: Path, root: Path, version: int, platform: str) -> str:
    """TOML for containerd's configuration, of ``version`` 2 (containerd 1.7) or 3 (2.x).

    ``address`` is the plugins' socket, ``root`` the root of the main store.
    """
    socket = _quoted(str(address))
    lines = [
        f"version = {version}",
        "",
        f'# To keep blobs here too, add `[proxy_plugins.{CONTENT}]`, with the same address and `type = "content"`,',
        '# and `disabled_plugins = ["io.containerd.content.v1.content"]` here, since containerd has one content store.',
        "",
    ]
    for name, kind in PROXY_SNAPSHOTTERS.items():
        place = root / FOLDER / SNAPSHOTS / kind
        lines += [f"[proxy_plugins.{name}]", '  type = "snapshot"', f"  address = {socket}"]
        lines += [f"  [proxy_plugins.{name}.exports]", f"    root = {_quoted(str(place))}"]
    lines += [f"[proxy_plugins.{DIFFER}]", '  type = "diff"', f"  address = {socket}", ""]
    lines += ['[plugins."io.containerd.service.v1.diff-service"]', f'  default = ["{DIFFER}", "walking"]']
    # This list replaces containerd's own, whose only entry is the last one.
    for name, differ in (*((name, DIFFER) for name in PROXY_SNAPSHOTTERS), ("overlayfs", "walking")):
        lines += [
            "",
            '[[plugins."io.containerd.transfer.v1.local".unpack_config]]',
            f'  platform = "{platform}"',
            f'  snapshotter = "{name}"',
            f'  differ = "{differ}"',
        ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A basic string in TOML."""
    import json

    return json.dumps(text)
