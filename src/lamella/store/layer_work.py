# SPDX-License-Identifier: Apache-2.0
"""One layer, from its blob into an active snapshot: by this process, or by another that takes its part of the machine.

What applying costs is for the most part the interpreter's own time, which the threads of one process cannot share. So
layers that are to be unpacked beside each other are given to processes.
"""

from __future__ import annotations

import os
import pickle
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from msgspec import Struct

from lamella import errors
from lamella.changes.apply import Tally, apply
from lamella.changes.contracts import Tree
from lamella.changes.losses import Loss, Losses
from lamella.changes.model import Entry, Kind
from lamella.digests import Digest
from lamella.errors import LamellaError
from lamella.layers.overlay_rules import OverlayRules
from lamella.layers.policy import Policy
from lamella.layers.tarball import tar_changes
from lamella.paths import ROOT, LayerPath, split
from lamella.streams.reading import BlobReader

if TYPE_CHECKING:
    from lamella.progress import Cancellation
    from lamella.store.store import Space

_POLL: Final = 0.1
"""Seconds between two looks at the cancellation."""


class LayerWork(Struct, frozen=True):
    """What is to be done."""

    key: str
    """Of the active snapshot."""
    blob: Digest
    size: int
    diff_id: Digest
    compression: str
    policy: Policy | None
    parents_known: bool
    """Whether the snapshot has its parent already, if it is to have one."""
    buffers: int
    """Of the ring, see `BlobReader`."""


class LayerDone(Struct, frozen=True):
    """What came of it."""

    entries: int
    losses: tuple[Loss, ...]
    lost: int
    """How many losses there were."""
    assumed: frozenset[LayerPath]
    """Directories that were taken to be below, where that was not known."""
    covered: frozenset[LayerPath]
    """What was taken to be below, and hidden by a whiteout."""
    root: Entry | None
    """The root as the layer states it, where what is below was not known."""


Advance: TypeAlias = Callable[[int], object]


def do(space: Space, snapshotter: str, work: LayerWork, advance: Advance, cancel: Cancellation | None) -> LayerDone:
    """Unpack a layer, with both of its digests checked. Raises what reading and writing it raise."""
    losses = Losses()
    tally = Tally()
    with (
        space.content.open(work.blob) as file,
        BlobReader(
            file,
            compression=work.compression,
            digest=work.blob,
            size=work.size,
            diff_id=work.diff_id,
            progress=advance,
            cancel=cancel,
            buffers=work.buffers,
        ) as reader,
    ):
        snapshots = space.snapshots(snapshotter)
        sink = snapshots.sink(work.key, policy=work.policy, losses=losses, parents_known=work.parents_known)
        if snapshots.windows:
            from lamella.layers.windows_names import AS_WINDOWS
            from lamella.layers.windows_tar import windows_tar_changes

            changes = windows_tar_changes(reader.next_buffer, end=reader.finish, rules=AS_WINDOWS)
        else:
            changes = tar_changes(reader.next_buffer, end=reader.finish)
        apply(changes, sink, cancel=cancel, tally=tally)
        reader.finish()
    kept = tuple(losses.kept)
    if isinstance(sink, OverlayRules):
        return LayerDone(tally.changes, kept, losses.count, frozenset(sink.assumed), frozenset(sink.covered), sink.root)
    return LayerDone(tally.changes, kept, losses.count, frozenset(), frozenset(), None)


def fits(done: LayerDone, below: Tree) -> bool:
    """Whether ``below`` is what a layer that did not know what is below has taken it for."""
    if any(loss.path == ROOT and loss.what == "opaque marker" for loss in done.losses):
        return False  # which is no loss where the parent is known
    if done.root is not None and _looks_unstated(done.root):
        root = below.lookup(ROOT)
        if root is None or root.posix != done.root.posix:
            return False
    # Directories that the layer does not state would have to be those below; so none may be needed.
    return not done.assumed


def would_show(done: LayerDone, below: Tree) -> list[LayerPath]:
    """The whiteouts of such a layer that a mount would list.

    Those are of nothing, and in a directory that lies over none: where a mount merges directories, it hides whiteouts.
    """
    found: list[LayerPath] = []
    for path in sorted(done.covered):
        if below.lookup(path) is None:
            parent = below.lookup(split(path)[0])
            if parent is None or parent.kind is not Kind.DIRECTORY:
                found.append(path)
    return found


def _looks_unstated(root: Entry) -> bool:
    """Whether a snapshot that is given a parent would take this root for one that no layer has stated."""
    posix = root.posix
    return posix is not None and posix.mtime == 0 and posix.mode & 0o7777 == 0o755


class LayerProcess:
    """A process that unpacks one layer after the other. For one thread at a time."""

    def __init__(self, space: Space, snapshotter: str) -> None:
        code = "import sys; sys.path[:] = sys.argv[1:]; from lamella.store.layer_work import serve; serve()"
        # In a session of its own: Ctrl-C is for the process that the user sees, which ends this one.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code, *filter(None, sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        assert self._process.stdin is not None  # noqa: S101
        assert self._process.stdout is not None  # noqa: S101
        self._input = self._process.stdin.fileno()
        self._output = self._process.stdout.fileno()
        store = space.store
        self._first: _Place | None = (store.root, space.name, space.lease, snapshotter)

    def do(self, work: LayerWork, advance: Advance, cancel: Cancellation | None) -> LayerDone:
        """Unpack a layer there. Raises as `do`; where the process ended by itself LamellaError.

        Nothing can be asked of it after a failure but to close it.
        """
        try:
            _send(self._input, (self._first, work))
            self._first = None
            while True:
                while not select.select([self._output], [], [], _POLL)[0]:
                    if cancel is not None:
                        cancel.check()
                message = _receive(self._output)
                if isinstance(message, int):
                    advance(message)
                    if cancel is not None:
                        cancel.check()
                elif isinstance(message, LayerDone):
                    return message
                else:
                    raise _revived(message)
        except (OSError, EOFError) as problem:
            raise LamellaError("the process that unpacks a layer has ended before its work was done") from problem

    def close(self) -> None:
        """End the process. May be called again."""
        self._process.kill()
        with self._process:
            pass


class Lane:
    """What unpacks one layer after the other: a thread of this process, and one that it has started for large ones."""

    def __init__(self, space: Space, snapshotter: str, *, alone: bool) -> None:
        self._space = space
        self._snapshotter = snapshotter
        self._alone = alone
        """Whether all is done in this process."""
        self._process: LayerProcess | None = None

    def do(self, work: LayerWork, advance: Callable[[int], object], cancel: Cancellation) -> LayerDone:
        """See `do`."""
        if self._alone:
            return do(self._space, self._snapshotter, work, advance, cancel)
        if self._process is None:
            self._process = LayerProcess(self._space, self._snapshotter)
        try:
            return self._process.do(work, advance, cancel)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.close()


_Place: TypeAlias = tuple[Path, str, str | None, str]
"""Root of the store, namespace, lease, snapshotter."""


class _Failure(Struct, frozen=True):
    """An error on its way from one process to another."""

    kind: str
    """The name of its class in `lamella.errors`."""
    message: str
    fields: dict[str, object]


def serve() -> None:
    """Be such a process: unpack what standard input names until it ends. Whoever asked is told of each buffer.

    So a process whose parent was killed ends with the next of them.
    """
    from lamella.store.store import Store

    def advance(amount: int) -> None:
        _send(1, amount)

    opened: tuple[Space, str] | None = None
    while True:
        try:
            place, work = _receive(0)
        except EOFError:
            return
        try:
            if opened is None:
                root, namespace, lease, snapshotter = place
                opened = Store.open(root, readonly=True, create=False).namespace(namespace, lease), snapshotter
            answer: object = do(*opened, work, advance, None)
        except BrokenPipeError:
            return
        except Exception as problem:  # noqa: BLE001 - raised in the process that asked
            answer = _told(problem)
        _send(1, answer)


def _told(problem: Exception) -> _Failure:
    if isinstance(problem, LamellaError) and getattr(errors, type(problem).__name__, None) is type(problem):
        return _Failure(type(problem).__name__, str(problem), problem.__dict__)
    return _Failure("LamellaError", f"{type(problem).__name__}: {problem}", {"hint": None})


def _revived(failure: _Failure) -> LamellaError:
    kind: type[LamellaError] = getattr(errors, failure.kind)
    problem = kind.__new__(kind, failure.message)
    Exception.__init__(problem, failure.message)
    problem.__dict__.update(failure.fields)
    return problem


def _send(output: int, message: object) -> None:
    raw = pickle.dumps(message)
    view = memoryview(len(raw).to_bytes(8, "big") + raw)
    while view:
        view = view[os.write(output, view) :]


def _receive(source: int) -> Any:
    return pickle.loads(_read(source, int.from_bytes(_read(source, 8), "big")))  # noqa: S301  # our own


def _read(source: int, size: int) -> bytes:
    raw = bytearray()
    while len(raw) < size:
        piece = os.read(source, min(size - len(raw), 1 << 20))
        if not piece:
            raise EOFError
        raw += piece
    return bytes(raw)
