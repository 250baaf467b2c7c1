# SPDX-License-Identifier: Apache-2.0
"""A snapshotter that keeps each snapshot as a complete copy of its parent."""

from __future__ import annotations

from lamella.store.snapshots.drivers.native import NativeDriver
from lamella.store.snapshots.kinds import SnapshotterKind


class CopiesDriver(NativeDriver):
    """The native driver under another name."""

    name = "copies"


COPIES = SnapshotterKind(lambda root, verity: CopiesDriver(), "directory")
