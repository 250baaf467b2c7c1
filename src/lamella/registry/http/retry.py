# SPDX-License-Identifier: Apache-2.0
"""How long to go on asking, and how long to wait in between."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from lamella.errors import LamellaError
from lamella.progress import Cancellation

if TYPE_CHECKING:
    from lamella.images.options import RegistryOptions

PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses that another try may be spared."""

ENOUGH: Final = 1 << 20
"""Bytes of a body by which a failure after them does not add to those before."""

_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 15.0
_GLANCE: Final = 0.1
"""Seconds between two looks at the cancellation."""


class Patience:
    """The tries that one request has, and the time for all pauses between them."""

    def __init__(self, options: RegistryOptions) -> None:
        self._options = options
        self._tries = 1
        self._left = options.retry_wait
        self._come = 0

    def pause(self, error: LamellaError, after: float | None = None) -> None:
        """Wait before the next try: ``after`` seconds as the server asked, or longer from try to try.

        Raises ``error`` where there is to be none, Cancelled.
        """
        if self._tries >= self._options.tries:
            raise error
        wait = after
        if wait is None:
            import random

            # Clients that were cut off together should not come back together.
            wait = min(_FIRST_PAUSE * 2 ** (self._tries - 1), _LONGEST_PAUSE) * random.uniform(0.5, 1.5)  # noqa: S311
        if wait > self._left:
            raise error
        self._tries += 1
        self._left -= wait
        sleep(wait, self._options.cancel)

    def progress(self, size: int) -> None:
        """``size`` bytes have come; after enough of them the next failure is the first again.

        A few do not count, or somebody who gives one at a time could go on for ever.
        """
        self._come += size
        if self._come >= ENOUGH:
            self._come = 0
            self._tries = 1
            self._left = self._options.retry_wait


def sleep(seconds: float, cancel: Cancellation | None) -> None:
    """Wait. Raises Cancelled soon after that is wished."""
    if cancel is None:
        time.sleep(seconds)
        return
    end = time.monotonic() + seconds
    cancel.check()
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _GLANCE))
        cancel.check()


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that ``Retry-After`` asks for, by number or date; None where it says nothing that can be read."""
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
