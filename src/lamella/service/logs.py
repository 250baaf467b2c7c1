# SPDX-License-Identifier: Apache-2.0
"""What a service writes about itself: a line for each thing that happens, for people or for programs."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Final

FORMATS: Final = ("text", "json")

FIELDS: Final = ("method", "code")
"""What a record may say apart from its message, for programs."""


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: record.__dict__[name] for name in FIELDS if name in record.__dict__},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _Text(logging.Formatter):
    """A line for people, with where an error came from beneath it."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname.lower()}: {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(record: logging.LogRecord) -> str:
    """To the millisecond, always as many characters."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def start(form: str, *, debug: bool = False) -> None:
    """Have the log of this process written to standard error, one line at a time."""
    out = logging.StreamHandler(sys.stderr)
    out.setFormatter(_Json() if form == "json" else _Text())
    root = logging.getLogger("lamella")
    root.handlers[:] = [out]
    root.propagate = False
    root.setLevel(logging.DEBUG if debug else logging.INFO)
