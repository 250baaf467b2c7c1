# SPDX-License-Identifier: Apache-2.0
"""The service's side of systemd: inherited sockets, readiness and watchdog (sd_listen_fds(3), sd_notify(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Final

_FIRST: Final = 3
_MICROSECOND: Final = 1e-6


def inherited() -> Sequence[tuple[str, socket.socket]]:
    """Listening sockets passed by the service manager, with their names; none without one."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return ()
    try:
        count = int(os.environ.get("LISTEN_FDS", "0"))
    except ValueError:
        return ()
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found = []
    for at in range(count):
        os.set_inheritable(_FIRST + at, False)
        found.append((names[at] if at < len(names) else "", socket.socket(fileno=_FIRST + at)))
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):  # child processes must not claim them
        os.environ.pop(name, None)
    return found


def notify(state: str) -> None:
    """Send a state such as ``READY=1`` to the service manager, if there is one. Raises nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(address)
            sender.send(state.encode())
    except OSError:
        pass


def watchdog() -> float | None:
    """Seconds between ``WATCHDOG=1`` states: half of the service manager's timeout; None without a watchdog.

    See sd_watchdog_enabled(3).
    """
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        allowed = int(os.environ.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    return allowed * _MICROSECOND / 2 if allowed > 0 else None
