# SPDX-License-Identifier: Apache-2.0
"""Processes that unpack layers beside this one.

What applying costs is for the most part the interpreter's own time, which the threads of one process cannot share. So
layers that are to be unpacked beside each other are given to processes, which are told by `LayerWork` all that they
need to know. A process without other threads is forked for it. Beside threads, as in a service, one is started anew,
which takes the time of its imports.
"""

from __future__ import annotations

import os
import pickle
import select
import sys
from typing import TYPE_CHECKING, Any, Final, Protocol

from msgspec import Struct

from lamella import errors
from lamella.errors import LamellaError
from lamella.host.worker import Forked
from lamella.store.unpack.layer import LayerDone, LayerWork, do

if TYPE_CHECKING:
    from lamella.progress import Cancellation
    from lamella.store.unpack.layer import Advance

_POLL: Final = 100
"""Milliseconds between two looks at the cancellation."""


class LayerProcess:
    """A process that unpacks one layer after the other. For one thread at a time."""

    def __init__(self, *, fork: bool = False) -> None:
        """Start it, with ``fork`` out of this process, of which `can_fork` must be true. Raises OSError."""
        ends: list[int] = []
        try:
            ends += os.pipe()
            ends += os.pipe()
            source, self._input, self._output, answers = ends
            if fork:
                self._process: _Process = Forked(lambda: serve(source, answers), keep=(source, answers))
            else:
                self._process = _Started(source, answers)
        except BaseException:
            for end in ends:
                os.close(end)
            raise
        os.close(source)
        os.close(answers)
        self._poll = select.poll()
        self._poll.register(self._output, select.POLLIN)
        self._closed = False

    def do(self, work: LayerWork, advance: Advance, cancel: Cancellation | None) -> LayerDone:
        """Unpack a layer there. Raises as `layer_work.do`; where the process ended by itself LamellaError.

        Nothing can be asked of it after a failure but to close it.
        """
        try:
            _send(self._input, work)
            while True:
                while not self._poll.poll(_POLL):
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
        if not self._closed:
            self._closed = True
            self._process.end()
            os.close(self._input)
            os.close(self._output)


class _Process(Protocol):
    def end(self) -> None:
        """Kill it, and wait until it is gone."""
        ...


class _Started:
    """A process of another interpreter."""

    def __init__(self, source: int, answers: int) -> None:
        import subprocess

        code = "import sys; sys.path[:] = sys.argv[1:]; from lamella.store.unpack.worker import serve; serve(0, 1)"
        # In a session of its own: Ctrl-C is for the process that the user sees, which ends this one.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code, *filter(None, sys.path)],
            stdin=source,
            stdout=answers,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


class _Failure(Struct, frozen=True):
    """An error on its way from one process to another."""

    kind: str
    """The name of its class in `lamella.errors`."""
    message: str
    fields: dict[str, object]


def serve(source: int, answers: int) -> None:
    """Be such a process: unpack what is read of ``source`` until that ends. Whoever asked is told of each buffer.

    So a process whose parent was killed ends with the next of them.
    """

    def advance(amount: int) -> None:
        _send(answers, amount)

    while True:
        try:
            work = _receive(source)
        except EOFError:
            return
        try:
            answer: object = do(work, advance, None)
        except BrokenPipeError:
            return
        except Exception as problem:  # noqa: BLE001 - raised in the process that asked
            answer = _told(problem)
        try:
            _send(answers, answer)
        except BrokenPipeError:
            return


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
