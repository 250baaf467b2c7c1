# SPDX-License-Identifier: Apache-2.0
"""A store that is served: what the services of one endpoint share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from lamella.service.gc_scheduler import Collector
from lamella.service.grpc.rpc import Call
from lamella.service.services.events import Bus
from lamella.store.store import LocalNamespace, Store

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from lamella.service.services.diff import Blobs, ReadableBlobs
    from lamella.store.contract import Mount, Snapshotter


class ServedStore:
    """A store with its event bus and its garbage collector, as containerd's clients see a containerd.

    `Snapshotting` and `Diffing` say what the Snapshots and Diff services need of it.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.bus = Bus()
        self.collector = Collector(store, self.bus)
        self.endings: list[Callable[[], None]] = [self.bus.close]
        """Functions that end calls of unlimited duration; `leave` calls them."""

    def space(self, call: Call) -> LocalNamespace:
        """The namespace and lease of a call. Raises Conflict (no namespace named), InvalidInput."""
        return self.store.namespace(call.namespace, call.lease)

    def collect(self, *, wait: bool) -> None:
        """Collect garbage after a deletion: soon, or before returning. Raises the collection's errors if it waits."""
        if wait:
            self.collector.collect()
        else:
            self.collector.ask()

    def snapshotter(self, name: str, call: Call) -> Snapshotter:
        return self.space(call).snapshots(name)

    def happened(self, call: Call, topic: str, event: Message) -> None:
        self.bus.publish(call.namespace, topic, event)

    def reading(self, call: Call) -> AbstractContextManager[ReadableBlobs]:
        return nullcontext(self.space(call).content)

    def writing(self, call: Call, mounts: Sequence[Mount]) -> AbstractContextManager[Blobs]:  # noqa: ARG002
        # Clients hold new blobs by a lease.
        return nullcontext(self.space(call).content)

    def leave(self) -> None:
        """The server is stopping: end the calls that last as long as their clients want."""
        for end in self.endings:
            end()

    def close(self) -> None:
        """Stop background work. The store stays open."""
        self.bus.close()
        self.collector.close()
