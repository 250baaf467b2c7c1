# SPDX-License-Identifier: Apache-2.0
"""Hosts of a registry: mirrors and TLS settings, from containerd's ``hosts.toml`` or from ``registries.toml``.

``registries.toml`` is Lamella's own: the tables of many ``hosts.toml`` in one file, each under
``[registry."HOST[:PORT]"]``. Its unknown keys are errors; those of a ``hosts.toml`` are ignored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from msgspec import Struct
from msgspec.structs import replace

from lamella.errors import Denied, Exhausted, InvalidInput, from_os
from lamella.registry.http.urls import is_loopback

CAPABILITIES: Final = frozenset({"pull", "resolve", "push", "referrers"})
MAX_FILE: Final = 1 << 20
"""Bytes of one file."""

_REGISTRIES: Final = "LAMELLA_REGISTRIES"
_CERTS_DIR: Final = "LAMELLA_CERTS_DIR"
_DEFAULT: Final = "_default"
_HUB: Final = "docker.io"
_HUB_HOST: Final = "registry-1.docker.io"
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_HOST_KEYS: Final = {"capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"}
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class HostConfig(Struct, frozen=True):
    """One host and how to reach it. Its repr shows no headers, which may hold secrets."""

    scheme: str
    """``https`` or ``http``."""
    host: str
    """``name`` or ``name:port``."""
    path: str = "/v2"
    """The path before ``/NAME/manifests/...``, without a slash at its end."""
    capabilities: frozenset[str] = CAPABILITIES
    ca: tuple[Path, ...] = ()
    """PEM files of authorities trusted besides those of the system."""
    client: tuple[tuple[Path, Path | None], ...] = ()
    """Client certificates and their keys; without a key, the certificate's file holds both."""
    skip_verify: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    """Headers added to each request to this host only."""
    connect_timeout: float | None = None
    """Seconds; None if not set."""

    def __repr__(self) -> str:
        return f"HostConfig({self.url!r}, {len(self.headers)} headers)"

    @property
    def url(self) -> str:
        """The base of all URLs, such as ``https://registry-1.docker.io/v2``."""
        return f"{self.scheme}://{self.host}{self.path}"

    @property
    def plain_http(self) -> bool:
        """Whether the host has no TLS."""
        return self.scheme == "http"


def name_of_host(registry: str) -> str:
    """The host of a registry, with its port if it has one; the same name except for Docker Hub."""
    return _HUB_HOST if registry in (_HUB, "index.docker.io") else registry


def hosts_for(
    registry: str, *, plain_http: bool = False, directory: Path | None = None, environ: Mapping[str, str] | None = None
) -> tuple[HostConfig, ...]:
    """The hosts of ``registry`` in the order to try them: its mirrors, then the registry itself.

    The first place with settings for the registry, or with a ``_default``, counts: only ``directory`` if it is given;
    else ``registries.toml`` and ``certs.d/HOST[:PORT]/hosts.toml`` in ``~/.config/lamella``, both in ``/etc/lamella``,
    then ``/etc/containerd/certs.d`` and the certificates in ``/etc/docker/certs.d``. ``$LAMELLA_REGISTRIES`` replaces
    the files, ``$LAMELLA_CERTS_DIR`` the directories (a list as in PATH).

    Without settings, a registry has TLS, except on a loopback address with another port than 443. ``plain_http``
    disables TLS for the registry itself. Raises InvalidInput, which names file and key; Exhausted, Denied.
    """
    if not registry or "/" in registry or registry.startswith("."):
        raise InvalidInput(f"{registry[:100]!r} is not a registry")
    environ = os.environ if environ is None else environ
    own = _own_host(registry, plain_http)
    for place in [_Certificates(directory)] if directory is not None else _places(environ):
        found = place.find(registry, own)
        if found is not None:
            *mirrors, last = found
            if plain_http:
                last = replace(last, scheme="http")
            return (*mirrors, last)
    return (own,)


class _Registries:
    """A ``registries.toml``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def find(self, registry: str, own: HostConfig) -> list[HostConfig] | None:
        document = _read(self.path)
        if document is None:
            return None
        reader = _Reader(self.path, strict=True)
        reader.check_keys(document, {"registry"}, "")
        tables = reader.table(document, "registry", "")
        for name in (registry, _DEFAULT):
            if name in tables:
                return reader.hosts(reader.table(tables, name, "registry"), own, f'registry."{name}"')
        return None


class _Certificates:
    """A directory with one directory for each registry, such as containerd's and Docker's ``certs.d``."""

    def __init__(self, path: Path, *, others: bool = False, docker: bool = False) -> None:
        self.path = path
        self._others = others  # another program's settings, which this user may not be allowed to read
        self._docker = docker

    def find(self, registry: str, own: HostConfig) -> list[HostConfig] | None:
        name, port = _split_port(registry)
        names = [registry, *([f"{name}_{port}_"] if port else []), *([] if self._docker else [_DEFAULT])]
        for candidate in names:
            try:
                found = self._in(self.path / candidate, own)
            except Denied:
                if self._others:
                    return None
                raise
            if found is not None:
                return found
        return None

    def _in(self, directory: Path, own: HostConfig) -> list[HostConfig] | None:
        if not self._docker:
            document = _read(directory / "hosts.toml")
            if document is not None:
                return _Reader(directory / "hosts.toml", strict=False).hosts(document, own, "")
        try:
            names = sorted(os.listdir(directory))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise from_os(error, f"list {str(directory)!r}") from error
        client: list[tuple[Path, Path | None]] = []
        for name in names:
            if name.endswith(".cert"):
                key = name.removesuffix("cert") + "key"
                if key not in names:
                    raise InvalidInput(f"{directory / name}: its key, {key}, is missing")
                client.append((directory / name, directory / key))
        ca = tuple(directory / name for name in names if name.endswith(".crt"))
        if not ca and not client:
            return None
        return [replace(own, scheme="https", ca=ca, client=tuple(client))]


def _places(environ: Mapping[str, str]) -> Iterable[_Registries | _Certificates]:
    home = environ.get("XDG_CONFIG_HOME") or (f"{environ['HOME']}/.config" if environ.get("HOME") else "")
    folders = [Path(home, "lamella")] if home else []
    folders.append(Path("/etc/lamella"))
    file, directories = environ.get(_REGISTRIES), environ.get(_CERTS_DIR)
    if file:
        yield _Registries(Path(file))
    if directories:
        yield from (_Certificates(Path(name)) for name in directories.split(os.pathsep) if name)
    for folder in folders:
        if not file:
            yield _Registries(folder / "registries.toml")
        if not directories:
            yield _Certificates(folder / "certs.d")
    if not directories:
        yield _Certificates(Path("/etc/containerd/certs.d"), others=True)
        yield _Certificates(Path("/etc/docker/certs.d"), others=True, docker=True)


class _Reader:
    """Parses the tables of one file into hosts; every error names the file and the key."""

    def __init__(self, path: Path, *, strict: bool) -> None:
        self.path = path
        self._strict = strict

    def hosts(self, table: dict[str, Any], own: HostConfig, at: str) -> list[HostConfig]:
        """The hosts of one registry's table; the registry itself is the last."""
        extra = {"server", "host"} | ({"mirrors", "plain_http"} if self._strict else set())
        self.check_keys(table, _HOST_KEYS | extra, at)
        found = []
        for url, settings in self.table(table, "host", at).items():
            where = _dotted(at, f'host."{url}"')
            if not isinstance(settings, dict):
                raise self.error(where, "expected a table")
            self.check_keys(settings, _HOST_KEYS, where)
            found.append(self._host(self._base(url, where), settings, where))
        if self._strict:
            for url in self._texts(table, "mirrors", at):
                where = _dotted(at, "mirrors")
                found.append(self._host(self._base(url, where), {"capabilities": ["pull", "resolve"]}, where))
        last = self._host(own, table, at)
        if "server" in table:
            url = self._text(table, "server", at)
            last = self._host(self._base(url, _dotted(at, "server")), table, at)
        elif last.ca or last.client or last.skip_verify:
            last = replace(last, scheme="https")
        if self._strict and self._flag(table, "plain_http", at):
            last = replace(last, scheme="http")
        return [*found, last]

    def _host(self, base: HostConfig, table: dict[str, Any], at: str) -> HostConfig:
        path = base.path
        if not self._flag(table, "override_path", at) and not path.endswith("/v2"):
            path += "/v2"
        capabilities = frozenset(self._texts(table, "capabilities", at)) or CAPABILITIES
        if not capabilities <= CAPABILITIES:
            raise self.error(_dotted(at, "capabilities"), f"expected some of {', '.join(sorted(CAPABILITIES))}")
        return replace(
            base,
            path=path,
            capabilities=capabilities,
            ca=tuple(self.path.parent / name for name in self._texts(table, "ca", at)),
            client=self._client(table, at),
            skip_verify=self._flag(table, "skip_verify", at),
            headers=self._headers(table, at),
            connect_timeout=self._duration(table, "dial_timeout", at),
        )

    def _base(self, url: str, at: str) -> HostConfig:
        """The host of a URL; a bare name has TLS, as for containerd."""
        try:
            parts = urlsplit(url if "://" in url else f"https://{url}")
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            valid, parts = False, SplitResult("", "", "", "", "")
        # No user name: URLs are sent and logged as if they held no password.
        if not valid or parts.query or parts.fragment or "@" in parts.netloc or not parts.netloc.isascii():
            raise self.error(at, "expected a URL such as https://mirror.example:5000")
        host = _HUB_HOST if parts.netloc == _HUB else parts.netloc
        return HostConfig(parts.scheme, host, parts.path.rstrip("/"))

    def _client(self, table: dict[str, Any], at: str) -> tuple[tuple[Path, Path | None], ...]:
        """Parse a file with certificate and key, a list of such files, or a list of pairs."""
        value = table.get("client", [])
        where = _dotted(at, "client")
        pairs: list[tuple[Path, Path | None]] = []
        for item in [value] if isinstance(value, str) else value if isinstance(value, list) else [None]:
            match item:
                case str():
                    pairs.append((self.path.parent / item, None))
                case [str(certificate)]:
                    pairs.append((self.path.parent / certificate, None))
                case [str(certificate), str(key)]:
                    pairs.append((self.path.parent / certificate, self.path.parent / key if key else None))
                case _:
                    raise self.error(where, "expected a file, or a list of files or of pairs of certificate and key")
        return tuple(pairs)

    def _headers(self, table: dict[str, Any], at: str) -> tuple[tuple[str, str], ...]:
        headers = []
        for name in self.table(table, "header", at):
            where = _dotted(at, "header")
            if not _TOKEN.fullmatch(name):
                raise self.error(where, "a name is not a valid header name")
            for value in self._texts(table["header"], name, where):
                if not value.isprintable():
                    raise self.error(_dotted(where, name), "a value has characters that a header cannot have")
                headers.append((name, value))
        return tuple(headers)

    def _duration(self, table: dict[str, Any], key: str, at: str) -> float | None:
        if key not in table:
            return None
        text = self._text(table, key, at)
        parts = _DURATION.findall(text)
        if not parts or "".join(map("".join, parts)) != text:
            raise self.error(_dotted(at, key), "expected a time such as 10s or 1m30s")
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
        return seconds or None

    def table(self, table: dict[str, Any], key: str, at: str) -> dict[str, Any]:
        """The table under ``key``; empty if absent."""
        value = table.get(key, {})
        if not isinstance(value, dict):
            raise self.error(_dotted(at, key), "expected a table")
        return value

    def _text(self, table: dict[str, Any], key: str, at: str) -> str:
        value = table[key]
        if not isinstance(value, str):
            raise self.error(_dotted(at, key), "expected a string")
        return value

    def _texts(self, table: dict[str, Any], key: str, at: str) -> list[str]:
        value = table.get(key, [])
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise self.error(_dotted(at, key), "expected a string or a list of strings")
        return texts

    def _flag(self, table: dict[str, Any], key: str, at: str) -> bool:
        value = table.get(key, False)
        if not isinstance(value, bool):
            raise self.error(_dotted(at, key), "expected true or false")
        return value

    def check_keys(self, table: dict[str, Any], keys: set[str], at: str) -> None:
        """Refuse unknown keys in Lamella's own file, which may be typing errors."""
        if self._strict:
            for key in table:
                if key not in keys:
                    hint = f"known keys: {', '.join(sorted(keys))}"
                    raise InvalidInput(f"{self.path}: {_dotted(at, key)[:300]}: unknown key", hint=hint)

    def error(self, at: str, problem: str) -> InvalidInput:
        """The error for the key ``at``."""
        return InvalidInput(f"{self.path}: {at[:300]}: {problem}")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise from_os(error, f"read {str(path)!r}") from error
    if len(raw) > MAX_FILE:
        raise Exhausted(f"{path}: more than {MAX_FILE} bytes; not a file of settings")
    import tomllib  # late, since most users have no such file

    try:
        return tomllib.loads(raw.decode())
    except UnicodeDecodeError:
        raise InvalidInput(f"{path}: not UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        where = re.search(r"\(at .*\)$", str(error))
        raise InvalidInput(f"{path}: not TOML{f' {where[0]}' if where else ''}") from None


def _own_host(registry: str, plain_http: bool) -> HostConfig:
    host = name_of_host(registry)
    name, port = _split_port(host)
    plain = plain_http or (port != "443" and is_loopback(name.strip("[]")))
    return HostConfig("http" if plain else "https", host)


def _split_port(host: str) -> tuple[str, str]:
    """Name and port, empty if there is none; an IPv6 address keeps its brackets."""
    name, colon, port = host.rpartition(":")
    return (name, port) if colon and not port.endswith("]") else (host, "")


def _dotted(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key
