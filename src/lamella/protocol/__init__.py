# SPDX-License-Identifier: Apache-2.0
"""What containerd's services say to each other: their messages, and the store's values in them."""

from __future__ import annotations

from typing import Final

NAMESPACE: Final = "containerd-namespace"
LEASE: Final = "containerd-lease"
"""Names of headers."""

MAX_MESSAGE: Final = 16 << 20
"""Bytes of the largest message either way."""
