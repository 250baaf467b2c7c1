# SPDX-License-Identifier: Apache-2.0
"""Credentials for registries, from the files and keychains shared with Docker, Podman and skopeo."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from lamella.errors import InvalidInput, NotFound
from lamella.registry.auth.file import AuthFile, Credential

__all__ = ["Credential", "Credentials", "login", "logout"]

_AUTH_FILE: Final = "REGISTRY_AUTH_FILE"
_DOCKER_CONFIG: Final = "DOCKER_CONFIG"


class Credentials:
    """The credentials in several files, in their order. Secrets are read on demand."""

    __slots__ = ("_environ", "_files")

    def __init__(self, files: Sequence[AuthFile] = (), environ: Mapping[str, str] | None = None) -> None:
        self._files = tuple(files)
        self._environ = os.environ if environ is None else environ

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> Credentials:
        """Load the files that ``environ``, by default this process's, names; missing files are ignored.

        ``$REGISTRY_AUTH_FILE`` alone if it is set. Otherwise ``$DOCKER_CONFIG/config.json`` if that is set,
        ``containers/auth.json`` in ``$XDG_RUNTIME_DIR`` and in ``$XDG_CONFIG_HOME`` or ``~/.config``, and without
        ``$DOCKER_CONFIG``, ``~/.docker/config.json``. Raises InvalidInput, which names file and key; Exhausted, Denied.
        """
        environ = os.environ if environ is None else environ
        return cls([AuthFile(path) for path in auth_paths(environ)], environ)

    def for_registry(self, registry: str, repository: str = "") -> Credential | None:
        """The credential for ``repository`` in ``registry``; None if there is none.

        The first file with one counts. In a file, ``credHelpers`` precede ``credsStore``, and that precedes ``auths``,
        of which the longest matching key counts (``HOST/TEAM/APP`` before ``HOST/TEAM`` before ``HOST``). Raises
        InvalidInput, NotFound (a missing credential helper), Unavailable (a failing one), Exhausted.
        """
        for file in self._files:
            found = file.find(registry, repository, self._environ)
            if found is not None:
                return found
        return None


def login(
    registry: str, credential: Credential, path: Path | None = None, environ: Mapping[str, str] | None = None
) -> str:
    """Store ``credential`` for ``registry`` and return the file, or the credential helper, that holds it.

    It goes to ``path``, or to the first file with an entry for the registry, which lookups find first; otherwise to
    the file of ``$REGISTRY_AUTH_FILE``, or to Docker's, which all tools read. The file is replaced atomically, is
    readable by its owner only, and keeps its other content.
    Raises InvalidInput, NotFound, Denied, Unavailable, Exhausted.
    """
    environ = os.environ if environ is None else environ
    if ":" in credential.username:
        raise InvalidInput("a user name cannot contain a colon")
    if path is not None:
        return AuthFile(path).put(registry, credential, environ)
    files = [AuthFile(candidate) for candidate in auth_paths(environ)]
    known = next((file for file in files if file.knows(registry)), None)
    target = known or AuthFile(_default_path(environ))
    return target.put(registry, credential, environ)


def logout(registry: str, path: Path | None = None, environ: Mapping[str, str] | None = None) -> None:
    """Remove ``registry`` from ``path``, or from every file and keychain that lookups use.

    Raises NotFound if none has it; InvalidInput, Denied, Unavailable, Exhausted.
    """
    environ = os.environ if environ is None else environ
    paths = [path] if path is not None else auth_paths(environ)
    known = [AuthFile(candidate).remove(registry, environ) for candidate in paths]
    if not any(known):
        raise NotFound(f"there is no login for {registry}")


def auth_paths(environ: Mapping[str, str]) -> list[Path]:
    """The files to read, in order; they may not exist."""
    if named := environ.get(_AUTH_FILE):
        return [Path(named)]
    paths = [_default_path(environ)] if environ.get(_DOCKER_CONFIG) else []
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        paths.append(Path(runtime, "containers/auth.json"))
    if config := environ.get("XDG_CONFIG_HOME"):
        paths.append(Path(config, "containers/auth.json"))
    elif home := _home(environ):
        paths.append(home / ".config/containers/auth.json")
    if not environ.get(_DOCKER_CONFIG) and _home(environ):
        paths.append(_default_path(environ))
    return paths


def _default_path(environ: Mapping[str, str]) -> Path:
    if named := environ.get(_AUTH_FILE):
        return Path(named)
    if directory := environ.get(_DOCKER_CONFIG):
        return Path(directory, "config.json")
    home = _home(environ)
    if home is None:
        raise NotFound("there is no home directory to store a login in", hint=f"set {_AUTH_FILE} or {_DOCKER_CONFIG}")
    return home / ".docker/config.json"


def _home(environ: Mapping[str, str]) -> Path | None:
    if home := environ.get("HOME") or environ.get("USERPROFILE"):
        return Path(home)
    try:
        return Path.home() if environ is os.environ else None
    except RuntimeError:
        return None
