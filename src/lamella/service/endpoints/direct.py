# SPDX-License-Identifier: Apache-2.0
"""The direct endpoint: a store as containerd's clients see a containerd, and what its services share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from lamella.service.gc_scheduler import Collector
from lamella.service.grpc.rpc import Call, Method
from lamella.service.services.event_bus import Bus
from lamella.store.store import Space, Store

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from lamella.service.services.diff import Blobs, ReadableBlobs
    from lamella.store.contract import Mount, Snapshotter


class Direct:
    """A store that is served, with its events and its collector."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.bus = Bus()
        self.collector = Collector(store, self.bus)
        self.endings: list[Callable[[], None]] = [self.bus.close]
        """What ends calls that would go on for ever; `leave` calls them."""

    def space(self, call: Call) -> Space:
        """The namespace that a call is about, under its lease. Raises Conflict where it names none, InvalidInput."""
        return self.store.namespace(call.namespace, call.lease)

    def collect(self, *, wait: bool) -> None:
        """Collect after a deletion: soon, or now where the client waits for it. Raises what a collection raises."""
        if wait:
            self.collector.collect()
        else:
            self.collector.ask()

    def snapshotter(self, name: str, call: Call) -> Snapshotter:
        """See `lamella.service.services.snapshots.Snapshotting`."""
        return self.space(call).snapshots(name)

    def happened(self, call: Call, topic: str, event: Message) -> None:
        """See `lamella.service.services.snapshots.Snapshotting`."""
        self.bus.publish(call.namespace, topic, event)

    def reading(self, call: Call) -> AbstractContextManager[ReadableBlobs]:
        """See `lamella.service.services.diff.Diffing`."""
        return nullcontext(self.space(call).content)

    def writing(self, call: Call, mounts: Sequence[Mount]) -> AbstractContextManager[Blobs]:  # noqa: ARG002
        """See `lamella.service.services.diff.Diffing`. Whoever calls has a lease, if what is made is to last."""
        return nullcontext(self.space(call).content)

    def methods(self) -> Mapping[str, Method]:
        """What is served, by path."""
        from lamella.service.endpoints import router

        return router.direct(self)

    def leave(self) -> None:
        """The server is being stopped: end calls that last as long as their clients like."""
        for end in self.endings:
            end()

    def close(self) -> None:
        """End what goes on by itself. The store stays open."""
        self.bus.close()
        self.collector.close()
