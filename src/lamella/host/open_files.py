# SPDX-License-Identifier: Apache-2.0
"""The limit of open files (RLIMIT_NOFILE): raised for this process, not for other programs that it starts.

The soft limit is 1,024 on most systems for the sake of programs that use select(2). This package does not; another
program may, or may close each possible descriptor at its start.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

_SHELL: Final = "/bin/sh"
_SCRIPT: Final = 'ulimit -S -n "$0"; exec "$@"'

_original: int | None = None
"""The soft limit that this process started with, once `raise_soft_limit` has changed it."""


def raise_soft_limit() -> None:
    """Raise this process's soft limit of open files to the hard one, where the system has such limits."""
    global _original  # noqa: PLW0603  # a limit belongs to the whole process
    try:
        import resource
    except ImportError:  # on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard or soft == resource.RLIM_INFINITY:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # macOS refuses more than its own OPEN_MAX
        return
    _original = soft


def with_original_limit(command: Sequence[str]) -> Sequence[str]:
    """The command line that runs another program, whose path ``command`` begins with, with the original soft limit.

    A shell lowers the limit and becomes the program. Python's ``preexec_fn`` is no way to do it: what runs between fork
    and exec must be async-signal-safe where there are threads.
    """
    if _original is None or not os.access(command[0], os.X_OK) or not os.access(_SHELL, os.X_OK):
        return command
    return [_SHELL, "-c", _SCRIPT, str(_original), *command]
