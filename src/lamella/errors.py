# SPDX-License-Identifier: Apache-2.0
"""Every error that Lamella raises on purpose, by category, and one table that gives each its codes."""

from __future__ import annotations

from typing import Final


class LamellaError(Exception):
    """Base of all errors raised on purpose; its text is one line, lower case, without a final period.

    ``hint`` is a next step for a person, or None.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class InvalidInput(LamellaError):
    """What was given is malformed: a name, a document, an archive, an argument."""


class NotFound(LamellaError):
    """What was asked for is not there."""


class AlreadyExists(LamellaError):
    """What should be made is there already."""


class Conflict(LamellaError):
    """The state of things does not allow the step (a failed precondition)."""


class Unsupported(LamellaError):
    """Well formed, but this place, host or version of Lamella cannot do it."""


class Integrity(LamellaError):
    """Bytes are not the bytes that were promised."""


class Denied(LamellaError):
    """The system refused for want of rights."""


class Unavailable(LamellaError):
    """Not now; the same call may work later."""


class Exhausted(LamellaError):
    """A limit was reached: of space, of size, of entries, of memory."""


class Cancelled(LamellaError):
    """The caller asked to stop."""


class UnsafePath(InvalidInput):
    """A name that could lead out of its root."""

    def __init__(self, raw: str, why: str, *, hint: str | None = None) -> None:
        super().__init__(f"unsafe path {raw!r}: {why}", hint=hint)
        self.raw = raw


class FormatError(InvalidInput):
    """Bytes that do not follow their format; names the structure and the offset where reading stopped."""

    def __init__(self, structure: str, offset: int, problem: str) -> None:
        super().__init__(f"{structure} at offset {offset}: {problem}")
        self.structure = structure
        self.offset = offset
        self.problem = problem


class DigestMismatch(Integrity):
    """The digest of ``what`` is not the expected one."""

    def __init__(self, what: str, *, expected: str, actual: str) -> None:
        super().__init__(f"{what}: expected digest {expected}, got {actual}")
        self.expected = expected
        self.actual = actual


class SizeMismatch(Integrity):
    """The size of ``what``, in bytes, is not the expected one."""

    def __init__(self, what: str, *, expected: int, actual: int | str) -> None:
        super().__init__(f"{what}: expected {expected} bytes, got {actual}")
        self.expected = expected
        self.actual = actual


class StreamConsumed(Conflict):
    """A one-shot stream was used too late or twice."""


class MissingFacet(InvalidInput):
    """An entry lacks the facet (POSIX or Windows) that the place needs."""

    def __init__(self, path: str, facet: str) -> None:
        super().__init__(
            f"{path!r} has no {facet} metadata",
            hint=f"convert the layer with a stage that gives its entries a {facet} facet",
        )


class LossRefused(Unsupported):
    """The place cannot hold something, and the caller's policy is to stop then."""


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
"""Category, exit code of the command line, name of the gRPC status. 1 is any other failure, 2 wrong usage."""


def exit_code(error: BaseException) -> int:
    """The exit code of the command line for ``error``."""
    for category, code, _ in EXIT_STATUS:
        if isinstance(error, category):
            return code
    return 1


def from_os(error: OSError, doing: str) -> LamellaError:
    """The category that fits a failed system call; ``doing`` says what was tried, as in ``create 'a/b'``."""
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
