# SPDX-License-Identifier: Apache-2.0
"""What systemd and its like give a service and are told by it; nothing where there is none (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Final

_FIRST: Final = 3


def inherited() -> Sequence[socket.socket]:
    """The sockets that were opened for this process, which listen; mostly none."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return ()
    try:
        count = int(os.environ.get("LISTEN_FDS", "0"))
    except ValueError:
        return ()
    found = []
    for number in range(_FIRST, _FIRST + count):
        os.set_inheritable(number, False)
        found.append(socket.socket(fileno=number))
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
