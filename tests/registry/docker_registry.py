# SPDX-License-Identifier: Apache-2.0
"""The registry of the distribution project, on a loopback port."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trustme

USER = "ada"
PASSWORD = "correct horse: battery"
HTPASSWD = f"{USER}:$2y$05$tDU1xa9By.Ep6orhWWyBNumRrWxCc9AeMINHPBChDfaCj7CkbcUL.\n"
"""The password hashed by bcrypt, the only scheme that the registry supports."""


def free_port() -> int:
    """A free port on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class DockerRegistry:
    """A registry with its files in a directory, which can be killed and restarted on the same port."""

    def __init__(
        self,
        program: str,
        directory: Path,
        *,
        authority: trustme.CA | None = None,
        basic: bool = False,
        token: dict[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self._program = program
        self._authority = authority
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self._config = directory / "config.yml"
        self._config.write_text(json.dumps(self._settings(basic, token)))  # JSON is YAML

    def _settings(self, basic: bool, token: dict[str, str] | None) -> dict[str, Any]:
        http: dict[str, Any] = {"addr": self.host, "secret": "the same after a restart"}
        if self._authority is not None:
            issued = self._authority.issue_cert("127.0.0.1", "localhost")
            issued.private_key_pem.write_to_path(str(self.directory / "key.pem"))
            for number, part in enumerate(issued.cert_chain_pems):
                part.write_to_path(str(self.directory / "certificate.pem"), append=number > 0)
            http["tls"] = {
                "certificate": str(self.directory / "certificate.pem"),
                "key": str(self.directory / "key.pem"),
            }
        auth: dict[str, Any] = {}
        if basic:
            (self.directory / "htpasswd").write_text(HTPASSWD)
            auth = {"auth": {"htpasswd": {"realm": "tests", "path": str(self.directory / "htpasswd")}}}
        elif token is not None:
            auth = {"auth": {"token": token}}
        return {
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(self.directory / "data")}, "delete": {"enabled": True}},
            "http": http,
            **auth,
        }

    def start(self) -> None:
        """Start it and wait until it answers."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")}
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "serve", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**environment, "OTEL_TRACES_EXPORTER": "none"},
            )
        end = time.monotonic() + 20
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise AssertionError(f"the registry did not start: {(self.directory / 'log').read_text()}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        connection: http.client.HTTPConnection
        if self._authority is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        else:
            context = ssl.create_default_context()
            self._authority.configure_trust(context)
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=5, context=context)
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status in (200, 401)
        except OSError:
            return False
        finally:
            connection.close()

    def kill(self) -> None:
        """Kill it. May be called again."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def running(registry: DockerRegistry) -> Iterator[DockerRegistry]:
    """Run the registry for the time of a block."""
    registry.start()
    try:
        yield registry
    finally:
        registry.kill()
