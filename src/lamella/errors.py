# SPDX-License-Identifier: Apache-2.0
"""The errors that Lamella raises, by category, and the table of their exit codes and gRPC statuses."""

from __future__ import annotations

from typing import Final


class LamellaError(Exception):
    """Base of all errors that Lamella raises; the message is one line, lower case, without a final period.

    ``hint`` is a next step for the user, or None.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class InvalidInput(LamellaError):
    """Malformed input: a name, a document, an archive, an argument."""


class NotFound(LamellaError):
    """The requested object does not exist."""


class AlreadyExists(LamellaError):
    """The object to be created already exists."""


class Conflict(LamellaError):
    """The current state does not allow the operation (a failed precondition)."""


class Unsupported(LamellaError):
    """Well-formed input that this place, host or version of Lamella cannot handle."""


class Integrity(LamellaError):
    """Data does not match its digest, size or format: corruption."""


class Denied(LamellaError):
    """The system denied permission."""


class Unavailable(LamellaError):
    """Temporarily unavailable; the same call may succeed later."""


class Exhausted(LamellaError):
    """A limit was reached: disk space, size, entries, memory."""


class Cancelled(LamellaError):
    """The operation was cancelled."""


class UnsafePath(InvalidInput):
    """A path that could escape its root."""

    def __init__(self, raw: str, why: str, *, hint: str | None = None) -> None:
        super().__init__(f"unsafe path {raw!r}: {why}", hint=hint)
        self.raw = raw


class FormatError(InvalidInput):
    """Bytes that violate their format; names the structure and the offset in bytes."""

    def __init__(self, structure: str, offset: int, problem: str) -> None:
        super().__init__(f"{structure} at offset {offset}: {problem}")
        self.structure = structure
        self.offset = offset
        self.problem = problem


class DigestMismatch(Integrity):
    """The digest of ``what`` differs from the expected one."""

    def __init__(self, what: str, *, expected: str, actual: str) -> None:
        super().__init__(f"{what}: expected digest {expected}, got {actual}")
        self.expected = expected
        self.actual = actual


class SizeMismatch(Integrity):
    """The size of ``what``, in bytes, differs from the expected one."""

    def __init__(self, what: str, *, expected: int, actual: int | str) -> None:
        super().__init__(f"{what}: expected {expected} bytes, got {actual}")
        self.expected = expected
        self.actual = actual


class StreamConsumed(Conflict):
    """A one-shot stream was read twice or too late."""


class MissingFacet(InvalidInput):
    """An entry lacks the metadata facet (POSIX or Windows) that the place needs."""

    def __init__(self, path: str, facet: str) -> None:
        super().__init__(
            f"{path!r} has no {facet} metadata",
            hint=f"convert the layer with a transform that adds a {facet} facet to its entries",
        )


class LossRefused(Unsupported):
    """The place cannot store something, and the caller asked to stop at the first loss."""


EXIT_STATUS: Final[tuple[tuple[type[LamellaError], int, str], ...]] = (
    (InvalidInput, 3, "INVALID_ARGUMENT"),
    (NotFound, 4, "NOT_FOUND"),
    (AlreadyExists, 5, "ALREADY_EXISTS"),
    (Conflict, 6, "FAILED_PRECONDITION"),
    (Unsupported, 7, "UNIMPLEMENTED"),
    (Integrity, 8, "DATA_LOSS"),
    (Denied, 9, "PERMISSION_DENIED"),
    (Unavailable, 10, "UNAVAILABLE"),
    (Exhausted, 11, "RESOURCE_EXHAUSTED"),
    (Cancelled, 130, "CANCELLED"),
)
"""Category, exit code, gRPC status. Exit code 1 is any other failure, 2 wrong usage."""


def exit_code(error: BaseException) -> int:
    """The exit code of the command line for ``error``."""
    for category, code, _ in EXIT_STATUS:
        if isinstance(error, category):
            return code
    return 1


def from_os(error: OSError, doing: str) -> LamellaError:
    """Convert a failed system call into the matching category; ``doing`` describes the call: ``create 'a/b'``."""
    import errno

    text = f"{doing}: {error.strerror or error}"
    code = error.errno
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Exhausted(text, hint="free some space in the target's file system and run again")
    if code in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EMLINK):
        return Exhausted(text)
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Denied(text)
    if code == errno.ENOENT:
        return NotFound(text)
    if code in (errno.EEXIST, errno.ENOTEMPTY):
        return AlreadyExists(text)
    if code in (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EXDEV):
        return Conflict(text)
    if code in (errno.ENOTSUP, errno.ENOSYS):
        return Unsupported(text)
    if code in (errno.ENAMETOOLONG, errno.EINVAL):
        return InvalidInput(text)
    return LamellaError(text)
