# SPDX-License-Identifier: Apache-2.0
"""A forked process has nothing of the other one but its memory and what it is given."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamella.host.worker import Forked, can_fork

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone"),
    # The tests' own threads hold nothing that the other process takes.
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def said_by(run: Callable[[], object], keep: tuple[int, ...] = ()) -> str:
    """What ``run`` returns in a forked process."""
    reading, writing = os.pipe()
    process = Forked(lambda: os.write(writing, str(run()).encode()), keep=(writing, *keep))
    os.close(writing)
    with open(reading) as file:
        text = file.read()
    process.end()
    process.end()
    return text


def test_it_is_in_a_session_of_its_own_and_takes_signals_as_the_system_has_them() -> None:
    def raises(*_: object) -> None:
        raise KeyboardInterrupt

    def state() -> object:
        return os.getsid(0) == os.getpid(), signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(0, ())

    before = signal.signal(signal.SIGTERM, raises)
    try:
        assert said_by(state) == str((True, signal.SIG_DFL, signal.pthread_sigmask(0, ())))
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_lock_that_this_process_has_ends_with_it_here(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    reading, writing = os.pipe()
    ready, told = os.pipe()

    def wait() -> None:
        os.write(told, b"1")
        os.read(reading, 1)

    process = Forked(wait, keep=(reading, told))
    assert os.read(ready, 1) == b"1"
    os.close(held)
    with path.open() as again:
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    process.end()
    for end in (reading, writing, ready, told):
        os.close(end)


def test_a_pipe_that_this_process_closes_ends_there_too() -> None:
    reading, writing = os.pipe()
    process = Forked(lambda: os.read(reading, 1), keep=(reading,))
    os.close(writing)
    assert process._process is not None
    os.waitid(os.P_PID, process._process, os.WEXITED | os.WNOWAIT)
    process.end()
    os.close(reading)


def test_what_it_keeps_it_can_read_and_the_rest_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "other").write_text("other")
    with (tmp_path / "kept").open() as kept, (tmp_path / "other").open() as other:

        def read() -> list[str]:
            return [kept.read(), other.read(), *(os.readlink(f"/proc/self/fd/{number}") for number in range(3))]

        assert said_by(read, keep=(kept.fileno(),)) == str(["kept", "", *["/dev/null"] * 3])


UNWINDS = """
import atexit, os, sys
from lamella.host.worker import Forked
atexit.register(print, "at exit")
sys.stdout.write("buffered ")
def run():
    raise SystemExit(3)
try:
    process = Forked(run, ())
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    process.end()
finally:
    print("unwound")
"""


def test_nothing_is_unwound_or_flushed_there() -> None:
    done = subprocess.run([sys.executable, "-c", UNWINDS], capture_output=True, text=True, check=True)
    assert done.stdout == "buffered unwound\nat exit\n"
    assert done.stderr == ""


SIGNALLED = """
import os, signal
from lamella.host.worker import Forked

def raises(*_):
    raise KeyboardInterrupt

def forked(fork=os.fork):
    process = fork()
    if not process:
        os.kill(os.getpid(), signal.SIGUSR1)
    return process

signal.signal(signal.SIGUSR1, raises)
os.fork = forked
reading, writing = os.pipe()
try:
    process = Forked(lambda: None, (writing,))
    os.close(writing)
    os.read(reading, 1)
    process.end()
except KeyboardInterrupt:
    os.write(1, b"unwound there ")
os.write(1, b"ended")
"""


def test_a_signal_that_comes_at_once_unwinds_nothing_there() -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True, check=True)
    assert done.stdout == "ended"


def test_it_is_killed_whatever_it_does_and_may_have_ended() -> None:
    Forked(signal.pause, ()).end()
    ended = Forked(lambda: None, ())
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    ended.end()
    waited = Forked(lambda: None, ())
    os.waitpid(-1, 0)  # by somebody else
    waited.end()


ALONE = "from lamella.host.worker import can_fork; print(can_fork())"
FOREIGN = """
import _thread, time
_thread.start_new_thread(time.sleep, (60,))
"""


@pytest.mark.parametrize(("first", "expected"), [("", "True"), (FOREIGN, "False")])
def test_a_process_with_a_thread_that_python_does_not_know_is_not_forked(first: str, expected: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"{first}\n{ALONE}"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{expected}\n"


def test_a_process_with_threads_is_not_forked() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    assert not can_fork()
    end.set()
    thread.join()
