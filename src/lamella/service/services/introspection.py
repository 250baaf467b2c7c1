# SPDX-License-Identifier: Apache-2.0
"""The Introspection service: the server and its plugins, by which clients find features."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from google.protobuf.empty_pb2 import Empty

from lamella.errors import NotFound
from lamella.layers.kinds import LAYER_KINDS
from lamella.oci.platform import host_platform
from lamella.protocol.proto import introspection_pb2 as pb
from lamella.protocol.proto.types_pb2 import Platform
from lamella.service.differs.contract import Differ
from lamella.service.differs.table import all_differs
from lamella.service.grpc.rpc import Call, quick
from lamella.store.disk_layout import SNAPSHOTS
from lamella.store.metadata.filters import Path, parse_filters
from lamella.store.snapshots.kinds import SNAPSHOTTERS

if TYPE_CHECKING:
    from lamella.service.services.served_store import ServedStore

_CONTENT: Final = "io.containerd.content.v1"
_SNAPSHOTTER: Final = "io.containerd.snapshotter.v1"
_DIFFER: Final = "io.containerd.differ.v1"
_COLLECTOR: Final = "io.containerd.gc.v1"


class Introspection:
    """The Introspection service, with containerd's names of the plugins."""

    def __init__(self, shared: ServedStore) -> None:
        self._root = shared.store.root

    @quick()
    def server(self, request: Empty, call: Call) -> pb.ServerResponse:  # noqa: ARG002
        """Identity of the server, the same at each start for this store."""
        status = os.stat(self._root)
        identity = uuid.uuid5(uuid.NAMESPACE_URL, f"file://{os.uname().nodename}{self._root}#{status.st_ino}")
        return pb.ServerResponse(uuid=str(identity), pid=os.getpid(), pidns=_process_namespace())

    def plugins(self, request: pb.PluginsRequest, call: Call) -> pb.PluginsResponse:  # noqa: ARG002
        """The plugins that pass the filters."""
        wanted = parse_filters(tuple(request.filters))
        return pb.PluginsResponse(plugins=[one for one in self._plugins() if wanted.matches(_fields(one))])

    def plugin_info(self, request: pb.PluginInfoRequest, call: Call) -> pb.PluginInfoResponse:  # noqa: ARG002
        """One plugin. Raises NotFound."""
        for one in self._plugins():
            if (one.type, one.id) == (request.type, request.id):
                return pb.PluginInfoResponse(plugin=one)
        raise NotFound(f"there is no plugin {request.type}.{request.id}")

    def _plugins(self) -> list[pb.Plugin]:
        host = host_platform()
        here = Platform(os=host.os, architecture=host.architecture, variant=host.variant)
        windows = Platform(os="windows", architecture=host.architecture, variant=host.variant)
        found = [pb.Plugin(type=_CONTENT, id="content", exports={"root": str(self._root)})]
        for name, row in SNAPSHOTTERS.rows().items():
            exports = {"root": str(self._root / SNAPSHOTS / name)}
            platform = windows if row.windows else here
            found.append(pb.Plugin(type=_SNAPSHOTTER, id=name, platforms=[platform], exports=exports))
        found += [
            pb.Plugin(type=_DIFFER, id=differ.name, platforms=[windows if _is_windows(differ) else here])
            for differ in all_differs()
        ]
        found.append(pb.Plugin(type=_COLLECTOR, id="scheduler"))
        return found


def _is_windows(differ: Differ) -> bool:
    return any(LAYER_KINDS[kind].windows for kind in differ.layers)


def _fields(plugin: pb.Plugin) -> Callable[[Path], str | None]:
    def look(path: Path) -> str | None:
        match path:
            case ("type",):
                return plugin.type
            case ("id",):
                return plugin.id
            case _:
                return None

    return look


def _process_namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
