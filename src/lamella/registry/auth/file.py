# SPDX-License-Identifier: Apache-2.0
"""One file of credentials: Docker's ``config.json``, or the ``auth.json`` of containers-auth.json(5)."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from lamella.errors import Exhausted, InvalidInput, LamellaError, NotFound, from_os
from lamella.host.durability import sync_directory
from lamella.registry.auth.helper_program import CredentialProgram

MAX_FILE: Final = 4 << 20
"""Bytes of one file."""

HUB: Final = "docker.io"
HUB_KEY: Final = "https://index.docker.io/v1/"
"""Docker Hub's key in Docker's file and for credential helpers."""

TOKEN_USER: Final = "<token>"  # noqa: S105  # as a user name: the secret is an identity token

_HUB_NAMES: Final = (HUB, "index.docker.io", "registry-1.docker.io")


class Credential(Struct, frozen=True):
    """A login at a registry or its token server. Its repr shows no secret."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    """A refresh token; if there is one, the password is not used."""

    def __repr__(self) -> str:
        return f"Credential({self.username!r})"


def normal(key: str) -> str:
    """A key in one form: a host, or a host and the beginning of a repository's name.

    A URL is reduced to its host, because old keys have meaningless paths (``https://index.docker.io/v1/``).
    """
    scheme, separator, rest = key.partition("://")
    host, slash, path = (rest if separator else scheme).partition("/")
    if host in _HUB_NAMES:
        host = HUB
        if path.rstrip("/") in ("v1", "v2"):
            path = ""
    return host if separator or not path else host + slash + path.rstrip("/")


class AuthFile:
    """The file at ``path``, read once; a file that is not there is an empty one.

    Raises InvalidInput for what is malformed, naming the file and the key and never what it holds; Exhausted, Denied.
    """

    __slots__ = ("_auths", "_document", "_helpers", "_store", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._document = _read(path)
        self._auths = self._table("auths", dict)
        self._helpers = self._table("credHelpers", str)
        store = self._document.get("credsStore")
        if not isinstance(store, str | None):
            raise self._error("credsStore", "expected a string")
        self._store = store or ""

    def find(self, registry: str, repository: str, environ: Mapping[str, str]) -> Credential | None:
        """The best match for a repository; order and errors are those of `Credentials.for_registry`."""
        for named in self._helpers_for(registry):
            found = self._ask(*named, environ)
            if found:
                return found
        absent: LamellaError | None = None
        if self._store:
            try:
                found = self._ask(self._store, _server(registry), "credsStore", environ)
                if found:
                    return found
            except NotFound as error:  # the helper is not installed; the file may have an entry
                absent = error
        by_name = {normal(key): key for key in self._auths if "://" in key}
        by_name.update((normal(key), key) for key in self._auths if "://" not in key)
        for candidate in _candidates(registry, repository):
            key = by_name.get(candidate)
            if key is not None and (found := self._decode(key)):
                return found
        if absent is not None:
            raise absent
        return None

    def knows(self, registry: str) -> bool:
        """Whether the file has an entry for the registry as a whole."""
        wanted = normal(registry)
        return any(normal(key) == wanted for key in (*self._auths, *self._helpers))

    def put(self, registry: str, credential: Credential, environ: Mapping[str, str]) -> str:
        """Store a credential in this file, or in the keychain that it names, and return the name of either."""
        named = next(self._helpers_for(registry), None)
        if named is None and self._store:
            named = self._store, _server(registry), "credsStore"
        if named is not None:
            name, server, key = named
            program = CredentialProgram.find(name, self._locate(key), environ)
            user, secret = credential.username, credential.password
            if credential.identity_token:
                user, secret = TOKEN_USER, credential.identity_token
            program.store(server, user, secret, environ)
            if self._drop(registry):
                self._write()
            return program.program
        entry = {"auth": base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()}
        if credential.identity_token:
            entry["identitytoken"] = credential.identity_token
        self._drop(registry)
        key = _server(registry) if self.path.name == "config.json" else normal(registry)
        self._document.setdefault("auths", {})[key] = entry
        self._write()
        return str(self.path)

    def remove(self, registry: str, environ: Mapping[str, str]) -> bool:
        """Remove the registry from this file and the keychains that it names; return whether any had it."""
        known = False
        named = list(self._helpers_for(registry))
        if self._store:
            named.append((self._store, _server(registry), "credsStore"))
        for name, server, key in named:
            try:
                program = CredentialProgram.find(name, self._locate(key), environ)
            except NotFound:
                if key != "credsStore":
                    raise
                continue
            if program.get(server, environ) is not None:
                program.erase(server, environ)
                known = True
        if self._drop(registry):
            self._write()
            known = True
        return known

    def _helpers_for(self, registry: str) -> Iterator[tuple[str, str, str]]:
        """Yield keychain, the registry's name in it, and the key of this file that names it."""
        wanted = normal(registry)
        for key, name in self._helpers.items():
            if name and normal(key) == wanted:
                yield name, key, f"credHelpers.{key}"

    def _ask(self, name: str, server: str, key: str, environ: Mapping[str, str]) -> Credential | None:
        answer = CredentialProgram.find(name, self._locate(key), environ).get(server, environ)
        if answer is None:
            return None
        user, secret = answer
        return Credential(identity_token=secret) if user == TOKEN_USER else Credential(user, secret)

    def _decode(self, key: str) -> Credential | None:
        entry = self._auths[key]
        texts = {name: entry.get(name) or "" for name in ("auth", "username", "password", "identitytoken")}
        for name, text in texts.items():
            if not isinstance(text, str):
                raise self._error(f"auths.{key}.{name}", "expected a string")
        user, password = texts["username"], texts["password"]
        if texts["auth"]:
            try:
                pair = base64.b64decode(texts["auth"], validate=True).decode()
            except (binascii.Error, ValueError):
                raise self._error(f"auths.{key}.auth", "expected user:password in base64") from None
            user, colon, password = pair.partition(":")
            if not colon or not user:
                raise self._error(f"auths.{key}.auth", "expected user:password in base64")
            password = password.rstrip("\0")  # old versions of Docker padded it
        token = texts["identitytoken"]
        return Credential(user, password, token) if (user and password) or token else None

    def _drop(self, registry: str) -> bool:
        wanted = normal(registry)
        keys = [key for key in self._auths if normal(key) == wanted]
        for key in keys:
            del self._auths[key]
        return bool(keys)

    def _table(self, name: str, kind: type) -> dict[str, Any]:
        table = self._document.get(name)
        if table is None:
            self._document.pop(name, None)
            return {}
        if not isinstance(table, dict):
            raise self._error(name, "expected an object")
        for key, value in table.items():
            if not isinstance(value, kind):
                raise self._error(f"{name}.{key}", "expected an object" if kind is dict else "expected a string")
        return table

    def _locate(self, key: str) -> str:
        return f"{self.path}: {key[:300]}"

    def _error(self, key: str, problem: str) -> InvalidInput:
        return InvalidInput(f"{self._locate(key)}: {problem}")

    def _write(self) -> None:
        """Replace the file atomically with mode 0600; a symlink is followed."""
        from tempfile import NamedTemporaryFile

        text = json.dumps(self._document, indent="\t", ensure_ascii=False) + "\n"
        path = os.path.realpath(self.path)
        parent = os.path.dirname(path)
        try:
            os.makedirs(parent, mode=0o700, exist_ok=True)
            with NamedTemporaryFile(dir=parent, prefix=".lamella-", delete=False) as file:  # creates it with mode 0600
                try:
                    file.write(text.encode("utf-8", "surrogatepass"))
                    file.flush()
                    os.fsync(file.fileno())
                    os.replace(file.name, path)
                except BaseException:
                    os.unlink(file.name)
                    raise
            sync_directory(parent)
        except OSError as error:
            raise from_os(error, f"write {path!r}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise from_os(error, f"read {str(path)!r}") from error
    if len(raw) > MAX_FILE:
        raise Exhausted(f"{path}: more than {MAX_FILE} bytes; not a file of credentials")
    if not raw.strip():
        return {}
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):  # the parser's error quotes the text
        raise InvalidInput(f"{path}: not JSON") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"{path}: expected a JSON object")
    return value


def _server(registry: str) -> str:
    return HUB_KEY if normal(registry) == HUB else registry


def _candidates(registry: str, repository: str) -> Iterator[str]:
    """Yield the keys that match a repository, the most specific first."""
    name = f"{normal(registry)}/{repository}".rstrip("/")
    while name:
        yield name
        name = name.rpartition("/")[0]
