# SPDX-License-Identifier: Apache-2.0
"""``lamella serve``."""

from __future__ import annotations

import click

from lamella.cli.console import Console
from lamella.cli.frame import Verb
from lamella.cli.store.opening import opened_store


@click.command("serve", cls=Verb)
@click.option("--address", metavar="SOCKET", help="The unix socket to listen at.")
@click.option("--once", is_flag=True, help="Stop when the clients that came have gone.")
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How the log looks."
)
@click.pass_obj
def command(console: Console, address: str | None, once: bool, log_format: str) -> None:
    """Serve the store to containerd's clients.

    They talk to SOCKET as they do to containerd: ctr --address SOCKET images ls. A socket that nobody answers at is
    replaced. A service manager may hand over an open socket in place of SOCKET. SIGTERM and SIGINT stop the server
    once the calls under way are done; the log goes to standard error.
    """
    from socket import socket

    from lamella.errors import Unsupported

    try:
        import google.protobuf  # noqa: F401
        import hpack  # noqa: F401
    except ModuleNotFoundError as missing:
        raise Unsupported(
            f"to serve, the package {missing.name} is needed", hint="pip install 'lamella[containerd]'"
        ) from missing

    from lamella.service import logs
    from lamella.service.direct import Direct
    from lamella.service.serving import serve, sole_server
    from lamella.service.supervisor import inherited

    sockets = inherited()
    if address is None and not sockets:
        raise click.UsageError("--address is missing")
    logs.start(log_format, debug=console.debug)
    with opened_store(create=True) as store, sole_server(store.root):
        shared = Direct(store)
        try:
            methods = shared.methods()
            places: list[str | socket] = [*sockets]
            if address is not None:
                places.append(address)
            serve([(place, methods) for place in places], once=once)
        finally:
            shared.close()
