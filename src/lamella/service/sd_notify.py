# SPDX-License-Identifier: Apache-2.0
"""What systemd and its like give a service and are told by it; nothing where there is none (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Final

_FIRST: Final = 3
_MICROSECOND: Final = 1e-6


def inherited() -> Sequence[tuple[str, socket.socket]]:
    """The sockets that were opened for this process, which listen, each after the name it was given; mostly none."""
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
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):  # they are nobody else's
        os.environ.pop(name, None)
    return found


def notify(state: str) -> None:
    """Tell of ``state``, as in ``READY=1``. Raises nothing: nobody may be listening (sd_notify(3))."""
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
    """Seconds after which this process is to say ``WATCHDOG=1`` again; None where nobody waits for it.

    That is half of what the supervisor allows (sd_watchdog_enabled(3)).
    """
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        allowed = int(os.environ.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    return allowed * _MICROSECOND / 2 if allowed > 0 else None
