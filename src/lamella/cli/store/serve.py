# SPDX-License-Identifier: Apache-2.0
"""``lamella serve``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from lamella.cli.console import Console
from lamella.cli.options import PATH, collect
from lamella.cli.store.opening import opened_store, verity_option
from lamella.cli.verb import Verb

if TYPE_CHECKING:
    from socket import socket

    from lamella.service.grpc.rpc import Method

_LOG_FORMATS: Final = ("text", "json")
_SHARED: Final = "shared"
_POLICIES: Final = (_SHARED, "isolated")
_SETTINGS: Final[dict[str, tuple[str, ...] | None]] = {
    "root": None,
    "address": None,
    "plugin": None,
    "containerd": None,
    "verity": ("fs-verity", "dm-verity"),
    "content-sharing": _POLICIES,
    "metrics": None,
    "log-format": _LOG_FORMATS,
}
"""Settings of a file, named like the options, with their values; None for any text."""

_PLUGIN: Final = "plugin"
_METRICS: Final = "metrics"
"""Names of inherited sockets that do not serve containerd's clients."""


def _load(context: click.Context, option: click.Parameter, value: Path | None) -> None:  # noqa: ARG001
    """Take the defaults of the options from a file of settings."""
    if value is None:
        return
    from lamella.service.daemon import read_settings
    from lamella.store.store import ROOT

    found = read_settings(value, _SETTINGS)
    root = found.pop("root", None)
    if root is not None:
        os.environ.setdefault(ROOT, root)
    context.default_map = {name.replace("-", "_"): text for name, text in found.items()}


class ServeOptions(NamedTuple):
    """Where and how the store is served."""

    address: str | None = None
    plugin: str | None = None
    containerd: str | None = None
    verity: str = ""
    content_sharing: str = _SHARED
    metrics: str | None = None
    once: bool = False
    log_format: str = "text"


@click.command("serve", cls=Verb, example="lamella serve --address /run/lamella/lamella.sock")
@click.option(
    "--config",
    metavar="FILE",
    type=PATH,
    is_eager=True,
    expose_value=False,
    callback=_load,
    help="A TOML file with defaults for the options below, under their names, and for root.",
)
@collect(
    "options",
    ServeOptions,
    click.option("--address", metavar="SOCKET", help="The unix socket for clients of containerd."),
    click.option(
        "--plugin", metavar="SOCKET", help="The unix socket for a containerd that uses this server as a plugin."
    ),
    click.option(
        "--containerd",
        metavar="SOCKET",
        help="The socket of the containerd that uses this server as a plugin.  [default: its own]",
    ),
    verity_option,
    click.option(
        "--content-sharing",
        type=click.Choice(_POLICIES),
        default=_SHARED,
        show_default=True,
        help="Whether a namespace can use blobs of other namespaces without uploading them.",
    ),
    click.option(
        "--metrics",
        metavar="[HOST:]PORT|SOCKET",
        help="Where Prometheus fetches metrics; without a host, on the loopback interface only.",
    ),
    click.option("--once", is_flag=True, help="Stop when all clients have disconnected."),
    click.option(
        "--log-format", type=click.Choice(_LOG_FORMATS), default="text", show_default=True, help="Format of the log."
    ),
)
@click.option(
    "--print-containerd-config",
    "config_for",
    type=click.Choice(["1.7", "2"]),
    is_flag=False,
    flag_value="2",
    help="Print the configuration for containerd to use this server as a plugin, 2 by default, and exit.",
)
@click.pass_obj
def command(console: Console, options: ServeOptions, config_for: str | None) -> None:
    """Serve the store to containerd's clients, or to a containerd.

    Clients connect to SOCKET as to containerd: ctr --address SOCKET images ls. A socket without a server is replaced.
    SIGTERM and SIGINT stop the server once the calls in progress are done; the log goes to standard error.

    With --plugin, a containerd unpacks its layers and keeps its snapshots here, in a separate store below the store's
    directory. --print-containerd-config prints the configuration that it needs.

    A service manager may pass open sockets: those named 'plugin' and 'metrics' serve these, all others serve clients.
    """
    from lamella.errors import Unsupported

    try:
        import hpack  # noqa: F401, I001  # first: its name is that of its package
        import google.protobuf  # noqa: F401
    except ModuleNotFoundError as missing:
        raise Unsupported(
            f"to serve, the package {missing.name} is needed", hint="pip install 'lamella[containerd]'"
        ) from missing

    if config_for is not None:
        _print_config(console, config_for, options.plugin)
        return

    from lamella.client.images import SOCKET as CONTAINERD
    from lamella.service import daemon
    from lamella.service.daemon import exclusive_server, serve
    from lamella.service.endpoints.direct import direct_methods
    from lamella.service.endpoints.plugin import opened_plugin, plugin_methods
    from lamella.service.sd_notify import inherited
    from lamella.service.services.served_store import ServedStore

    direct: list[str | socket] = [] if options.address is None else [options.address]
    plugins: list[str | socket] = [] if options.plugin is None else [options.plugin]
    watched: str | socket | None = options.metrics
    for name, given in inherited():
        if name == _PLUGIN:
            plugins.append(given)
        elif name == _METRICS:
            watched = given
        else:
            direct.append(given)
    if not direct and not plugins:
        raise click.UsageError("--address or --plugin is missing")
    daemon.start_log(options.log_format, debug=console.debug)
    with ExitStack() as stack:
        isolated = options.content_sharing != _SHARED
        store = stack.enter_context(opened_store(create=True, verity=options.verity, isolated=isolated, frees=True))
        stack.enter_context(exclusive_server(store.root))
        endpoints: list[tuple[str | socket, Mapping[str, Method]]] = []
        served: list[ServedStore] = []
        if direct:
            shared = ServedStore(store)
            stack.callback(shared.close)
            served.append(shared)
            methods = direct_methods(shared)
            endpoints += [(place, methods) for place in direct]
        if plugins:
            ours = stack.enter_context(opened_plugin(store.root, options.containerd or CONTAINERD, verity=store.verity))
            served.append(ours)
            methods = plugin_methods(ours)
            endpoints += [(place, methods) for place in plugins]

        def leave() -> None:
            for each in served:
                each.leave()

        serve(endpoints, once=options.once, metrics=watched, store=store, leaving=leave)


def _print_config(console: Console, version: str, plugin: str | None) -> None:
    from lamella.oci.platform import host_platform
    from lamella.service.endpoints.plugin import SOCKET, containerd_config
    from lamella.store.store import default_root

    address = Path(os.path.abspath(plugin or SOCKET))
    root = Path(os.path.abspath(default_root()))
    for line in containerd_config(address, root, 2 if version == "1.7" else 3, str(host_platform())).splitlines():
        console.line(line)
