# SPDX-License-Identifier: Apache-2.0
"""How registries and a containerd are talked to and where the store is: values that travel to who needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Final, Protocol

from msgspec import Struct

from lamella.progress import Cancellation


class Credential(Protocol):
    """What somebody proves with who they are. Empty or None is what there is not."""

    @property
    def username(self) -> str | None:
        """The name, in the clear."""
        ...

    @property
    def password(self) -> str | None:
        """A password or an access token."""
        ...

    @property
    def identity_token(self) -> str | None:
        """A refresh token, which is exchanged for short-lived ones."""
        ...


class RegistryOptions(Struct, frozen=True):
    """How registries are talked to. Times are in seconds, sizes in bytes.

    What is not said comes from where other tools look too: credentials from login files, mirrors and certificates from
    hosts.toml, proxies from the environment.
    """

    plain_http: bool | None = None
    """Whether to do without TLS; None leaves it to the configuration, by which loopback hosts alone do."""
    credential: Credential | None = None
    """Who to be, instead of whom the login files say."""
    anonymous: bool = False
    """Use no credentials even where the login files have some."""
    auth_file: Path | None = None
    """The login file to look into, and no other; None for those of other tools."""
    certs_dir: Path | None = None
    """The directory of mirrors and certificates, one directory a registry, and no other settings; None for all."""
    foreign_urls: bool = False
    """Fetch layers that are not with the image, as they may not be passed on, from the addresses that they give."""
    streams: int = 3
    """Requests that fetch ranges of one large blob at the same time; 1 for one request a blob."""
    connect_timeout: float = 10
    read_timeout: float = 60
    """The longest silence while an answer is waited for."""
    rate_window: float = 30
    slowest_rate: int = 1024
    """Bytes a second that a response must bring over each window of waiting."""
    tries: int = 6
    """How often a request is made before a failure that may pass is taken for an answer."""
    retry_wait: float = 120
    """All pauses between the tries of one request together."""
    cancel: Cancellation | None = None
    """Looked at while waiting."""
    said: Callable[[str], object] | None = None
    """Given the head of each request and of each answer as text, without secrets, by any thread; raises nothing."""


DEFAULT_OPTIONS: Final = RegistryOptions()

_current: ContextVar[RegistryOptions] = ContextVar("registry options", default=DEFAULT_OPTIONS)


@contextmanager
def registry_options(options: RegistryOptions) -> Iterator[RegistryOptions]:
    """Let ``options`` count for all registries that are opened in the block, by this thread or task.

    For programs whose operations name images by text; what is given to a call itself comes first.
    """
    token = _current.set(options)
    try:
        yield options
    finally:
        _current.reset(token)


def current_options() -> RegistryOptions:
    """What counts where nothing is given."""
    return _current.get()


class StoreOptions(Struct, frozen=True):
    """Which store is meant, and what in it."""

    root: Path | None = None
    """None for ``LAMELLA_ROOT``, or where the platform keeps such things."""
    namespace: str = "default"


CONTAINERD_ADDRESS: Final = "CONTAINERD_ADDRESS"
CONTAINERD_NAMESPACE: Final = "CONTAINERD_NAMESPACE"
"""Variables that containerd's own clients heed too."""


class ContainerdOptions(Struct, frozen=True):
    """Which containerd is meant, and what in it."""

    address: str | None = None
    """Its socket; None for ``CONTAINERD_ADDRESS``, or the usual one."""
    namespace: str | None = None
    """None for ``CONTAINERD_NAMESPACE``, or ``default``."""


_containerd: ContextVar[ContainerdOptions | None] = ContextVar("containerd options", default=None)


@contextmanager
def containerd_options(options: ContainerdOptions) -> Iterator[ContainerdOptions]:
    """Let ``options`` count for all images of a containerd that are opened in the block, by this thread or task."""
    token = _containerd.set(options)
    try:
        yield options
    finally:
        _containerd.reset(token)


def current_containerd() -> ContainerdOptions:
    """What counts where nothing is given."""
    return _containerd.get() or ContainerdOptions()
