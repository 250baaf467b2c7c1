# SPDX-License-Identifier: Apache-2.0
"""Worker processes answer messages and raise their errors here, whether they are forks or new interpreters."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella import errors
from lamella.errors import Cancelled, DigestMismatch, Exhausted, FormatError, LamellaError, Unavailable, UnsafePath
from lamella.host.worker import Channel, RemoteTraceback, Worker, decode_error, encode_error

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone"),
    # The tests' own threads hold nothing that the other process takes.
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def serve(channel: Channel, *arguments: object) -> None:
    """Answer a number by its double, bytes by what can be read from the descriptor of that name, else by an error."""

    def respond(request: object) -> object:
        match request:
            case int():
                return [request * 2, *arguments]
            case bytes():
                return os.read(int(request), 100)
            case "exit":
                os._exit(1)
            case "wait":
                signal.pause()
            case _:
                raise FormatError("request", 7, f"{request!r} is unknown")
        return None

    channel.answer(respond)


def send_for_ever(worker: Worker) -> None:
    while True:
        worker.send(1)


@pytest.fixture(params=[True, False], ids=["forked", "started"])
def fork(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_a_worker_answers_one_message_after_the_other(fork: bool) -> None:
    with Worker(serve, "a", (1, b"2"), task="doubles", fork=fork) as worker:
        for number in range(5):
            worker.send(number)
        assert [worker.receive() for _ in range(5)] == [[number * 2, "a", (1, b"2")] for number in range(5)]


def test_a_message_may_be_larger_than_a_pipe(fork: bool) -> None:
    text = "x" * (3 << 20)
    with Worker(serve, text, task="doubles", fork=fork) as worker:
        worker.send(1)
        assert worker.receive() == [2, text]


def test_a_descriptor_that_is_kept_has_its_number_there(fork: bool, tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"content")
    with (tmp_path / "kept").open("rb") as file, Worker(serve, task="reads", fork=fork, keep=[file.fileno()]) as worker:
        worker.send(b"%d" % file.fileno())
        assert worker.receive() == b"content"


def test_an_error_there_is_raised_here_and_the_worker_goes_on(fork: bool) -> None:
    with Worker(serve, task="doubles", fork=fork) as worker:
        worker.send("x")
        with pytest.raises(FormatError, match="'x' is unknown") as caught:
            worker.receive()
        assert (caught.value.structure, caught.value.offset) == ("request", 7)
        assert isinstance(caught.value.__cause__, RemoteTraceback)
        assert "test_worker_messages.py" in str(caught.value.__cause__)
        worker.send(4)
        assert worker.receive() == [8]


def test_the_end_of_a_worker_is_an_error_that_names_its_task(fork: bool) -> None:
    with Worker(serve, task="doubles", fork=fork) as worker:
        worker.send("exit")
        with pytest.raises(Unavailable, match="the process that doubles has ended before its work was done"):
            worker.receive()
        with pytest.raises(Unavailable):
            send_for_ever(worker)  # the kernel may close one pipe before the other


def test_a_caller_that_waits_for_a_message_is_asked_whether_to_go_on(fork: bool) -> None:
    calls: list[int] = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Cancelled("cancelled")

    with Worker(serve, task="doubles", fork=fork) as worker:
        worker.send("wait")
        with pytest.raises(Cancelled):
            worker.receive(check)
    assert len(calls) == 3


def test_a_worker_that_cannot_start_leaves_nothing_open(fork: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "fork", fail)
    monkeypatch.setattr(sys, "executable", "/nowhere")
    with pytest.raises(OSError, match=r"temporarily|nowhere"):
        Worker(serve, task="doubles", fork=fork)
    assert os.listdir("/proc/self/fd") == before


def test_a_program_that_is_no_interpreter_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(FileNotFoundError, match="no Python interpreter"):
        Worker(serve, task="doubles", fork=False)


class Odd(Exception):
    def __init__(self, one: object, _other: object) -> None:
        super().__init__(one)


@pytest.mark.parametrize(
    "error",
    [
        *(kind("text", hint="next") for kind in (LamellaError, Exhausted, errors.Denied)),
        UnsafePath("../x", "it leads out"),
        DigestMismatch("blob", expected="sha256:1", actual="sha256:2"),
        OSError(28, "No space left on device"),
        MemoryError(),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_keeps_its_class_its_text_and_its_attributes(error: BaseException) -> None:
    found = decode_error(encode_error(error))
    assert type(found) is type(error)
    assert (str(found), found.args, found.__dict__) == (str(error), error.args, error.__dict__)


def test_an_error_that_cannot_be_pickled_keeps_its_text() -> None:
    found = decode_error(encode_error(Odd(lambda: None, 1)))
    assert type(found) is RuntimeError
    assert str(found).startswith("Odd: <function")
