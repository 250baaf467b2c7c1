# SPDX-License-Identifier: Apache-2.0
"""Keychains behind programs named ``docker-credential-NAME``, which take a verb and answer in JSON."""

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
"""Seconds for one call; a person may have to unlock a keychain meanwhile."""

MAX_ANSWER: Final = 1 << 20
"""Bytes of one answer."""

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")
_ABSENT: Final = (b"credentials not found", b"no credentials server url")
"""What the programs print, in place of JSON, where a keychain has nothing for a registry."""


class CredentialProgram(Struct, frozen=True):
    """One such program. Nothing that it prints ever becomes part of a message."""

    program: str
    path: str

    @classmethod
    def find(cls, name: str, where: str, environ: Mapping[str, str]) -> CredentialProgram:
        """The program for the keychain ``name``, looked for on the PATH of ``environ``; ``where`` says who named it.

        Raises InvalidInput (no name of a keychain), NotFound.
        """
        from shutil import which

        if not _NAME.fullmatch(name):
            raise InvalidInput(f"{where}: not the name of a credential helper")
        program = f"docker-credential-{name}"
        path = which(program, path=environ.get("PATH"))
        if path is None:
            raise NotFound(f"{where}: there is no {program} on the PATH", hint="install it, or take it out of the file")
        return cls(program, path)

    def get(self, server: str, environ: Mapping[str, str]) -> tuple[str, str] | None:
        """User and secret for ``server``, or None where the keychain has neither.

        Raises InvalidInput (an answer in another form), Unavailable, Exhausted.
        """
        status, answer = self._call("get", server.encode(), environ)
        if status:
            if any(text in answer.lower() for text in _ABSENT):
                return None
            raise self._failed("get", status)
        try:
            value = json.loads(answer)
        except (ValueError, RecursionError):
            raise InvalidInput(f"{self.program} get: the answer is not JSON") from None
        user, secret = (value.get("Username"), value.get("Secret")) if isinstance(value, dict) else (None, None)
        if not isinstance(user, str) or not isinstance(secret, str):
            raise InvalidInput(f"{self.program} get: the answer has no Username and Secret")
        return (user, secret) if user or secret else None

    def store(self, server: str, user: str, secret: str, environ: Mapping[str, str]) -> None:
        """Keep user and secret for ``server``. Raises Unavailable, Exhausted."""
        entry = json.dumps({"ServerURL": server, "Username": user, "Secret": secret})
        status, _ = self._call("store", entry.encode(), environ)
        if status:
            raise self._failed("store", status)

    def erase(self, server: str, environ: Mapping[str, str]) -> None:
        """Forget ``server``; it is no error that there is nothing to forget. Raises Unavailable, Exhausted."""
        status, answer = self._call("erase", server.encode(), environ)
        if status and not any(text in answer.lower() for text in _ABSENT):
            raise self._failed("erase", status)

    def _failed(self, verb: str, status: int) -> Unavailable:
        return Unavailable(
            f"{self.program} {verb} failed with status {status}",
            hint=f"run 'docker-credential-{self.program.removeprefix('docker-credential-')} list' to see why",
        )

    def _call(self, verb: str, message: bytes, environ: Mapping[str, str]) -> tuple[int, bytes]:
        """Exit status and output. A thread talks, so that a program which neither ends nor prints can be given up."""
        from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
        from threading import Thread
        from time import monotonic

        end = monotonic() + TIMEOUT
        command = with_original_limit([self.path, verb])
        try:
            process = Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=dict(environ))
        except OSError as error:
            raise from_os(error, f"start {self.program}") from None
        answer: list[bytes] = []
        talk = Thread(target=_talk, args=(process, message, answer), daemon=True)
        talk.start()
        try:
            talk.join(TIMEOUT)
            if talk.is_alive():
                raise self._slow(verb)
            if len(answer[0]) > MAX_ANSWER:
                raise Exhausted(f"{self.program} {verb}: more than {MAX_ANSWER} bytes of answer")
            try:
                status = process.wait(max(0.1, end - monotonic()))
            except TimeoutExpired:
                raise self._slow(verb) from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        return status, answer[0]

    def _slow(self, verb: str) -> LamellaError:
        return Unavailable(f"{self.program} {verb} gave no answer in {TIMEOUT:.0f} seconds")


def _talk(process: Popen[bytes], message: bytes, answer: list[bytes]) -> None:
    """Write and read, then close both pipes: what the program started may hold its end longer than anybody waits."""
    stdin: Any = process.stdin
    stdout: Any = process.stdout
    try:
        stdin.write(message)
        stdin.close()
    except OSError:  # it does not read: its status tells what is wrong
        pass
    try:
        answer.append(stdout.read(MAX_ANSWER + 1))
    except (OSError, ValueError):
        answer.append(b"")
    finally:
        stdout.close()
