# SPDX-License-Identifier: Apache-2.0
"""Garbage collection after deletions: one thread, and one collection for deletions close together."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from lamella.errors import Unavailable
from lamella.protocol.proto.happenings_pb2 import SnapshotRemove
from lamella.protocol.proto.images_pb2 import ImageDelete
from lamella.service.services.events import Bus
from lamella.store.gc.collect import Collection, collect
from lamella.store.gc.labels import IMAGES, SNAPSHOTS
from lamella.store.store import Store

LOG = logging.getLogger("lamella.service")

_END: Final = 1.0
"""Seconds that a collection has to end when the service stops."""

PAUSE: Final = 0.1
"""Seconds from a deletion to the collection, in which further deletions join it."""


class Collector:
    """Runs collections. After `close`, the next start resumes a collection that was under way, as after a crash."""

    def __init__(
        self, store: Store, bus: Bus, *, pause: float = PAUSE, run: Callable[[Store], Collection] = collect
    ) -> None:
        """``pause`` is the time from a deletion to its collection, in seconds, and ``run`` collects."""
        self._store = store
        self._bus = bus
        self._pause = pause
        self._collect_store = run
        self._changed = threading.Condition()
        self._asked = 0
        self._done = 0
        self._hurry = 0
        self._closed = False
        self._problem: Exception | None = None
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        """Collect soon."""
        with self._changed:
            self._ask()

    def collect(self) -> None:
        """Wait for a collection that begins after this call. Raises its errors, Unavailable after `close`."""
        with self._changed:
            turn = self._ask()
            self._hurry += 1
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: self._done >= turn or self._closed)
            finally:
                self._hurry -= 1
            if self._done < turn:
                raise Unavailable("the service is being stopped")
            if self._problem is not None:
                raise self._problem

    def close(self) -> None:
        """Stop. Collections that were asked for and have not begun are left to the next start."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(_END)

    def _ask(self) -> int:
        if self._closed:
            raise Unavailable("the service is being stopped")
        self._asked += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
            self._thread.start()
        self._changed.notify_all()
        return self._asked

    def _run(self) -> None:
        pause = self._pause
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked > self._done or self._closed)
                self._changed.wait_for(lambda: self._hurry or self._closed, pause)
                if self._closed:
                    return
                turn = self._asked
            began = time.monotonic()
            problem: Exception | None = None
            try:
                self._collect()
            except Exception as error:  # the thread must go on; `collect` raises it
                if not self._closed:
                    LOG.exception("collection failed")
                problem = error
            took = time.monotonic() - began
            # At most a sixth of the time is for collections, also in a large store.
            pause = max(self._pause, 5 * took)
            with self._changed:
                self._done = turn
                self._problem = problem
                self._changed.notify_all()

    def _collect(self) -> None:
        done = self._collect_store(self._store)
        if done.removed:
            LOG.info("collected %s", ", ".join(f"{count} {kind}" for kind, count in done.counts.items()))
        for one in done.removed:
            if one.type == IMAGES:
                self._bus.publish(one.namespace, "/images/delete", ImageDelete(name=one.id))
            elif one.type.startswith(SNAPSHOTS):
                event = SnapshotRemove(key=one.id, snapshotter=one.type.removeprefix(SNAPSHOTS))
                self._bus.publish(one.namespace, "/snapshot/remove", event)
