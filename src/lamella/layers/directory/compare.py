# SPDX-License-Identifier: Apache-2.0
"""Comparison of two directories for a diff, by several processes: most files are the same in both.

A pair of equal files costs system calls and interpreter time. So the two files are opened once, and content, metadata
and attributes all come from their descriptors. Threads cannot share the interpreter's part: with more than one
processor, worker processes that have the descriptors of both roots compare directories too. They only report which
pairs are certainly the same; this process looks at everything else again.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeAlias

from lamella.changes.model import Entry, Kind
from lamella.errors import LamellaError, Unavailable
from lamella.host import file_io
from lamella.layers.directory.content import OpenDirectory
from lamella.layers.directory.reader import DirectoryReader
from lamella.paths import ROOT, LayerPath, join

if TYPE_CHECKING:
    from lamella.host.worker import Channel

_STEP: Final = 256 << 10
_OPEN_DIRECTORIES: Final = 128
_SECOND: Final = 1_000_000_000

_BATCH: Final = 24
"""Directories in one message to a worker."""
_BATCHES: Final = 4
"""Batches that a worker has at most: one in work, and some that keep it from waiting for a busy parent."""
_WORTH: Final = 200
"""Directories from which on workers are started: an interpreter starts in about the time that so many take."""
_MOST_WORKERS: Final = 3
_MOST_UNUSED: Final = 4096
"""Directories that may be compared before the diff asks for them."""

_UNKNOWN: Final = 0
_SAME: Final = 1
"""In all respects, and with a single name each."""
_SAME_BYTES: Final = 2
"""In all respects but other names."""

ComparedDirectory: TypeAlias = tuple[bool, list[str], list[str], list[str], list[str]]
"""Whether the directory's own metadata are the same; the names in the lower and in the upper one, without equal files
and without directories that are in both; files that are equal but for their other names; the directories in both."""


class Pairs:
    """Compares directories, one at a time."""

    def __init__(self, lower: OpenDirectory, upper: OpenDirectory, *, exact: bool, xattrs: bool = True) -> None:
        self._lower, self._upper = lower, upper
        self._exact = exact
        self._xattrs = xattrs
        self._one, self._other = bytearray(_STEP), bytearray(_STEP)
        self._one_view, self._other_view = memoryview(self._one), memoryview(self._other)
        self._reads_first = True
        """Whether files are read before their metadata are compared: while no modification time is conclusive."""

    def compare(self, directory: LayerPath) -> ComparedDirectory:
        """Compare ``directory``, which must be in both. Raises OSError and LamellaError."""
        low, up = self._lower(directory), self._upper(directory)
        lows, low_files, low_directories = _scan(low)
        ups, up_files, up_directories = _scan(up)
        same: set[str] = set()
        linked: list[str] = []
        for name in low_files & up_files:
            verdict = self._same(name, low, up)
            if verdict == _SAME:
                same.add(name)
            elif verdict == _SAME_BYTES:
                linked.append(name)
        both = low_directories & up_directories
        same |= both
        return (
            _same_directory(low, up, xattrs=self._xattrs),
            [name for name in lows if name not in same],
            [name for name in ups if name not in same],
            linked,
            sorted(both, key=_bytes),
        )

    def _same(self, name: str, low: int, up: int) -> int:
        try:
            one = os.open(name, file_io.READ_FILE, dir_fd=low)
            try:
                other = os.open(name, file_io.READ_FILE, dir_fd=up)
                try:
                    return self._compare(one, other)
                finally:
                    os.close(other)
            finally:
                os.close(one)
        except OSError:  # the process that looks at the file again reports it
            return _UNKNOWN

    def _compare(self, one: int, other: int) -> int:
        if not self._reads_first:
            first, second = os.fstat(one), os.fstat(other)
            if not _same_facts(first, second):
                return _UNKNOWN
            if self._conclusive(first):
                return self._verdict(one, other, first, second, read=False)
            self._reads_first = True
        length = os.readv(one, (self._one,))
        if os.readv(other, (self._other,)) != length:
            return _UNKNOWN
        # The status comes after the data: a file written to meanwhile has a time that the other cannot have.
        first, second = os.fstat(one), os.fstat(other)
        if not _same_facts(first, second):
            return _UNKNOWN
        if self._conclusive(first):
            self._reads_first = False
            return self._verdict(one, other, first, second, read=False)
        if not self._one.startswith(self._other_view[:length]):
            return _UNKNOWN
        if first[6] != length and not self._same_rest(one, other, first, length):
            return _UNKNOWN
        return self._verdict(one, other, first, second, read=True)

    def _conclusive(self, status: os.stat_result) -> bool:
        """Whether an equal modification time proves equal content: it has a fraction, and the diff is not exact."""
        return not self._exact and status.st_mtime_ns % _SECOND != 0

    def _verdict(self, one: int, other: int, first: os.stat_result, second: os.stat_result, *, read: bool) -> int:
        if self._xattrs and not _same_xattrs(one, other):
            return _UNKNOWN
        if first[3] == second[3] == 1:
            return _SAME
        return _SAME_BYTES if read and first[6] else _UNKNOWN

    def _same_rest(self, one: int, other: int, before: os.stat_result, at: int) -> bool:
        """Compare large files from ``at``. Holes are left to those that know where they are."""
        size = before[6]
        if at != _STEP or before.st_blocks << 9 < size:
            return False
        while at < size:
            length = os.readv(one, (self._one,))
            if not length or os.readv(other, (self._other_view[:length],)) != length:
                return False
            if not self._one.startswith(self._other_view[:length]):
                return False
            at += length
        return at == size and _same_facts(before, os.fstat(one)) and _same_facts(before, os.fstat(other))


def _same_directory(one: int, other: int, *, xattrs: bool) -> bool:
    first, second = os.fstat(one), os.fstat(other)
    return (
        first[0] == second[0]
        and first[4] == second[4]
        and first[5] == second[5]
        and first.st_mtime_ns == second.st_mtime_ns
        and (not xattrs or _same_xattrs(one, other))
    )


def _same_xattrs(one: int, other: int) -> bool:
    """Whether all extended attributes are the same, also those that no layer reports."""
    names = _xattrs(one)
    return names == _xattrs(other) and all(os.getxattr(one, name) == os.getxattr(other, name) for name in names)


def _xattrs(file: int) -> list[str]:
    try:
        return os.listxattr(file)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return []


def _scan(directory: int) -> tuple[list[str], set[str], set[str]]:
    """All names, those of regular files, and those of directories; no file is opened."""
    names: list[str] = []
    files: set[str] = set()
    directories: set[str] = set()
    with os.scandir(directory) as scan:
        for found in scan:
            name = found.name
            names.append(name)
            if found.is_file(follow_symlinks=False):
                files.add(name)
            elif found.is_dir(follow_symlinks=False):
                directories.add(name)
    return names, files, directories


def _same_facts(one: os.stat_result, other: os.stat_result) -> bool:
    """Type and mode, owner, group, size and time."""
    return (
        one[0] == other[0]
        and one[4] == other[4]
        and one[5] == other[5]
        and one[6] == other[6]
        and one.st_mtime_ns == other.st_mtime_ns
        and stat.S_ISREG(one[0])
    )


class DirectoriesComparison:
    """A `lamella.changes.diff.Comparison` of two directory trees.

    Directories form a stack of jobs, the next one on top. This process compares the one that it needs; workers are
    given batches of those that follow.
    """

    def __init__(
        self,
        lower: DirectoryReader,
        upper: DirectoryReader,
        *,
        exact: bool,
        xattrs: bool = True,
        workers: int | None = None,
    ) -> None:
        """Compare with at most ``workers`` further processes; None for one less than there are processors."""
        self._lower, self._upper = lower, upper
        self._exact, self._xattrs = exact, xattrs
        self._pairs = Pairs(lower.descriptor, upper.descriptor, exact=exact, xattrs=xattrs)
        self._wanted = _MOST_WORKERS if workers is None else workers
        """The most workers to start; 0 once they have been started."""
        self._one_per_processor = workers is None
        self._workers: list[_PairsWorker] = []
        self._jobs: dict[LayerPath, _Job] = {}
        """Directories that the diff will ask for."""
        self._pending: list[_Job] = []
        """A LIFO queue of jobs that have not begun; may hold stale ones."""
        self._unused = 0
        """Jobs that have begun and were not asked for yet."""
        self._compared = 0
        self._linked: set[str] = set()
        """Files with several names whose content is known to be the same."""

    def entries(self, directory: LayerPath) -> tuple[list[Entry], list[Entry], bool]:
        if self._workers:
            self._collect(wait=False)
        job = self._jobs.pop(directory, None)
        if job is None:
            job = _Job(directory)
        else:
            self._unused -= job.begun
        while job.compared is None and not job.failed:
            if not job.begun:
                self._compare(job)
            elif not self._collect(wait=False) and not self._work_ahead():
                self._collect(wait=True)
        if job.compared is None:  # the trees meet the same error, and raise it
            return self._lower.entries(directory), self._upper.entries(directory), False
        same, lows, ups, linked, both = job.compared
        for name in linked:
            self._linked.add(join(directory, name))
        bare = [Entry(join(directory, name), Kind.DIRECTORY, None) for name in both]
        return (
            _merge(self._lower.list_names(directory, lows), bare),
            _merge(self._upper.list_names(directory, ups), bare),
            same,
        )

    def same(self, path: LayerPath) -> bool:
        if path in self._linked:
            self._linked.remove(path)
            return True
        return self._upper.same_content(path, self._lower, path)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self._workers.clear()
        self._wanted = 0

    def _compare(self, job: _Job) -> None:
        """Compare a directory in this process."""
        job.begun = True
        try:
            compared = self._pairs.compare(job.path)
        except (OSError, LamellaError):
            job.failed = True
        else:
            self._record(job, compared)

    def _record(self, job: _Job, compared: ComparedDirectory) -> None:
        job.compared = compared
        self._compared += 1
        jobs = [_Job(join(job.path, name)) for name in compared[4]]
        for child in jobs:
            self._jobs[child.path] = child
        self._pending.extend(reversed(jobs))
        if len(self._pending) > 1:
            self._distribute()

    def _work_ahead(self) -> bool:
        """Compare a directory that the diff will ask for; False if there is none."""
        while self._pending and self._unused < _MOST_UNUSED:
            job = self._pending.pop()
            if not job.begun:
                self._unused += 1
                self._compare(job)
                return True
        return False

    def _distribute(self) -> None:
        """Give batches to the workers, which are started once there is enough to do."""
        if self._wanted and self._compared >= _WORTH:
            self._start()
        for worker in self._workers:
            if len(worker.batches) < _BATCHES and self._unused < _MOST_UNUSED:
                # This process needs the very next one sooner than a worker would have it.
                following = self._pending.pop() if self._pending else None
                batch: list[_Job] = []
                most = min(_BATCH, (len(self._pending) + 1) // 2)
                while self._pending and len(batch) < most:
                    job = self._pending.pop()
                    if not job.begun:
                        batch.append(job)
                if following is not None:
                    self._pending.append(following)
                if batch:
                    self._unused += len(batch)
                    worker.give(batch)

    def _start(self) -> None:
        from lamella.host.worker import processors

        wanted, self._wanted = self._wanted, 0
        if self._one_per_processor:
            wanted = min(wanted, processors() - 1)
        roots = (self._lower.descriptor(ROOT), self._upper.descriptor(ROOT))
        with suppress(OSError):  # then this process compares alone
            for _ in range(wanted):
                self._workers.append(_PairsWorker(roots, exact=self._exact, xattrs=self._xattrs))

    def _collect(self, *, wait: bool) -> bool:
        """Record results of the workers; False if there are none."""
        busy = {worker.output: worker for worker in self._workers if worker.batches}
        if not busy:
            return False
        poll = select.poll()
        for output in busy:
            poll.register(output, select.POLLIN)
        ready = [busy[output] for output, _ in poll.poll(None if wait else 0)]
        for worker in ready:
            try:
                results = worker.take()
            except Unavailable:
                self._drop(worker)
                continue
            for job, compared in results:
                if compared is None:
                    job.failed = True
                else:
                    self._record(job, compared)
        if ready:
            self._distribute()
        return bool(ready)

    def _drop(self, worker: _PairsWorker) -> None:
        """Go on without a worker that has ended; the trees read the directories that it had."""
        self._workers.remove(worker)
        for batch in worker.batches:
            for job in batch:
                job.failed = True
        worker.close()


def _merge(entries: list[Entry], directories: list[Entry]) -> list[Entry]:
    """Both lists in one, which is sorted by the bytes of the names, as each of them is."""
    if not entries or not directories:
        return entries or directories
    return sorted((*entries, *directories), key=lambda entry: _bytes(entry.path))


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


class _Job:
    """A directory to compare."""

    __slots__ = ("begun", "compared", "failed", "path")

    def __init__(self, path: LayerPath) -> None:
        self.path = path
        self.begun = False
        self.failed = False
        self.compared: ComparedDirectory | None = None


class _PairsWorker:
    """A process that compares directories, in batches."""

    def __init__(self, roots: tuple[int, int], *, exact: bool, xattrs: bool) -> None:
        from lamella.host.worker import Worker, can_fork  # late: few comparisons need a worker

        task = "compares directories"
        self._worker = Worker(_serve, *roots, exact, xattrs, task=task, fork=can_fork(), keep=roots)
        self.output = self._worker.output
        """A descriptor that is readable when a result begins to arrive."""
        self.close = self._worker.close
        self.batches: deque[list[_Job]] = deque()
        """The batches that it has, the oldest first."""

    def give(self, batch: list[_Job]) -> None:
        """Hand over a batch. A process that has ended is noticed by `take`."""
        for job in batch:
            job.begun = True
        self.batches.append(batch)
        with suppress(Unavailable):
            self._worker.send([job.path for job in batch])

    def take(self) -> list[tuple[_Job, ComparedDirectory | None]]:
        """The result of the oldest batch, awaited; None for a directory that could not be read. Raises Unavailable."""
        answer: list[ComparedDirectory | None] = self._worker.receive()
        return list(zip(self.batches.popleft(), answer, strict=True))


def _serve(channel: Channel, lower: int, upper: int, exact: bool, xattrs: bool) -> None:
    """Compare the directories that each message names, beneath the roots that are open as ``lower`` and ``upper``."""
    from lamella.layers.directory.dirfd_cache import Descriptors

    below, above = (Descriptors(root, most=_OPEN_DIRECTORIES).open for root in (lower, upper))
    pairs = Pairs(below, above, exact=exact, xattrs=xattrs)

    def compare(batch: list[LayerPath]) -> list[ComparedDirectory | None]:
        answers: list[ComparedDirectory | None] = []
        for path in batch:
            try:
                answers.append(pairs.compare(path))
            except (OSError, LamellaError):
                answers.append(None)
        return answers

    channel.answer(compare)
