# SPDX-License-Identifier: Apache-2.0
"""Times as whole nanoseconds since the Unix epoch; nothing here goes through a float."""

from __future__ import annotations

import os
import re
from typing import Final

from lamella.errors import InvalidInput

SECOND: Final = 1_000_000_000

_PAX_TIME: Final = re.compile(r"(-?)([0-9]{1,19})(?:\.([0-9]*))?")


def parse_pax_time(text: str) -> int:
    """Nanoseconds of a PAX time, ``[-]seconds[.fraction]``; digits past the ninth are dropped.

    Raises InvalidInput.
    """
    match = _PAX_TIME.fullmatch(text)
    if match is None:
        raise InvalidInput(f"malformed PAX time {text[:40]!r}")
    sign, seconds, fraction = match.groups()
    value = int(seconds) * SECOND + int((fraction or "")[:9].ljust(9, "0"))
    return -value if sign else value


def format_pax_time(ns: int) -> str:
    """The shortest PAX time for ``ns``: no trailing zeros, the sign before the whole number."""
    seconds, fraction = divmod(abs(ns), SECOND)
    text = f"{'-' if ns < 0 else ''}{seconds}"
    return f"{text}.{fraction:09d}".rstrip("0") if fraction else text


def source_date_epoch() -> int | None:
    """Nanoseconds that ``SOURCE_DATE_EPOCH`` gives, or None where it is unset or empty.

    Raises InvalidInput where it is not a whole number of seconds.
    """
    raw = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not raw:
        return None
    if not re.fullmatch(r"[0-9]{1,12}", raw):
        raise InvalidInput(f"SOURCE_DATE_EPOCH must be a whole number of seconds, not {raw[:40]!r}")
    return int(raw) * SECOND
