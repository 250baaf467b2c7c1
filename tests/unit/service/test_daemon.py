# SPDX-License-Identifier: Apache-2.0
"""Where a server listens, and a process that serves: how it starts, what it says, and how it ends."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2
from tests.unit.service.serving import Client, Stub, code_of, running, within

from lamella import __version__
from lamella.digests import Digest
from lamella.errors import Conflict, InvalidInput
from lamella.protocol.proto import content_pb2, events_pb2, health_pb2, namespaces_pb2, streaming_pb2
from lamella.protocol.wire import packed
from lamella.service import daemon as logs
from lamella.service.daemon import exclusive_server
from lamella.service.grpc import http2
from lamella.service.grpc.server import listening
from lamella.service.sd_notify import inherited, notify, watchdog
from lamella.store.store import Store

# Sockets -----------------------------------------------------------------------------------------------------------


def test_the_socket_is_for_its_owner_and_group_and_goes_with_the_server(tmp_path: Path) -> None:
    address = tmp_path / "deep" / "er" / "socket"
    with listening(address):
        assert stat.S_IMODE(address.stat().st_mode) == 0o660
        assert stat.S_ISSOCK(address.stat().st_mode)
    assert not address.exists()


def test_a_socket_without_a_server_is_replaced(tmp_path: Path) -> None:
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


def test_a_file_in_place_of_a_socket_is_not_replaced(tmp_path: Path) -> None:
    address = tmp_path / "file"
    address.write_text("mine")
    with pytest.raises(Conflict, match="not a socket"), listening(address):
        pass
    assert address.read_text() == "mine"
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Conflict, match="not a socket"), listening(link):
        pass


def test_a_socket_that_another_server_has_put_there_meanwhile_stays(tmp_path: Path) -> None:
    address = tmp_path / "socket"
    with listening(address):
        address.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(address))
    assert address.exists()


def test_an_address_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="longer than 107 bytes"), listening(tmp_path / ("x" * 120)):
        pass


# Processes ---------------------------------------------------------------------------------------------------------


def test_a_store_has_one_server(tmp_path: Path) -> None:
    with Store.open(tmp_path / "root") as store, exclusive_server(store.root):
        with pytest.raises(Conflict, match="already served"), exclusive_server(store.root):
            pass
        from lamella.store.gc.collect import collect

        collect(store)  # which sweeps locks that nobody holds
        with pytest.raises(Conflict), exclusive_server(store.root):
            pass
    with exclusive_server(tmp_path / "root"):
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
    assert client.version.Version(empty_pb2.Empty()).version == __version__
    process.send_signal(number)
    code, said = ended(process)
    client.close()
    assert (code, said.endswith("info: stopped\n")) == (0, True)
    assert not (tmp_path / "socket").exists()


def test_a_hangup_is_logged_and_the_service_goes_on(start: Start, tmp_path: Path) -> None:
    process = start()
    process.send_signal(signal.SIGHUP)
    assert process.stderr is not None
    assert "SIGHUP is ignored" in process.stderr.readline()
    client = Client(tmp_path / "socket")
    assert client.version.Version(empty_pb2.Empty()).version == __version__
    client.close()
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 0


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


@pytest.mark.parametrize(("policy", "offset"), [("shared", 3), ("isolated", 0)])
def test_namespaces_share_blobs_or_do_not(start: Start, tmp_path: Path, policy: str, offset: int) -> None:
    start("--content-sharing", policy)
    client = Client(tmp_path / "socket")
    digest = Digest.of(b"abc")
    commit = content_pb2.WriteContentRequest(action=content_pb2.COMMIT, ref="r", data=b"abc", expected=digest)
    list(client.content.Write(iter([commit]), metadata=within("one")))
    ask = content_pb2.WriteContentRequest(action=content_pb2.STAT, ref="r", total=3, expected=digest)
    answers = list(client.content.Write(iter([ask]), metadata=within("two")))
    assert [answer.offset for answer in answers] == [offset]
    client.close()


def test_once_ends_with_the_clients_that_came(start: Start, tmp_path: Path) -> None:
    process = start("--once")
    client = Client(tmp_path / "socket")
    client.version.Version(empty_pb2.Empty())
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
            logs.start_log(form)
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


class Supervisor:
    """Plays the part of systemd: opens sockets, starts the service with them, and is told of its state."""

    def __init__(self, folder: Path, names: Sequence[str], **environment: str) -> None:
        self._told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._told.bind(str(folder / "notify"))
        self._told.settimeout(20)
        self._names = names
        self._folder = folder
        self._environment = environment
        self.listeners = []
        for name in names:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(folder / name))
            listener.listen()
            self.listeners.append(listener)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start ``lamella WORDS``."""
        numbers = [listener.fileno() for listener in self.listeners]
        script = (
            "import fcntl, os, sys\n"
            f"for at, number in enumerate([fcntl.fcntl(number, fcntl.F_DUPFD, 100) for number in {numbers}]):\n"
            "    os.dup2(number, 3 + at, inheritable=True)\n"
            f"os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='{len(numbers)}')\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'lamella', *sys.argv[1:]])\n"
        )
        environment = {"LISTEN_FDNAMES": ":".join(self._names), "NOTIFY_SOCKET": str(self._folder / "notify")}
        return subprocess.Popen(
            [sys.executable, "-c", script, *words],
            pass_fds=numbers,
            env={**os.environ, **environment, **self._environment},
            stderr=subprocess.PIPE,
            text=True,
        )

    def told(self) -> str:
        """What it is told next."""
        return self._told.recv(1000).decode()

    def close(self) -> None:
        self._told.close()
        for listener in self.listeners:
            listener.close()


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Callable[..., Supervisor]]:
    """Return a function that makes a supervisor with sockets of these names."""
    made: list[Supervisor] = []

    def make(*names: str, **environment: str) -> Supervisor:
        made.append(Supervisor(tmp_path, names, **environment))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.close()


def test_sockets_that_a_supervisor_opened_are_served_by_their_names(
    supervised: Callable[..., Supervisor], tmp_path: Path
) -> None:
    supervisor = supervised("clients", "plugin", "metrics")
    process = supervisor.start("--root", str(tmp_path / "root"), "serve")
    assert supervisor.told() == "READY=1"
    client = Client(tmp_path / "clients")
    assert client.version.Version(empty_pb2.Empty()).version == __version__
    client.close()
    plugin = Client(tmp_path / "plugin")
    assert code_of(lambda: plugin.version.Version(empty_pb2.Empty())) is grpc.StatusCode.UNIMPLEMENTED
    list(plugin.content.List(content_pb2.ListContentRequest()))  # no namespace is asked for
    plugin.close()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(tmp_path / "metrics"))
        peer.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        with peer.makefile("rb") as answer:
            assert b"lamella_calls_total{" in answer.read()
    process.terminate()
    assert supervisor.told() == "STOPPING=1"
    assert ended(process)[0] == 0
    assert (tmp_path / "clients").exists()  # it is the supervisor's


def test_a_socket_without_a_name_is_for_clients(supervised: Callable[..., Supervisor], tmp_path: Path) -> None:
    supervisor = supervised("given", LISTEN_FDNAMES="")
    process = supervisor.start("--root", str(tmp_path / "root"), "serve", "--once")
    client = Client(tmp_path / "given")
    assert client.version.Version(empty_pb2.Empty(), wait_for_ready=True, timeout=20).version == __version__
    client.close()
    assert ended(process)[0] == 0


def test_a_watchdog_is_fed_as_often_as_it_wants(supervised: Callable[..., Supervisor], tmp_path: Path) -> None:
    supervisor = supervised("clients", WATCHDOG_USEC="200000")
    process = supervisor.start("--root", str(tmp_path / "root"), "serve")
    assert supervisor.told() == "READY=1"
    began = time.monotonic()
    assert [supervisor.told() for _ in range(3)] == ["WATCHDOG=1"] * 3
    assert 0.2 < time.monotonic() - began < 10
    process.terminate()
    while supervisor.told() != "STOPPING=1":
        pass
    assert ended(process)[0] == 0


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "x"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({}, None),
    ],
)
def test_a_watchdog_is_fed_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: float | None
) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert watchdog() == expected


UNITS = Path(__file__).parents[3] / "systemd"


def test_the_units_start_the_service_with_their_sockets_and_settings(
    supervised: Callable[..., Supervisor], tmp_path: Path
) -> None:
    units = {path.name: path.read_text() for path in UNITS.glob("lamella*")}
    names = [
        re.findall(r"^FileDescriptorName=(.*)", text, re.MULTILINE)[0]
        for name, text in units.items()
        if "socket" in name
    ]
    (order,) = re.findall(r"^ExecStart=/usr/local/bin/lamella (.*)", units["lamella.service"], re.MULTILINE)
    assert {"clients", "plugin"} == set(names)
    settings = (UNITS / "config.toml").read_text()
    assert 'root = "/var/lib/lamella"' in settings
    (tmp_path / "config.toml").write_text(settings.replace("/var/lib/lamella", str(tmp_path / "root")))
    supervisor = supervised(*names)
    words = order.replace("/etc/lamella", str(tmp_path)).split()
    process = supervisor.start(*words)
    assert supervisor.told() == "READY=1"
    assert (tmp_path / "root/lamella.db").exists()
    process.terminate()
    code, said = ended(process)
    assert code == 0
    assert {"info"} == {json.loads(line)["level"] for line in said.splitlines()}


@pytest.mark.interop
def test_systemd_takes_the_units(needs: Callable[..., str], tmp_path: Path) -> None:
    program = str(Path(sys.executable).with_name("lamella"))
    units, runtime = tmp_path / "units", tmp_path / "runtime"
    units.mkdir()
    runtime.mkdir()
    for path in UNITS.glob("lamella*"):
        (units / path.name).write_text(path.read_text().replace("/usr/local/bin/lamella", program))
    manager = [] if os.geteuid() == 0 else ["--user"]  # whose directory in /run need not be there
    command = [needs("systemd-analyze"), "verify", *manager, "--man=no", *map(str, units.iterdir())]
    environ = os.environ | {"XDG_RUNTIME_DIR": str(runtime)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_store_whose_database_is_lost_is_not_served(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with Store.open(root) as store, store.namespace("one").content.ingest("a") as ingest:
        ingest.write(b"text")
        ingest.commit()
    os.truncate(root / "lamella.db", 0)
    command = [sys.executable, "-m", "lamella", "--root", str(root), "serve", "--address", str(tmp_path / "socket")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 8
    assert f"the store's database '{root}/lamella.db' is empty, but blobs/ is not empty" in done.stderr
    assert len(list((root / "blobs" / "sha256").iterdir())) == 1


# Settings ----------------------------------------------------------------------------------------------------------


def test_a_file_says_what_the_options_do_not(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(
        f'root = "{tmp_path}/root"\naddress = "{tmp_path}/in the file"\nlog-format = "json"\n'
    )
    command = [sys.executable, "-m", "lamella", "serve", "--config", str(tmp_path / "config")]
    for further, address in (((), "in the file"), (("--address", str(tmp_path / "given")), "given")):
        with subprocess.Popen([*command, *further], stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            assert json.loads(process.stderr.readline())["message"] == f"serving at {tmp_path}/{address}"
            process.terminate()
            assert ended(process)[0] == 0
    assert (tmp_path / "root/lamella.db").exists()


def test_a_root_that_is_named_comes_before_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(f'root = "{tmp_path}/one"\nplugin = "{tmp_path}/p"\n')
    command = [sys.executable, "-m", "lamella", "--root", str(tmp_path / "two"), "serve"]
    with subprocess.Popen(
        [*command, "--config", str(tmp_path / "config")], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert "serving at" in process.stderr.readline()
        process.terminate()
        assert ended(process)[0] == 0
    assert ((tmp_path / "one").exists(), (tmp_path / "two/lamella.db").exists()) == (False, True)


def test_settings_that_there_are_none_of_are_refused_with_those_that_there_are(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("adress = '/a'")
    command = [sys.executable, "-m", "lamella", "serve", "--config", str(tmp_path / "config")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "hint: known are root, address, plugin" in done.stderr) == (3, True)


# Stopping ----------------------------------------------------------------------------------------------------------

_SIGNALLED = """
import signal, sys, threading, time
from lamella.service.daemon import serve

def strike():
    while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        time.sleep(0.01)
    time.sleep(0.5)  # until the main thread waits for clients, and for nothing else
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    time.sleep(60)

threading.Thread(target=strike, daemon=True).start()
serve([(sys.argv[1], {})])
"""


def test_a_signal_that_does_not_interrupt_the_waiting_thread_ends_the_service_all_the_same(tmp_path: Path) -> None:
    # As one does which comes just before the thread begins to wait, or which the system hands to another thread.
    done = subprocess.run([sys.executable, "-c", _SIGNALLED, str(tmp_path / "socket")], timeout=30)
    assert done.returncode == 0


def test_a_collection_that_takes_long_does_not_hold_up_the_end(tmp_path: Path) -> None:
    from lamella.service.gc_scheduler import Collector
    from lamella.service.services.events import Bus
    from lamella.store.gc.collect import Collection

    began, done = threading.Event(), threading.Event()

    def collect(store: Store) -> Collection:
        began.set()
        done.wait(30)
        return Collection((), 0, dry_run=False)

    with Store.open(tmp_path / "store") as store:
        collector = Collector(store, Bus(), pause=0, run=collect)
        collector.ask()
        began.wait(30)
        start = time.monotonic()
        collector.close()
        assert time.monotonic() - start < 5
    done.set()


def test_a_client_without_a_thread_is_disconnected_and_the_service_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path / "socket", {}):
        with monkeypatch.context() as patch, socket.socket(socket.AF_UNIX) as client:

            def fail(thread: threading.Thread) -> None:
                raise RuntimeError("can't start new thread")

            patch.setattr(threading.Thread, "start", fail)
            client.connect(str(tmp_path / "socket"))
            client.settimeout(20)
            assert client.recv(1) == b""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "socket"))
            client.settimeout(20)
            client.sendall(http2.PREFACE + http2.settings({}))
            assert client.recv(1) != b""


def test_a_subscriber_of_events_does_not_delay_the_stop(start: Start, tmp_path: Path) -> None:
    process = start()
    client = Client(tmp_path / "socket")
    call = client.events.Subscribe(events_pb2.SubscribeRequest())
    heard: SimpleQueue[bool] = SimpleQueue()
    failures: list[grpc.RpcError] = []

    def listen() -> None:
        try:
            for _ in call:
                heard.put(True)
        except grpc.RpcError as failure:
            failures.append(failure)

    listener = threading.Thread(target=listen)
    listener.start()
    for number in range(1000):  # until the subscription is known to stand
        space = {"name": f"space-{number}"}
        client.namespaces.Create(namespaces_pb2.CreateNamespaceRequest(namespace=space))
        try:
            heard.get(timeout=0.1)
            break
        except Empty:
            pass
    began = time.monotonic()
    process.terminate()
    listener.join()
    assert failures == []  # it is over, and that is all
    assert ended(process)[0] == 0
    assert time.monotonic() - began < 5
    client.close()


@pytest.mark.parametrize("option", ["--address", "--plugin"])
def test_a_health_watch_reports_that_the_service_stops(start: Start, tmp_path: Path, option: str) -> None:
    plugin = ["--plugin", str(tmp_path / "plugin")] if option == "--plugin" else []
    process = start(*plugin)
    if plugin:
        assert process.stderr is not None
        assert "serving at" in process.stderr.readline()  # there, too
    client = Client(tmp_path / ("plugin" if plugin else "socket"))
    call = client.health.Watch(health_pb2.HealthCheckRequest())
    assert next(call).status == health_pb2.HealthCheckResponse.SERVING
    began = time.monotonic()
    process.terminate()
    assert [answer.status for answer in call] == [health_pb2.HealthCheckResponse.NOT_SERVING]
    assert ended(process)[0] == 0
    assert time.monotonic() - began < 8  # calls that do not end are waited for longer
    client.close()


def test_a_stream_without_a_transfer_does_not_delay_the_stop(start: Start, tmp_path: Path) -> None:
    process = start()
    with grpc.insecure_channel(f"unix:{tmp_path / 'socket'}") as channel:
        stub = Stub(channel, streaming_pb2.DESCRIPTOR)
        requests: SimpleQueue[Any] = SimpleQueue()
        requests.put(packed(streaming_pb2.StreamInit(id="one")))
        call = stub.Stream(iter(requests.get, None), metadata=within())
        next(call)
        began = time.monotonic()
        process.terminate()
        assert list(call) == []
        assert ended(process)[0] == 0
        assert time.monotonic() - began < 8
        requests.put(None)


def test_an_ingest_interrupted_by_the_stop_resumes_after_it(start: Start, tmp_path: Path) -> None:
    process = start()
    client = Client(tmp_path / "socket")
    waiting: SimpleQueue[content_pb2.WriteContentRequest | None] = SimpleQueue()
    answers = client.content.Write(iter(waiting.get, None), metadata=within())
    waiting.put(content_pb2.WriteContentRequest(action=content_pb2.WRITE, ref="r", data=b"abc"))
    assert next(answers).offset == 3
    process.terminate()
    waiting.put(content_pb2.WriteContentRequest(action=content_pb2.WRITE, ref="r", offset=3, data=b"def"))
    assert next(answers).offset == 6  # calls under way go on for a while
    waiting.put(None)
    assert list(answers) == []
    assert ended(process)[0] == 0
    client.close()
    start()
    client = Client(tmp_path / "socket")
    commit = content_pb2.WriteContentRequest(action=content_pb2.COMMIT, ref="r", offset=6, data=b"g", total=7)
    (answer,) = client.content.Write(iter([commit]), metadata=within())
    assert answer.digest == Digest.of(b"abcdefg")
    client.close()


def test_the_supervisor_receives_the_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1")
        assert told.recv(100) == b"READY=1"
    notify("STOPPING=1")  # nobody is there any more
    monkeypatch.setenv("NOTIFY_SOCKET", "")
    notify("STOPPING=1")


@pytest.mark.parametrize(("pid", "count"), [("1", "1"), ("", "1"), ("ours", "x"), ("ours", "0")])
def test_sockets_of_somebody_else_are_not_taken(monkeypatch: pytest.MonkeyPatch, pid: str, count: str) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()) if pid == "ours" else pid)
    monkeypatch.setenv("LISTEN_FDS", count)
    assert list(inherited()) == []


def test_the_service_stops_soon_after_it_is_asked(start: Start) -> None:
    process = start()
    began = time.monotonic()
    process.terminate()
    assert ended(process)[0] == 0
    assert time.monotonic() - began < 5
