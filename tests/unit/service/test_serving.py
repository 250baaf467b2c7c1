# SPDX-License-Identifier: Apache-2.0
"""Where a server listens, and a process that serves: how it starts, what it says, and how it ends."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty
from tests.unit.service.serving import Client, within

from lamella import __version__
from lamella.errors import Conflict, InvalidInput
from lamella.protocol.proto import content_pb2
from lamella.service import logs
from lamella.service.server import listening
from lamella.service.serving import sole_server
from lamella.service.supervisor import inherited, notify
from lamella.store.store import Store

# Sockets -----------------------------------------------------------------------------------------------------------


def test_the_socket_is_for_its_owner_and_group_and_goes_with_the_server(tmp_path: Path) -> None:
    address = tmp_path / "deep" / "er" / "socket"
    with listening(address):
        assert stat.S_IMODE(address.stat().st_mode) == 0o660
        assert stat.S_ISSOCK(address.stat().st_mode)
    assert not address.exists()


def test_a_socket_that_nobody_answers_at_is_replaced(tmp_path: Path) -> None:
    address = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(address))
    with listening(address), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(address))


def test_a_socket_that_somebody_answers_at_is_not_replaced(tmp_path: Path) -> None:
    address = tmp_path / "socket"
    with listening(address):
        before = address.stat().st_ino
        with pytest.raises(Conflict, match="answers at"), listening(address):
            pass
        assert address.stat().st_ino == before


def test_a_file_in_place_of_a_socket_is_let_be(tmp_path: Path) -> None:
    address = tmp_path / "file"
    address.write_text("mine")
    with pytest.raises(Conflict, match="no socket"), listening(address):
        pass
    assert address.read_text() == "mine"
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Conflict, match="no socket"), listening(link):
        pass


def test_a_socket_that_another_server_has_put_there_meanwhile_stays(tmp_path: Path) -> None:
    address = tmp_path / "socket"
    with listening(address):
        address.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(address))
    assert address.exists()


def test_too_long_an_address_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="more than 107 bytes"), listening(tmp_path / ("x" * 120)):
        pass


# Processes ---------------------------------------------------------------------------------------------------------


def test_a_store_has_one_server(tmp_path: Path) -> None:
    with Store.open(tmp_path / "root") as store, sole_server(store.root):
        with pytest.raises(Conflict, match="being served already"), sole_server(store.root):
            pass
        from lamella.store.gc import collect

        collect(store)  # which sweeps locks that nobody holds
        with pytest.raises(Conflict), sole_server(store.root):
            pass
    with sole_server(tmp_path / "root"):
        pass


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts `lamella serve` and comes back once it answers."""
    started: list[subprocess.Popen[str]] = []

    def begin(*options: str, root: str = "root") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "lamella", "--root", str(tmp_path / root), "serve"]
        command += ["--address", str(tmp_path / "socket"), *options]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stderr is not None
        said = process.stderr.readline()
        assert "serving at" in said, said + process.stderr.read()
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=30)
    return process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_service_in_order(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    process = start()
    client = Client(tmp_path / "socket")
    assert client.version.Version(Empty()).version == __version__
    process.send_signal(number)
    code, said = ended(process)
    client.close()
    assert (code, said.endswith("info: stopped\n")) == (0, True)
    assert not (tmp_path / "socket").exists()


def test_an_ingest_survives_a_restart_and_a_kill(start: Start, tmp_path: Path) -> None:
    process = start()
    for kill in (signal.SIGTERM, signal.SIGKILL):
        client = Client(tmp_path / "socket")
        request = content_pb2.WriteContentRequest(action=content_pb2.WRITE, ref=f"r{kill}", data=b"abc")
        list(client.content.Write(iter([request]), metadata=within()))
        client.close()
        process.send_signal(kill)
        ended(process)
        process = start()  # over the socket that the killed one has left
        client = Client(tmp_path / "socket")
        status = client.content.Status(content_pb2.StatusRequest(ref=f"r{kill}"), metadata=within()).status
        assert status.offset == 3
        client.close()


def test_once_ends_with_the_clients_that_came(start: Start, tmp_path: Path) -> None:
    process = start("--once")
    client = Client(tmp_path / "socket")
    client.version.Version(Empty())
    assert process.poll() is None
    client.close()
    assert ended(process)[0] == 0


def test_a_second_server_of_a_store_and_one_at_the_same_socket_refuse(start: Start, tmp_path: Path) -> None:
    start()
    base = [sys.executable, "-m", "lamella"]
    second = [*base, "--root", str(tmp_path / "root"), "serve", "--address", str(tmp_path / "other")]
    done = subprocess.run(second, capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (6, "hint: stop that server, or name another root")
    beside = [*base, "--root", str(tmp_path / "root2"), "serve", "--address", str(tmp_path / "socket")]
    done = subprocess.run(beside, capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (6, "hint: stop it, or name another address")


def test_without_an_address_usage_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lamella", "--root", str(tmp_path / "root"), "serve"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "lamella: --address or --plugin is missing")
    assert not (tmp_path / "root").exists()


def test_the_log_is_lines_of_json_where_that_is_asked_for(start: Start) -> None:
    process = start("--log-format", "json")
    process.terminate()
    (line,) = ended(process)[1].splitlines()
    found = json.loads(line)
    assert (found["level"], found["message"], found["logger"]) == ("info", "stopped", "lamella.service")
    assert found["time"].endswith("Z")


def test_an_error_is_logged_with_where_it_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("lamella")
    before = log.handlers[:], log.level, log.propagate
    try:
        for form in logs.FORMATS:
            logs.start(form)
            try:
                raise ValueError("what\nnow")
            except ValueError:
                logging.getLogger("lamella.service").exception("it failed")
            logging.getLogger("lamella.service").debug("not shown")
        text, _, rest = capsys.readouterr().err.partition("\n")
        assert text.endswith("error: it failed")
        assert "ValueError: what" in json.loads(rest.splitlines()[-1])["traceback"]
    finally:
        log.handlers[:], log.level, log.propagate = before


# Supervisors -------------------------------------------------------------------------------------------------------


def test_a_socket_that_a_supervisor_opened_is_served(tmp_path: Path) -> None:
    address = tmp_path / "given"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        script = (
            "import os, sys\n"
            f"os.dup2({listener.fileno()}, 3)\n"
            "os.set_inheritable(3, True)\n"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n"
            f"os.execv(sys.executable, [sys.executable, '-m', 'lamella', '--root', {str(tmp_path / 'root')!r},"
            " 'serve', '--once'])\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script], pass_fds=[listener.fileno()], stderr=subprocess.PIPE, text=True
        )
    client = Client(address)
    assert client.version.Version(Empty(), wait_for_ready=True, timeout=20).version == __version__
    client.close()
    assert ended(process)[0] == 0
    assert address.exists()  # it is the supervisor's


def test_a_supervisor_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1")
        assert told.recv(100) == b"READY=1"
    notify("STOPPING=1")  # nobody is there any more
    monkeypatch.setenv("NOTIFY_SOCKET", "")
    notify("STOPPING=1")


@pytest.mark.parametrize(("pid", "count"), [("1", "1"), ("", "1"), (str(os.getpid()), "x"), (str(os.getpid()), "0")])
def test_sockets_of_somebody_else_are_not_taken(monkeypatch: pytest.MonkeyPatch, pid: str, count: str) -> None:
    monkeypatch.setenv("LISTEN_PID", pid)
    monkeypatch.setenv("LISTEN_FDS", count)
    assert list(inherited()) == []


def test_the_service_stops_soon_after_it_is_asked(start: Start) -> None:
    process = start()
    began = time.monotonic()
    process.terminate()
    assert ended(process)[0] == 0
    assert time.monotonic() - began < 5
