# SPDX-License-Identifier: Apache-2.0
"""Credentials for registries, from the files and keychains that Docker, Podman and skopeo share."""

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
    """All credentials of a user, in the order of the files. Secrets are read when a registry is asked for."""

    __slots__ = ("_environ", "_files")

    def __init__(self, files: Sequence[AuthFile] = (), environ: Mapping[str, str] | None = None) -> None:
        self._files = tuple(files)
        self._environ = os.environ if environ is None else environ

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> Credentials:
        """Those of the files that ``environ`` (this process's) leads to; files that are not there are left out.

        ``$REGISTRY_AUTH_FILE`` alone where it is set. Else ``$DOCKER_CONFIG/config.json`` where that is set,
        ``containers/auth.json`` in ``$XDG_RUNTIME_DIR`` and in ``$XDG_CONFIG_HOME`` or ``~/.config``, and, without
        ``$DOCKER_CONFIG``, ``~/.docker/config.json``. Raises InvalidInput, which names file and key; Exhausted, Denied.
        """
        environ = os.environ if environ is None else environ
        return cls([AuthFile(path) for path in auth_paths(environ)], environ)

    def for_registry(self, registry: str, repository: str = "") -> Credential | None:
        """What to show to ``registry`` for ``repository``; None where nothing is known.

        The first file that knows counts. In it ``credHelpers`` comes first, then ``credsStore``, then ``auths``, where
        the longest key that the repository's name begins with counts (``HOST/TEAM/APP`` before ``HOST/TEAM`` before
        ``HOST``). Raises InvalidInput, NotFound (a keychain's program), Unavailable (it fails), Exhausted.
        """
        for file in self._files:
            found = file.find(registry, repository, self._environ)
            if found is not None:
                return found
        return None


def login(
    registry: str, credential: Credential, path: Path | None = None, environ: Mapping[str, str] | None = None
) -> str:
    """Keep ``credential`` for ``registry`` and return where: a file, or the program of a keychain.

    It goes to ``path``, or to the first file that knows the registry already, so that what is found later is what was
    kept; else to Docker's file, which all tools read, or the one that ``$REGISTRY_AUTH_FILE`` names. A file is
    replaced as a whole, is readable by its owner alone, and keeps whatever else it has.
    Raises InvalidInput, NotFound, Denied, Unavailable, Exhausted.
    """
    environ = os.environ if environ is None else environ
    if ":" in credential.username:
        raise InvalidInput("a user's name cannot have a colon")
    if path is not None:
        return AuthFile(path).put(registry, credential, environ)
    files = [AuthFile(candidate) for candidate in auth_paths(environ)]
    known = next((file for file in files if file.knows(registry)), None)
    target = known or AuthFile(_default_path(environ))
    return target.put(registry, credential, environ)


def logout(registry: str, path: Path | None = None, environ: Mapping[str, str] | None = None) -> None:
    """Forget ``registry``, in ``path`` or in every file and keychain that would be asked for it.

    Raises NotFound where none knew it; InvalidInput, Denied, Unavailable, Exhausted.
    """
    environ = os.environ if environ is None else environ
    paths = [path] if path is not None else auth_paths(environ)
    known = [AuthFile(candidate).remove(registry, environ) for candidate in paths]
    if not any(known):
        raise NotFound(f"there is no login for {registry}")


def auth_paths(environ: Mapping[str, str]) -> list[Path]:
    """The files to read, in order, whether they are there or not."""
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
        raise NotFound("there is no home directory to keep a login in", hint=f"set {_AUTH_FILE} or {_DOCKER_CONFIG}")
    return home / ".docker/config.json"


def _home(environ: Mapping[str, str]) -> Path | None:
    if home := environ.get("HOME") or environ.get("USERPROFILE"):
        return Path(home)
    try:
        return Path.home() if environ is os.environ else None
    except RuntimeError:
        return None
