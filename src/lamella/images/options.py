# SPDX-License-Identifier: Apache-2.0
"""Options for registries, the store and containerd, given as values or as the context of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Final, Protocol

from msgspec import Struct

from lamella.progress import Cancellation


class Credential(Protocol):
    """A login at a registry. Absent parts are empty or None."""

    @property
    def username(self) -> str | None: ...

    @property
    def password(self) -> str | None:
        """A password or an access token."""
        ...

    @property
    def identity_token(self) -> str | None:
        """A refresh token, to be exchanged for short-lived tokens."""
        ...


class RegistryOptions(Struct, frozen=True):
    """Options for requests to registries. Times are in seconds, sizes in bytes.

    Defaults are those of other tools: credentials from login files, mirrors and certificates from hosts.toml, proxies
    from the environment.
    """

    plain_http: bool | None = None
    """Whether to use no TLS; None leaves it to the configuration, whose default is plain HTTP on loopback only."""
    credential: Credential | None = None
    """The login to use instead of those in login files."""
    anonymous: bool = False
    """Ignore login files."""
    auth_file: Path | None = None
    """The only login file to read; None for those of other tools."""
    certs_dir: Path | None = None
    """The only directory of mirrors and certificates, with one directory for each registry; None for all usual ones."""
    foreign_urls: bool = False
    """Fetch absent non-distributable layers from the URLs of their descriptors."""
    streams: int = 3
    """Concurrent range requests for one large blob; 1 for a single request."""
    connect_timeout: float = 10
    read_timeout: float = 60
    """The longest wait for the next bytes of a response."""
    rate_window: float = 30
    slowest_rate: int = 1024
    """Bytes per second that a response must deliver over each ``rate_window``."""
    tries: int = 6
    """Attempts at a request that fails with a transient error."""
    retry_wait: float = 120
    """Seconds that the failed tries of one request and the pauses between them may take together."""
    cancel: Cancellation | None = None
    """Checked while waiting."""
    trace: Callable[[str], object] | None = None
    """Receives the head of each request and response as text, without secrets, from any thread; must not raise."""


DEFAULT_OPTIONS: Final = RegistryOptions()

_current: ContextVar[RegistryOptions] = ContextVar("registry options", default=DEFAULT_OPTIONS)


@contextmanager
def registry_options(options: RegistryOptions) -> Iterator[RegistryOptions]:
    """Use ``options`` for all registries that this thread or task opens in the block.

    Options that are passed to a call take precedence.
    """
    token = _current.set(options)
    try:
        yield options
    finally:
        _current.reset(token)


def current_options() -> RegistryOptions:
    """The options of the innermost block, else the defaults."""
    return _current.get()


class StoreOptions(Struct, frozen=True):
    """The store and the namespace in it."""

    root: Path | None = None
    """None for ``LAMELLA_ROOT``, or the platform's usual directory."""
    namespace: str = "default"


CONTAINERD_ADDRESS: Final = "CONTAINERD_ADDRESS"
CONTAINERD_NAMESPACE: Final = "CONTAINERD_NAMESPACE"
"""Environment variables, the same as for containerd's own clients."""


class ContainerdOptions(Struct, frozen=True):
    """The containerd and the namespace in it."""

    address: str | None = None
    """The path of its socket; None for ``CONTAINERD_ADDRESS``, or the usual one."""
    namespace: str | None = None
    """None for ``CONTAINERD_NAMESPACE``, or ``default``."""


_containerd: ContextVar[ContainerdOptions | None] = ContextVar("containerd options", default=None)


@contextmanager
def containerd_options(options: ContainerdOptions) -> Iterator[ContainerdOptions]:
    """Use ``options`` for all images of a containerd that this thread or task opens in the block."""
    token = _containerd.set(options)
    try:
        yield options
    finally:
        _containerd.reset(token)


def current_containerd() -> ContainerdOptions:
    """The options of the innermost block, else the defaults."""
    return _containerd.get() or ContainerdOptions()
