# SPDX-License-Identifier: Apache-2.0
"""Times as integer nanoseconds since the Unix epoch; never a float."""

from __future__ import annotations

import os
import re
from typing import Final

from lamella.errors import InvalidInput

SECOND: Final = 1_000_000_000

_RFC3339: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:[.,]([0-9]+))?(Z|[+-][0-9]{2}:[0-9]{2})"
)
_SCALES: Final[tuple[int, ...]] = tuple(10 ** (9 - digits) for digits in range(10))
_PAX_TIME: Final = re.compile(r"(-?)([0-9]{1,19})(?:\.([0-9]*))?")


def parse_pax_time(text: str) -> int:
    """Parse a PAX time, ``[-]seconds[.fraction]``, into nanoseconds; digits past the ninth are dropped.

    Raises InvalidInput.
    """
    seconds, _, fraction = text.partition(".")
    if seconds.isdigit() and fraction.isdigit() and len(fraction) < 10 and len(seconds) < 20 and text.isascii():
        return int(seconds) * SECOND + int(fraction) * _SCALES[len(fraction)]
    match = _PAX_TIME.fullmatch(text)
    if match is None:
        raise InvalidInput(f"malformed PAX time {text[:40]!r}")
    sign, seconds, fraction = match.groups("")
    value = int(seconds) * SECOND + int(fraction[:9].ljust(9, "0"))
    return -value if sign else value


def format_pax_time(ns: int) -> str:
    """Format ``ns`` as the shortest PAX time: no trailing zeros, the sign first."""
    seconds, fraction = divmod(abs(ns), SECOND)
    text = f"{'-' if ns < 0 else ''}{seconds}"
    return f"{text}.{fraction:09d}".rstrip("0") if fraction else text


def parse_rfc3339(text: str) -> int:
    """Parse an RFC 3339 time (``2030-01-31T12:00:00.5+01:00``) into nanoseconds; drops digits past the ninth.

    Raises InvalidInput.
    """
    from datetime import datetime

    match = _RFC3339.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        date, fraction, zone = match.groups()
        when = datetime.fromisoformat(date + ("+00:00" if zone == "Z" else zone))
        since = when - datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    except (ValueError, OverflowError):
        raise InvalidInput(f"malformed time {text[:40]!r}: expected a form like 2030-01-31T12:00:00Z") from None
    return (since.days * 86400 + since.seconds) * SECOND + int((fraction or "")[:9].ljust(9, "0"))


def format_rfc3339(ns: int) -> str:
    """Format ``ns`` as an RFC 3339 time in UTC with a minimal fraction. Raises InvalidInput beyond year 9999."""
    from datetime import datetime, timedelta

    seconds, fraction = divmod(ns, SECOND)
    try:
        when = datetime(1970, 1, 1) + timedelta(seconds=seconds)  # noqa: DTZ001  # formatted as UTC below
    except OverflowError:
        raise InvalidInput(f"{ns} ns is outside the range of RFC 3339 times") from None
    digits = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{when.isoformat()}{digits}Z"


def source_date_epoch() -> int | None:
    """``SOURCE_DATE_EPOCH`` in nanoseconds, or None if it is unset or empty.

    Raises InvalidInput if it is not a whole number of seconds.
    """
    raw = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not raw:
        return None
    if not re.fullmatch(r"[0-9]{1,12}", raw):
        raise InvalidInput(f"SOURCE_DATE_EPOCH must be a whole number of seconds, not {raw[:40]!r}")
    return int(raw) * SECOND
