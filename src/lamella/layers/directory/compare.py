# SPDX-License-Identifier: Apache-2.0
"""Two directories looked at side by side, by several processes: most files of a diff are the same in both.

What a pair of equal files costs is system calls and interpreter time. So the two files are opened once, and all there
is to know comes from their descriptors: content, metadata and attributes together. The interpreter's part threads
cannot share: with more than one processor further processes, each with the descriptors of both roots, look at
directories too. They only ever say which pairs are surely the same; everything else is looked at again, and said, by
the process that asked.
"""

from __future__ import annotations

import errno
import marshal
import os
import select
import stat
import sys
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from lamella.changes.model import Entry, Kind
from lamella.errors import LamellaError
from lamella.host import file_io
from lamella.paths import ROOT, LayerPath, join

if TYPE_CHECKING:
    from lamella.layers.directory.tree import DirectoryTree

_STEP: Final = 256 << 10
_OPEN_DIRECTORIES: Final = 128
_SECOND: Final = 1_000_000_000

_BATCH: Final = 24
"""Directories handed over at once."""
_BATCHES: Final = 4
"""Batches that a worker has at most: one that it works on, and some that keep it from waiting for a busy parent."""
_WORTH: Final = 200
"""Directories from which on it pays to start a process, which takes about as long as to look at so many."""
_MOST_WORKERS: Final = 3
_MOST_UNUSED: Final = 4096
"""Directories that may have been looked at without having been asked for."""


_UNKNOWN: Final = 0
_SAME: Final = 1
"""In all respects, and with a single name each."""
_SAME_BYTES: Final = 2
"""In all respects but other names."""


Opening: TypeAlias = Callable[[str], int]
"""Opens a directory by its canonical path, without following links; the descriptor is good until the next call."""

Looked: TypeAlias = tuple[bool, list[str], list[str], list[str], list[str]]
"""Whether the directory is the same in its metadata; names in the lower and the upper one, but those of files that are
the same and of directories that are in both; of files whose content is the same though they have other names; of the
directories that are in both."""


class Pairs:
    """Compares directories, one at a time."""

    def __init__(self, lower: Opening, upper: Opening, *, exact: bool, xattrs: bool = True) -> None:
        self._lower, self._upper = lower, upper
        self._exact = exact
        self._xattrs = xattrs
        self._one, self._other = bytearray(_STEP), bytearray(_STEP)
        self._one_view, self._other_view = memoryview(self._one), memoryview(self._other)
        self._reads_first = True
        """Whether files are read before anything else is known of them: as long as no time is believed."""

    def look(self, directory: LayerPath) -> Looked:
        """What is to be told of ``directory``, which must be in both. Raises OSError and LamellaError."""
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
        except OSError:  # whoever looks at it next has the same error, and something to say of it
            return _UNKNOWN

    def _compare(self, one: int, other: int) -> int:
        if not self._reads_first:
            first, second = os.fstat(one), os.fstat(other)
            if not _same_facts(first, second):
                return _UNKNOWN
            if self._believed(first):
                return self._verdict(one, other, first, second, read=False)
            self._reads_first = True
        length = os.readv(one, (self._one,))
        if os.readv(other, (self._other,)) != length:
            return _UNKNOWN
        # Looked at after reading: a file that was written to meanwhile has a time that the other cannot have.
        first, second = os.fstat(one), os.fstat(other)
        if not _same_facts(first, second):
            return _UNKNOWN
        if self._believed(first):
            self._reads_first = False
            return self._verdict(one, other, first, second, read=False)
        if not self._one.startswith(self._other_view[:length]):
            return _UNKNOWN
        if first[6] != length and not self._same_rest(one, other, first, length):
            return _UNKNOWN
        return self._verdict(one, other, first, second, read=True)

    def _believed(self, status: os.stat_result) -> bool:
        """Whether the same time tells the same content."""
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
    """Whether all attributes are the same, whatever of them is reported."""
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
    """All names, those of regular files, those of directories; without looking at any of them."""
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
    """A `lamella.changes.diff.Comparison` of two directory trees."""

    def __init__(
        self,
        lower: DirectoryTree,
        upper: DirectoryTree,
        *,
        exact: bool,
        xattrs: bool = True,
        workers: int | None = None,
    ) -> None:
        self._lower, self._upper = lower, upper
        self._exact, self._xattrs = exact, xattrs
        self._pairs = Pairs(lower.descriptor, upper.descriptor, exact=exact, xattrs=xattrs)
        self._wanted = min(_MOST_WORKERS, _processors() - 1) if workers is None else workers
        """Workers still to be started."""
        self._workers: list[_Worker] = []
        self._jobs: dict[LayerPath, _Job] = {}
        """Directories that will be asked for."""
        self._pending: list[_Job] = []
        """Those that nobody has begun with, the next last; and some that have been done since."""
        self._unused = 0
        """How many have been begun with and not been asked for."""
        self._looked = 0
        self._linked: set[str] = set()
        """Files with several names whose content is known to be the same."""

    def entries(self, directory: LayerPath) -> tuple[list[Entry], list[Entry], bool]:
        """See `Comparison.entries`."""
        if self._workers:
            self._collect(wait=False)
        job = self._jobs.pop(directory, None)
        if job is None:
            job = _Job(directory)
        else:
            self._unused -= job.begun
        while job.looked is None and not job.failed:
            if not job.begun:
                self._look(job)
            elif not self._collect(wait=False) and not self._help():
                self._collect(wait=True)
        if job.looked is None:  # what is wrong, the trees will say
            return self._lower.entries(directory), self._upper.entries(directory), False
        same, lows, ups, linked, both = job.looked
        for name in linked:
            self._linked.add(join(directory, name))
        bare = [Entry(join(directory, name), Kind.DIRECTORY, None) for name in both]
        return _with(self._lower.listed(directory, lows), bare), _with(self._upper.listed(directory, ups), bare), same

    def same(self, path: LayerPath) -> bool:
        """See `Comparison.same`. Raises Conflict, Denied and the like where a file cannot be read."""
        if path in self._linked:
            self._linked.remove(path)
            return True
        return self._upper.same_content(path, self._lower, path)

    def close(self) -> None:
        """See `Comparison.close`."""
        for worker in self._workers:
            worker.close()
        self._workers.clear()
        self._wanted = 0

    def _look(self, job: _Job) -> None:
        """Look at a directory here and now."""
        job.begun = True
        try:
            looked = self._pairs.look(job.path)
        except (OSError, LamellaError):
            job.failed = True
        else:
            self._note(job, looked)

    def _note(self, job: _Job, looked: Looked) -> None:
        job.looked = looked
        self._looked += 1
        jobs = [_Job(join(job.path, name)) for name in looked[4]]
        for child in jobs:
            self._jobs[child.path] = child
        self._pending.extend(reversed(jobs))
        if len(self._pending) > 1:
            self._hand_out()

    def _help(self) -> bool:
        """Look at a directory that will be asked for; False where there is none."""
        while self._pending and self._unused < _MOST_UNUSED:
            job = self._pending.pop()
            if not job.begun:
                self._unused += 1
                self._look(job)
                return True
        return False

    def _hand_out(self) -> None:
        if self._wanted and self._looked >= _WORTH:
            self._start()
        for worker in self._workers:
            if len(worker.batches) < _BATCHES and self._unused < _MOST_UNUSED:
                # The very next is for this process, which comes to it sooner.
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
        wanted, self._wanted = self._wanted, 0
        if not sys.executable or getattr(sys, "frozen", False):  # what would be started is not an interpreter
            return
        roots = (self._lower.descriptor(ROOT), self._upper.descriptor(ROOT))
        try:
            for _ in range(wanted):
                self._workers.append(_Worker(roots, exact=self._exact, xattrs=self._xattrs))
        except OSError:  # then this process does what others will not
            pass

    def _collect(self, *, wait: bool) -> bool:
        """Take note of what workers have seen; False where it is nothing."""
        busy = {worker.output: worker for worker in self._workers if worker.batches}
        if not busy:
            return False
        poll = select.poll()
        for output in busy:
            poll.register(output, select.POLLIN)
        done = False
        for output, _ in poll.poll(None if wait else 0):
            worker = busy[output]
            for job, looked in worker.take():
                done = True
                if looked is None:
                    job.failed = True
                else:
                    self._note(job, looked)
            if worker.ended:
                self._lose(worker)
                done = True
        if done:
            self._hand_out()
        return done

    def _lose(self, worker: _Worker) -> None:
        """Go on without a worker that has ended, with what it had to do."""
        self._workers.remove(worker)
        for batch in worker.batches:
            for job in batch:
                job.failed = True
        worker.close()


def _with(entries: list[Entry], directories: list[Entry]) -> list[Entry]:
    """Both, sorted by the bytes of their names, as each of them is."""
    if not entries or not directories:
        return entries or directories
    return sorted((*entries, *directories), key=lambda entry: _bytes(entry.path))


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


class _Job:
    """A directory to look at."""

    __slots__ = ("begun", "failed", "looked", "path")

    def __init__(self, path: LayerPath) -> None:
        self.path = path
        self.begun = False
        self.failed = False
        self.looked: Looked | None = None


class _Worker:
    """A process that looks at directories."""

    def __init__(self, roots: tuple[int, int], *, exact: bool, xattrs: bool) -> None:
        import subprocess

        code = "import sys; sys.path[:] = sys.argv[5:]; from lamella.layers.directory.compare import serve; serve()"
        options = (*roots, int(exact), int(xattrs))
        # In a session of its own: Ctrl-C is for the process that the user sees, which ends this one.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code, *map(str, options), *filter(None, sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            pass_fds=roots,
            start_new_session=True,
        )
        assert self._process.stdin is not None  # noqa: S101
        assert self._process.stdout is not None  # noqa: S101
        self._input = self._process.stdin.fileno()
        self.output = self._process.stdout.fileno()
        self.batches: deque[list[_Job]] = deque()
        self.ended = False
        self._read = bytearray()

    def give(self, batch: list[_Job]) -> None:
        """Hand over a batch. A worker that cannot take it has ended, as `take` will find out."""
        for job in batch:
            job.begun = True
        self.batches.append(batch)
        try:
            _send(self._input, [job.path for job in batch])
        except OSError:
            self.ended = True

    def take(self) -> list[tuple[_Job, Looked | None]]:
        """What has been seen, which is asked for when there is something to read; `ended` tells when no more comes."""
        piece = os.read(self.output, 1 << 16)
        if not piece:
            self.ended = True
        self._read += piece
        seen: list[tuple[_Job, Looked | None]] = []
        while (end := 4 + int.from_bytes(self._read[:4], "big")) <= len(self._read) and self.batches:
            answer: list[Looked | None] = marshal.loads(self._read[4:end])  # noqa: S302  # from a child of our own
            del self._read[:end]
            seen += zip(self.batches.popleft(), answer, strict=True)
        return seen

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        with self._process:
            pass


def _send(output: int, message: list[LayerPath] | list[Looked | None]) -> None:
    data = marshal.dumps(message)
    view = memoryview(len(data).to_bytes(4, "big") + data)
    while view:
        view = view[os.write(output, view) :]


def serve() -> None:
    """Be a worker: look at the directories that standard input names, until it ends."""
    lower, upper, exact, xattrs = map(int, sys.argv[1:5])
    pairs = Pairs(_opening(lower), _opening(upper), exact=bool(exact), xattrs=bool(xattrs))
    requests = sys.stdin.buffer
    while header := requests.read(4):
        answers: list[Looked | None] = []
        for path in marshal.loads(requests.read(int.from_bytes(header, "big"))):  # noqa: S302  # from our parent
            try:
                answers.append(pairs.look(path))
            except (OSError, LamellaError):
                answers.append(None)
        _send(1, answers)


def _opening(root: int) -> Opening:
    from lamella.layers.directory.dirfd_cache import Descriptors

    return Descriptors(root, most=_OPEN_DIRECTORIES).open


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
