# SPDX-License-Identifier: Apache-2.0
"""A hundred clients at once, for a moment; `python -m benchmarks.service clients` is the long form."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from benchmarks.service import crowd
from tests.unit.service.serving import running

from lamella.service.endpoints.direct import direct_methods
from lamella.service.services.served_store import ServedStore
from lamella.store.store import Store

CLIENTS = 100


@pytest.mark.root
def test_a_hundred_clients_at_once_are_served_and_leave_nothing_behind(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Store.open(tmp_path / "root") as store:
        shared = ServedStore(store)
        with running(tmp_path / "socket", direct_methods(shared)) as server:
            rounds, failures = crowd(str(tmp_path / "socket"), CLIENTS, time.time() + 2, 0)
            assert failures == []
            assert rounds >= CLIENTS
            end = time.monotonic() + 10
            while server.connections or server.calls:
                assert time.monotonic() < end
                time.sleep(0.01)
        shared.close()
        for namespace in store.namespaces.list():
            space = store.namespace(namespace.name)
            assert (space.content.statuses(), space.images.list(), space.leases.list()) == ([], [], [])
            assert space.snapshots("overlayfs").list() == []
    assert len(os.listdir("/proc/self/fd")) <= before + 5
