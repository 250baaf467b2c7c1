# SPDX-License-Identifier: Apache-2.0
"""When a request is tried again, and how long to wait before."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from lamella.errors import LamellaError
from lamella.progress import Cancellation

if TYPE_CHECKING:
    from lamella.images.options import RegistryOptions

RETRYABLE: Final = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses of failures that may pass."""

ENOUGH: Final = 1 << 20
"""Bytes of progress after which the count of failures starts again."""

FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 15.0
_POLL: Final = 0.1
"""Seconds between two looks at the cancellation."""


class Retries:
    """The tries that one request has left, and the time for failed tries and the pauses between them."""

    def __init__(self, options: RegistryOptions) -> None:
        self._options = options
        self._tries = 1
        self._left = options.retry_wait
        self._progress = 0
        self._began = time.monotonic()

    def begin(self) -> None:
        """Note the time at which a try begins."""
        self._began = time.monotonic()

    def pause(self, error: LamellaError, after: float | None = None) -> None:
        """Wait before the next try, after one failed with ``error``.

        The pause is ``after`` seconds, as the server asked, or grows from try to try. Raises ``error`` if no try or
        time is left, Cancelled.
        """
        if self._tries >= self._options.tries:
            raise error
        wait = after
        if wait is None:
            import random

            # Clients that were cut off together must not come back together.
            wait = min(FIRST_PAUSE * 2 ** (self._tries - 1), LONGEST_PAUSE) * random.uniform(0.5, 1.5)  # noqa: S311
        self._left -= time.monotonic() - self._began + wait
        if self._left < 0:
            raise error
        self._tries += 1
        sleep(wait, self._options.cancel)

    def progress(self, size: int) -> None:
        """Count ``size`` bytes of progress; enough of them restore all tries and all time.

        Fewer do not, or a server that sends one byte a try could hold a client forever.
        """
        self._progress += size
        if self._progress >= ENOUGH:
            self._progress = 0
            self._tries = 1
            self._left = self._options.retry_wait
            self._began = time.monotonic()


def sleep(seconds: float, cancel: Cancellation | None) -> None:
    """Wait. Raises Cancelled soon after a cancellation."""
    if cancel is None:
        time.sleep(seconds)
        return
    end = time.monotonic() + seconds
    cancel.check()
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _POLL))
        cancel.check()


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that ``Retry-After`` asks for, as a number or a date; None if it is absent or malformed."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    if not text:
        return None
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
