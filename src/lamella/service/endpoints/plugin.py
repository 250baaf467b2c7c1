# SPDX-License-Identifier: Apache-2.0
"""The plugin endpoint: a snapshotter, a differ and a content store for a containerd (its ``[proxy_plugins]``).

containerd keeps the names, the labels, the leases and the collection, and hands through keys of its own making. Its
collector removes whatever is here and it does not know of, and what is here is no more than that: so the store is one
of its own, without namespaces, and nothing is collected in it. One store serves one containerd.
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
"""Where the plugins' store is in the other one."""

SOCKET: Final = "/run/lamella/plugin.sock"

LASTING: Final = 600
"""Seconds that a lease lasts which keeps a new blob until whoever asked for it has made use of it."""

PROXY_SNAPSHOTTERS: Final = {"lamella": "overlayfs", "lamella-native": "native", "lamella-erofs": "erofs"}
"""Names of plugins, under which containerd asks for snapshots -> snapshotters of the store."""
DIFFER: Final = "lamella-diff"
CONTENT: Final = "lamella-content"

_SPACE: Final = "plugin"


@contextmanager
def opened_plugin(root: Path, containerd: str = CONTAINERD, *, verity: str = "") -> Iterator[Plugin]:
    """The plugins whose store is beneath the one at ``root``, made where it is missing. Raises as `Store.open`."""
    with Store.open(root / FOLDER, verity=verity) as store:
        plugin = Plugin(store, containerd)
        try:
            yield plugin
        finally:
            plugin.close()


class Plugin(ServedStore):
    """The plugins' store, and the containerd that they are plugins of."""

    def __init__(self, store: Store, containerd: str = CONTAINERD) -> None:
        """``containerd`` is its main socket; it is called back there for the blobs of its own."""
        super().__init__(store)
        self._address = containerd

    def space(self, call: Call) -> LocalNamespace:  # noqa: ARG002  # namespaces are not ours, nor are leases known here
        """The same for all."""
        return self._space

    def snapshotter(self, name: str, call: Call) -> Snapshotter:
        """See `lamella.service.services.snapshots.Snapshotting`; ``name`` is the plugin's."""
        kind = PROXY_SNAPSHOTTERS.get(name)
        if kind is None:
            raise InvalidInput(
                f"there is no snapshot plugin {name!r} here", hint=f"name it one of {', '.join(PROXY_SNAPSHOTTERS)}"
            )
        return self.space(call).snapshots(kind)

    def happened(self, call: Call, topic: str, event: Message) -> None:
        """Nobody listens here: containerd tells of what its plugins do."""

    def collect(self, *, wait: bool) -> None:
        """Not here, where all would look as if nobody needed it."""

    def reading(self, call: Call) -> AbstractContextManager[_Everywhere]:
        """Containerd's blobs, and those that are here because it keeps them here."""
        return nullcontext(_Everywhere(self, call))

    @contextmanager
    def writing(self, call: Call, mounts: Sequence[Mount]) -> Iterator[Blobs]:
        """Containerd's content store, under the lease that came with the call or else one that lasts some minutes.

        Raises Unsupported where nobody says which namespace it is about, so that containerd goes on to its next differ.
        """
        space = self.containerd.namespace(call.metadata.get(NAMESPACE) or self._namespace_of(mounts))
        lease = call.lease
        if lease is None:
            expire = format_rfc3339((time.time_ns() // SECOND + LASTING) * SECOND)
            lease = space.leases.create(f"lamella-{secrets.token_hex(8)}", {EXPIRE: expire}).id
        yield space.under(lease).content

    def namespaces(self, call: Call) -> list[str]:
        """Those that a blob may be in: the one that came with the call, or, from containerd 1.7, each that there is."""
        named = call.metadata.get(NAMESPACE)
        return [named] if named else [one.name for one in self.containerd.namespaces.list()]

    def _namespace_of(self, mounts: Sequence[Mount]) -> str:
        """The namespace of a snapshot that is here: containerd begins its keys with it, ``NAMESPACE/NUMBER/KEY``."""
        home = self.store.root / SNAPSHOTS
        for path in (path for mount in mounts for path in _paths(mount) if path.is_relative_to(home)):
            number = path.relative_to(home).parts[1]
            key = self.store.snapshot_key(int(number)) if number.isdecimal() else None
            namespace, slash, _ = (key or "").partition("/")
            if slash:
                return namespace
        raise Unsupported("containerd has not said which namespace the layer is for, and the mounts are not of here")

    @cached_property
    def containerd(self) -> RemoteStore:
        """The one that is called back."""
        from lamella.client.remote import RemoteStore

        return RemoteStore(self._address)

    def close(self) -> None:
        """End what goes on by itself. The store stays open."""
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


class _Everywhere:
    """Blobs wherever they are."""

    def __init__(self, plugin: Plugin, call: Call) -> None:
        self._plugin = plugin
        self._call = call

    def open(self, digest: Digest) -> BinaryIO:
        """The bytes. Raises NotFound, Unavailable (containerd does not answer)."""
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
    """What to put into containerd's configuration, of ``version`` 2 (containerd 1.7) or 3 (2.x), in TOML.

    ``address`` is the plugins' socket, ``root`` the root of the store that they are served from.
    """
    socket = _quoted(str(address))
    lines = [
        f"version = {version}",
        "",
        f'# Blobs kept by Lamella too: add `[proxy_plugins.{CONTENT}]`, with the same address and `type = "content"`,',
        '# and `disabled_plugins = ["io.containerd.content.v1.content"]` here, since there can be one store of them.',
        "",
    ]
    for name, kind in PROXY_SNAPSHOTTERS.items():
        place = root / FOLDER / SNAPSHOTS / kind
        lines += [f"[proxy_plugins.{name}]", '  type = "snapshot"', f"  address = {socket}"]
        lines += [f"  [proxy_plugins.{name}.exports]", f"    root = {_quoted(str(place))}"]
    lines += [f"[proxy_plugins.{DIFFER}]", '  type = "diff"', f"  address = {socket}", ""]
    lines += ['[plugins."io.containerd.service.v1.diff-service"]', f'  default = ["{DIFFER}", "walking"]']
    # A list of these replaces the one that containerd has by itself, which is the last of them.
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
    """A basic string of TOML."""
    import json

    return json.dumps(text)
