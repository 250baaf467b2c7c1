# SPDX-License-Identifier: Apache-2.0
"""Credential helpers: programs named ``docker-credential-NAME``, which take a verb and answer in JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from lamella.errors import Exhausted, InvalidInput, LamellaError, NotFound, Unavailable, from_os
from lamella.host.open_files import with_original_limit

if TYPE_CHECKING:
    from subprocess import Popen

TIMEOUT: Final = 60.0
"""Seconds for one call, in which a person may have to unlock a keychain."""

MAX_OUTPUT: Final = 1 << 20
"""Bytes of one output."""

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")
_ABSENT: Final = (b"credentials not found", b"no credentials server url")
"""The output, not JSON, for a registry that the keychain has no entry for."""


class CredentialProgram(Struct, frozen=True):
    """One credential helper. Its output never becomes part of a message."""

    program: str
    path: str

    @classmethod
    def find(cls, name: str, where: str, environ: Mapping[str, str]) -> CredentialProgram:
        """Find the helper ``name`` on the PATH of ``environ``; ``where`` is the setting that names it.

        Raises InvalidInput (not a valid name), NotFound.
        """
        from shutil import which

        if not _NAME.fullmatch(name):
            raise InvalidInput(f"{where}: not the name of a credential helper")
        program = f"docker-credential-{name}"
        path = which(program, path=environ.get("PATH"))
        if path is None:
            raise NotFound(f"{where}: {program} is not on the PATH", hint="install it, or remove it from the file")
        return cls(program, path)

    def get(self, server: str, environ: Mapping[str, str]) -> tuple[str, str] | None:
        """User and secret for ``server``; None if the keychain has no entry.

        Raises InvalidInput (malformed output), Unavailable, Exhausted.
        """
        status, output = self._call("get", server.encode(), environ)
        if status:
            if any(text in output.lower() for text in _ABSENT):
                return None
            raise self._failed("get", status)
        try:
            value = json.loads(output)
        except (ValueError, RecursionError):
            raise InvalidInput(f"{self.program} get: the output is not JSON") from None
        user, secret = (value.get("Username"), value.get("Secret")) if isinstance(value, dict) else (None, None)
        if not isinstance(user, str) or not isinstance(secret, str):
            raise InvalidInput(f"{self.program} get: the output has no Username and Secret")
        return (user, secret) if user or secret else None

    def store(self, server: str, user: str, secret: str, environ: Mapping[str, str]) -> None:
        """Store user and secret for ``server``. Raises Unavailable, Exhausted."""
        entry = json.dumps({"ServerURL": server, "Username": user, "Secret": secret})
        status, _ = self._call("store", entry.encode(), environ)
        if status:
            raise self._failed("store", status)

    def erase(self, server: str, environ: Mapping[str, str]) -> None:
        """Remove the entry for ``server``, if there is one. Raises Unavailable, Exhausted."""
        status, output = self._call("erase", server.encode(), environ)
        if status and not any(text in output.lower() for text in _ABSENT):
            raise self._failed("erase", status)

    def _failed(self, verb: str, status: int) -> Unavailable:
        return Unavailable(
            f"{self.program} {verb} failed with status {status}",
            hint=f"run 'docker-credential-{self.program.removeprefix('docker-credential-')} list' to see why",
        )

    def _call(self, verb: str, message: bytes, environ: Mapping[str, str]) -> tuple[int, bytes]:
        """Run the helper; return exit status and output. A thread does the I/O, so that a hanging one can be killed."""
        from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
        from threading import Thread
        from time import monotonic

        end = monotonic() + TIMEOUT
        command = with_original_limit([self.path, verb])
        try:
            process = Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=dict(environ))
        except OSError as error:
            raise from_os(error, f"start {self.program}") from None
        output: list[bytes] = []
        io_thread = Thread(target=_communicate, args=(process, message, output), daemon=True)
        io_thread.start()
        try:
            io_thread.join(TIMEOUT)
            if io_thread.is_alive():
                raise self._timeout(verb)
            if len(output[0]) > MAX_OUTPUT:
                raise Exhausted(f"{self.program} {verb}: more than {MAX_OUTPUT} bytes of output")
            try:
                status = process.wait(max(0.1, end - monotonic()))
            except TimeoutExpired:
                raise self._timeout(verb) from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        return status, output[0]

    def _timeout(self, verb: str) -> LamellaError:
        return Unavailable(f"{self.program} {verb} did not answer within {TIMEOUT:.0f} seconds")


def _communicate(process: Popen[bytes], message: bytes, output: list[bytes]) -> None:
    """Write the input, read the output, close both pipes: a child of the helper may hold its ends open."""
    stdin: Any = process.stdin
    stdout: Any = process.stdout
    try:
        stdin.write(message)
        stdin.close()
    except OSError:  # the helper does not read its input; its exit status tells why
        pass
    try:
        output.append(stdout.read(MAX_OUTPUT + 1))
    except (OSError, ValueError):
        output.append(b"")
    finally:
        stdout.close()
