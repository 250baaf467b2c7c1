# SPDX-License-Identifier: Apache-2.0
"""Messages of containerd's services, and conversions between them and the store's values."""

from __future__ import annotations

from typing import Final

NAMESPACE: Final = "containerd-namespace"
LEASE: Final = "containerd-lease"
"""Header names."""

MAX_MESSAGE: Final = 16 << 20
"""Bytes of a message at most, in either direction."""
