# SPDX-License-Identifier: Apache-2.0
"""Entry point of the command line: finds the verb, and reports errors as one line and an exit code."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from lamella.cli.console import Console
from lamella.cli.verb import CONTEXT, LazyGroup, result_options
from lamella.errors import Cancelled, LamellaError, exit_code, from_os
from lamella.host.open_files import raise_soft_limit

SECTIONS: Final[dict[str, dict[str, tuple[str, str]]]] = {
    "Images": {
        "unpack": ("Unpack an image into a directory.", "images.pack:unpack"),
        "pack": ("Make an image of one layer from a directory.", "images.pack:pack"),
        "inspect": ("Show an image's config, layers, history and sizes.", "images.inspect:inspect"),
        "verify": ("Check every digest, size and layer of an image.", "images.inspect:verify"),
        "copy": ("Copy an image from one place to another.", "images.copy:copy"),
        "compare": ("Show how two images differ.", "images.compare"),
        "append": ("Copy an image with further layers on top.", "images.surgery:append"),
        "mutate": ("Copy an image with another config or other annotations.", "images.surgery:mutate"),
        "flatten": ("Copy an image with its layers merged into one.", "images.surgery:flatten"),
        "rebase": ("Copy an image onto another base.", "images.surgery:rebase"),
        "convert": ("Copy an image with its layers in another form.", "images.convert"),
        "subset": ("Copy an index with some of its platforms only.", "images.surgery:subset"),
        "index": ("Make an index for several platforms from images.", "images.surgery:index"),
    },
    "Layers": {
        "apply": ("Apply a layer blob to a directory.", "layers:apply"),
        "diff": ("List or write what changed between two directories.", "layers:diff"),
        "dump": ("Print a layer or a directory as canonical text.", "layers:dump"),
        "recipe": ("Restore the exact blob of a layer that was unpacked or converted.", "recipe"),
    },
    "Files in an image": {
        "ls": ("List files.", "files:ls"),
        "tree": ("Draw a directory and its content.", "files:tree"),
        "cat": ("Print the content of files.", "files:cat"),
        "find": ("Find files by name, kind, size or time.", "files:find"),
    },
    "Store": {
        "store": ("Manage the store of images and unpacked layers.", "store"),
        "mount": ("Mount an image of the store at a directory.", "store.mount:mount"),
        "umount": ("Unmount an image mounted by 'lamella mount'.", "store.mount:umount"),
        "run": ("Run a container of an image in the store.", "store.run"),
        "serve": ("Serve the store to containerd's clients, or to a containerd.", "store.serve"),
    },
    "Windows": {
        "hive": ("List, print and merge registry hives.", "windows.hive"),
        "cim": ("List, verify and extract composite images.", "windows.cim"),
    },
    "Registries": {
        "pull": ("Copy an image from a registry to this machine.", "images.copy:pull"),
        "push": ("Copy an image from this machine to a registry.", "images.copy:push"),
        "tags": ("List the tags of a repository.", "registry:tags"),
        "catalog": ("List the repositories of a registry.", "registry:catalog"),
        "referrers": ("List the referrers of an image, such as signatures.", "registry:referrers"),
        "delete": ("Remove a tag or an image from a registry.", "registry:delete"),
        "login": ("Save a user name and a password for a registry.", "registry:login"),
        "logout": ("Remove the login for a registry.", "registry:logout"),
    },
}
"""Each verb with the first line of its help and the place of its command."""

_YOUNG: Final = 20_000
"""New objects before a garbage collection of the youngest generation."""

_ROOT: Final = "LAMELLA_ROOT"
_SIGINT: Final = 2
_SIGPIPE: Final = 13


class Verbs(LazyGroup):
    """The verbs of ``lamella``; an unknown one is answered with the nearest."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.verbs and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], self.verbs, 1)
            raise click.UsageError(f"there is no verb {args[0]!r}{f'; is it {near[0]!r}?' if near else ''}", ctx)
        return super().resolve_command(ctx, args)


def _start() -> None:
    """Layer blobs to file trees and back, for container images.

    An image is named by where it is: oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF], store:REF,
    containerd:REF or docker://HOST/NAME[:TAG].
    """


def _set_root(context: click.Context, option: click.Parameter, value: str | None) -> None:
    """Set LAMELLA_ROOT, which this process and its children read."""
    if value is None:
        return
    if not value:
        raise click.BadParameter("a directory is needed", context, option)
    before = os.environ.get(_ROOT)
    os.environ[_ROOT] = os.path.abspath(value)

    @context.call_on_close
    def restore() -> None:
        if before is None:
            os.environ.pop(_ROOT, None)
        else:
            os.environ[_ROOT] = before


def _set_durability(context: click.Context, option: click.Parameter, value: bool) -> None:  # noqa: ARG001
    if value:
        from lamella.host.durability import durable_outputs

        context.with_resource(durable_outputs(False))


def _show_version(context: click.Context, option: click.Parameter, value: bool) -> None:  # noqa: ARG001
    if value:
        from lamella import __version__

        print(f"lamella {__version__}")
        context.exit()


cli: Final = Verbs(
    name="lamella",
    sections=SECTIONS,
    callback=_start,
    help=_start.__doc__,
    params=[
        click.Option(
            ["--root"],
            metavar="DIR",
            is_eager=True,
            expose_value=False,
            callback=_set_root,
            help="The store's directory.  [default: LAMELLA_ROOT, or the data directory of the system]",
        ),
        click.Option(
            ["--no-durable"],
            is_flag=True,
            expose_value=False,
            callback=_set_durability,
            help="Do not flush layouts, archives and other outputs to disk; a power failure may damage them.",
        ),
        *result_options(),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Show the version.",
        ),
    ],
    context_settings=CONTEXT,
    epilog="'lamella VERB --help' describes a verb; each takes --json, --quiet and --debug.",
)


def main() -> int:
    """Run the command line of this process; the result is its exit code."""
    raise_soft_limit()
    # Imported objects stay: collecting them again and again takes a fifth of a short run, half of it at exit.
    gc.freeze()
    gc.set_threshold(_YOUNG)
    if "_LAMELLA_COMPLETE" in os.environ:
        cli.main(prog_name="lamella")
    code = run(sys.argv[1:])
    gc.freeze()
    return code


def run(arguments: Sequence[str]) -> int:
    """Run ``arguments`` and return the exit code; errors are reported on standard error.

    The codes are those of `lamella.errors.EXIT_STATUS`; 1 for any other failure, 2 for wrong usage.
    """
    console = Console()
    try:
        code = _invoke(arguments, console)
        sys.stdout.flush()
    except Exception as error:  # noqa: BLE001  # the outermost frame
        return _fail(error, console)
    except KeyboardInterrupt as error:
        return _interrupted(error, console)
    return code


def _invoke(arguments: Sequence[str], console: Console) -> int:
    console.prepare_streams()
    try:
        with cli.make_context("lamella", list(arguments), obj=console) as context:
            cli.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    return 0


def _fail(error: Exception, console: Console) -> int:
    if _pipe_closed(error):
        console.abandon_output()
        return 128 + _SIGPIPE
    if console.debug:
        from traceback import print_exception

        print_exception(error)
    if isinstance(error, click.ClickException):
        return _usage(error, console)
    if isinstance(error, MemoryError):
        console.error("out of memory")
        return 11
    if isinstance(error, OSError):
        where = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
        error = _with_notes(from_os(error, repr(where) if where else "the system refused"), error)
        console.abandon_output()
    if isinstance(error, LamellaError):
        console.error(str(error), error.hint, getattr(error, "__notes__", ()))
        if isinstance(error, Cancelled):
            return 128 + getattr(error, "number", _SIGINT)
    else:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        hint = "please report it" if console.debug else "run again with --debug to see where, and please report it"
        console.error(f"this is a bug: {what}", hint, getattr(error, "__notes__", ()))
    return exit_code(error)


def _with_notes(error: LamellaError, source: BaseException) -> LamellaError:
    for note in getattr(source, "__notes__", ()):
        error.add_note(note)
    return error


def _usage(error: click.ClickException, console: Console) -> int:
    context = getattr(error, "ctx", None)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        print(error.format_message(), file=sys.stderr)
        return error.exit_code
    message = error.format_message().strip().removesuffix(".")
    hint = f"see '{context.command_path} --help'" if context is not None else None
    console.error(message[:1].lower() + message[1:], hint)
    return error.exit_code


def _interrupted(error: KeyboardInterrupt, console: Console) -> int:
    if console.debug:
        from traceback import print_exception

        print_exception(error)
    console.error("interrupted", None, getattr(error, "__notes__", ()))
    return 128 + getattr(error, "number", _SIGINT)


def _pipe_closed(error: BaseException | None) -> bool:
    """Whether the cause is a closed pipe, as with ``head``."""
    while error is not None:
        if isinstance(error, BrokenPipeError):
            return True
        error = error.__cause__ or error.__context__
    return False
