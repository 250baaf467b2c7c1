# SPDX-License-Identifier: Apache-2.0
"""Errors as gRPC statuses: the code of each category, and the message for the client."""

from __future__ import annotations

import logging
from enum import IntEnum

from lamella.errors import EXIT_STATUS, Denied, InvalidInput, LamellaError, from_os

LOG = logging.getLogger("lamella.service")

_LONGEST = 4096
"""Characters of a status message at most."""


class Code(IntEnum):
    """gRPC's status codes (statuscodes.md)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15


class OutOfRange(InvalidInput):
    """An offset past the end of a blob, or not at the end of an ingest."""


class RefusedByPeer(Denied):
    """A third party, such as a registry, has refused the client's request."""


def status_of(error: BaseException, method: str) -> tuple[Code, str]:
    """The code and the message of ``error`` for a client; errors of the server's own are logged."""
    if isinstance(error, OSError):
        refusal = from_os(error, "the system refused")
        code = _code(refusal)
        LOG.error("%s failed: %s", method, error, exc_info=error, extra={"method": method, "code": code.name})
        return code, str(refusal)[:_LONGEST]
    if isinstance(error, LamellaError):
        code = _code(error)
        ours = code in (Code.UNKNOWN, Code.DATA_LOSS, Code.PERMISSION_DENIED) and not isinstance(error, RefusedByPeer)
        level = logging.ERROR if ours else logging.DEBUG
        LOG.log(level, "%s: %s: %s", method, code.name, error, extra={"method": method, "code": code.name})
        text = f"{error} ({error.hint})" if error.hint else str(error)
        return code, text[:_LONGEST]
    if isinstance(error, MemoryError):
        LOG.error("%s: out of memory", method, extra={"method": method, "code": Code.RESOURCE_EXHAUSTED.name})
        return Code.RESOURCE_EXHAUSTED, "out of memory"
    LOG.error("%s failed: this is a bug", method, exc_info=error, extra={"method": method, "code": Code.UNKNOWN.name})
    return Code.UNKNOWN, f"internal error: {type(error).__name__}"


def _code(error: LamellaError) -> Code:
    if isinstance(error, OutOfRange):
        return Code.OUT_OF_RANGE
    for category, _, name in EXIT_STATUS:
        if isinstance(error, category):
            return Code[name]
    return Code.UNKNOWN
