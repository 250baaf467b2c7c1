# SPDX-License-Identifier: Apache-2.0
"""``lamella serve``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from lamella.cli.console import Console
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
"""What a file may say: the options of these names, and where the store is."""

_PLUGIN: Final = "plugin"
_METRICS: Final = "metrics"
"""Names that a service manager gives to sockets which are not for containerd's clients."""


def _load(context: click.Context, option: click.Parameter, value: Path | None) -> None:  # noqa: ARG001
    """Let the file that ``--config`` names say what the options do not."""
    if value is None:
        return
    from lamella.service.daemon import read_settings
    from lamella.store.store import ROOT

    found = read_settings(value, _SETTINGS)
    root = found.pop("root", None)
    if root is not None:
        os.environ.setdefault(ROOT, root)
    context.default_map = {name.replace("-", "_"): text for name, text in found.items()}


@click.command("serve", cls=Verb)
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_load,
    help="Take from this file, in TOML, what the options below do not say, by their names; and root.",
)
@click.option("--address", metavar="SOCKET", help="The unix socket to listen at.")
@click.option("--plugin", metavar="SOCKET", help="The unix socket to be containerd's plugin at.")
@click.option(
    "--containerd", metavar="SOCKET", help="Where the containerd is whose plugin this is.  [default: its usual socket]"
)
@click.option(
    "--print-containerd-config",
    "config_for",
    type=click.Choice(["1.7", "2"]),
    is_flag=False,
    flag_value="2",
    help="Print what makes this the plugin of such a containerd, 2 by default, and stop.",
)
@verity_option
@click.option(
    "--content-sharing",
    type=click.Choice(_POLICIES),
    default=_SHARED,
    show_default=True,
    help="Whether a namespace gets a blob that another one has without sending its bytes.",
)
@click.option(
    "--metrics",
    metavar="[HOST:]PORT|SOCKET",
    help="Where Prometheus may fetch what is done; without a host on the loopback interface alone.",
)
@click.option("--once", is_flag=True, help="Stop when the clients that came have gone.")
@click.option(
    "--log-format", type=click.Choice(_LOG_FORMATS), default="text", show_default=True, help="How the log looks."
)
@click.pass_obj
def command(
    console: Console,
    address: str | None,
    plugin: str | None,
    containerd: str | None,
    config_for: str | None,
    verity: str | None,
    content_sharing: str,
    metrics: str | None,
    once: bool,
    log_format: str,
) -> None:
    """Serve the store to containerd's clients, or to a containerd.

    They talk to SOCKET as they do to containerd: ctr --address SOCKET images ls. A socket that nobody answers at is
    replaced. SIGTERM and SIGINT stop the server once the calls under way are done; the log goes to standard error.

    With --plugin, a containerd has its layers unpacked and its snapshots kept here, in a store of their own beneath
    the other one. What its configuration needs for it is printed on request.

    A service manager may hand over open sockets: those named 'plugin' and 'metrics' are for these, others for clients.
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
        _print_config(console, config_for, plugin)
        return

    from lamella.client.images import SOCKET as CONTAINERD
    from lamella.service import daemon
    from lamella.service.daemon import exclusive_server, serve
    from lamella.service.endpoints.direct import direct_methods
    from lamella.service.endpoints.plugin import opened_plugin, plugin_methods
    from lamella.service.sd_notify import inherited
    from lamella.service.services.served_store import ServedStore

    direct: list[str | socket] = [] if address is None else [address]
    plugins: list[str | socket] = [] if plugin is None else [plugin]
    watched: str | socket | None = metrics
    for name, given in inherited():
        if name == _PLUGIN:
            plugins.append(given)
        elif name == _METRICS:
            watched = given
        else:
            direct.append(given)
    if not direct and not plugins:
        raise click.UsageError("--address or --plugin is missing")
    daemon.start_log(log_format, debug=console.debug)
    with ExitStack() as stack:
        store = stack.enter_context(opened_store(create=True, verity=verity or "", isolated=content_sharing != _SHARED))
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
            ours = stack.enter_context(opened_plugin(store.root, containerd or CONTAINERD, verity=store.verity))
            served.append(ours)
            methods = plugin_methods(ours)
            endpoints += [(place, methods) for place in plugins]

        def leave() -> None:
            for each in served:
                each.leave()

        serve(endpoints, once=once, metrics=watched, store=store, leaving=leave)


def _print_config(console: Console, version: str, plugin: str | None) -> None:
    from lamella.oci.platform import host_platform
    from lamella.service.endpoints.plugin import SOCKET, containerd_config
    from lamella.store.store import default_root

    address = Path(os.path.abspath(plugin or SOCKET))
    root = Path(os.path.abspath(default_root()))
    console.line(containerd_config(address, root, 2 if version == "1.7" else 3, str(host_platform())).rstrip("\n"))
