# SPDX-License-Identifier: Apache-2.0
"""A container of an image of a store, by crun or runc, gone when its command ends.

What it changes is in a snapshot of its own, under a lease that tells where its bundle is. The bundle is locked as long
as anybody is at work on it, so that what a killed run has left can be told from what runs.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from lamella.changes.job import Job
from lamella.errors import LamellaError, NotFound, Unsupported, from_os
from lamella.host.open_files import with_original_limit
from lamella.layers.directory.dirfd_cache import remove_path
from lamella.operations.runtime.bundle import CONFIG, ROOTFS, Rootless, runtime_config
from lamella.store.contract import BindMount, Resource
from lamella.store.gc.labels import SNAPSHOTS
from lamella.store.mounting import is_mounted, mount_all, unmount
from lamella.store.snapshots.kinds import canonical

if TYPE_CHECKING:
    from lamella.oci.config import ImageConfig
    from lamella.oci.platform import Platform
    from lamella.store.store import LocalNamespace, Store

PREFIX: Final = "run:"
"""Before the name of the container, in the name of its lease and in the key of its snapshot."""
KEPT: Final = "kept:"
"""The same for the lease of a snapshot that outlives its container."""
BUNDLE: Final = "lamella.run/bundle"
"""The label of the lease that says where the bundle is."""
RUNTIME: Final = "lamella.run/runtime"

RUNTIMES: Final = ("crun", "runc")
_STATE: Final = "state"
_LOCK: Final = "lock"
_HYBRID: Final = "/sys/fs/cgroup/unified"
"""Where a host with both versions of cgroups has the second, which crun refuses."""
_FORWARDED: Final = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
_PATIENCE: Final = 30.0
"""Seconds for a runtime to remove a container."""


class RunOptions(Struct, frozen=True, kw_only=True):
    """How to run a container, and what replaces the settings of its image."""

    command: Sequence[str] = ()
    """Replaces Cmd."""
    entrypoint: Sequence[str] | None = None
    """Replaces Entrypoint, and Cmd too if ``command`` is empty."""
    env: Sequence[str] = ()
    """``NAME=VALUE``, or ``NAME`` for this process's value."""
    working_dir: str | None = None
    user: str | None = None
    readonly: bool = False
    """Mount the root file system read-only."""
    terminal: bool = False
    """Give the container a terminal, connected to standard input and output."""
    keep: bool = False
    """Keep the changes of the container as a snapshot."""
    runtime: str | None = None
    """``"crun"`` or ``"runc"``; None for the one that is installed."""
    snapshotter: str | None = None
    """The snapshotter of the container's files; None for the default of this user."""
    platform: str | Platform | None = None
    """The image to take from an index; None for the platform of this machine."""


class Ran(Struct, frozen=True):
    """What came of a container."""

    name: str
    exit_code: int
    """Of its command; 128 and the number of a signal that ended it."""
    snapshot: str
    """The snapshot with what it changed, where that is kept; else empty."""
    snapshotter: str


def run_image(
    space: LocalNamespace,
    image: str,
    options: RunOptions,
    *,
    job: Job | None = None,
) -> Ran:
    """Run a container of the image ``image`` in ``space`` to its end; the image is unpacked first if needed.

    The container shares standard input, output and error with this process, which forwards signals to it; call it in
    the main thread. Without root and without a snapshotter, its files are a copy in a directory, which needs no mount.
    Raises NotFound, Unsupported (no runtime), Denied, and what unpacking and `runtime_config` raise.
    """
    from lamella.operations.store.unpacked import unpacked_image

    program = find_runtime(options.runtime)
    end_dead_runs(space.store)
    kind = canonical(options.snapshotter or ("overlayfs" if os.geteuid() == 0 else "native"))
    name = f"lamella-{secrets.token_hex(6)}"
    key = f"{PREFIX}{name}"
    with _bundle() as (bundle, lock):
        space.leases.create(key, {BUNDLE: os.fspath(bundle), RUNTIME: program})
        leased = space.store.namespace(space.name, key)
        try:
            found = unpacked_image(leased, image, kind, platform=options.platform, job=job)
            snapshots = leased.snapshots(kind)
            mounts = snapshots.prepare(key, found.top)
            root = bundle / ROOTFS
            if len(mounts) == 1 and isinstance(mounts[0], BindMount):
                root = mounts[0].source  # which the runtime shows itself, and needs no rights of ours for
            else:
                root.mkdir()
                mount_all(mounts, root)
            with snapshots.tree(key) as tree:
                config = runtime_config(
                    _changed(found.config, options),
                    tree,
                    rootless=None if os.geteuid() == 0 else Rootless.of_this_user(),
                )
            config["root"] = {"path": os.fspath(root), "readonly": options.readonly}
            config["process"]["terminal"] = options.terminal
            (bundle / CONFIG).write_text(json.dumps(config), encoding="utf-8")
            if job is not None:
                job.check()
            code = _run(program, bundle, name, lock)
            if options.keep:
                space.leases.create(f"{KEPT}{name}")
                space.leases.add(f"{KEPT}{name}", Resource(f"{SNAPSHOTS}{kind}", key))
        except BaseException as error:
            try:
                _end(leased, key, bundle, program, name, keep=False)
            except (LamellaError, OSError) as failure:
                error.add_note(f"what is left of the container {name} goes with the next run: {failure}")
            raise
        _end(leased, key, bundle, program, name, keep=options.keep)
    return Ran(name, code, key if options.keep else "", kind)


def find_runtime(name: str | None = None) -> str:
    """The path of crun or runc, or of the one that ``name`` names. Raises Unsupported."""
    if name is not None:
        found = shutil.which(name)
        if found is None:
            raise Unsupported(f"there is no runtime {name!r} on this system")
        return found
    for one in RUNTIMES:
        found = shutil.which(one)
        if found is not None and not (one == "crun" and os.path.ismount(_HYBRID) and shutil.which("runc")):
            return found
    raise Unsupported("there is no runtime for containers on this system", hint="install crun or runc")


def end_dead_runs(store: Store) -> None:
    """Remove what runs have left that were killed. Raises what removing raises, once all have been tried."""
    failures: list[LamellaError] = []
    for namespace, lease in store.leases(PREFIX):
        key, labels = lease.id, lease.labels
        space = store.namespace(namespace, key)
        bundle = Path(labels.get(BUNDLE, ""))
        if not bundle.name.startswith(_FOLDER):
            continue  # not one of ours
        with _dead(bundle) as dead:
            if dead:
                try:
                    _end(space, key, bundle, labels.get(RUNTIME, ""), key.removeprefix(PREFIX), keep=False)
                except LamellaError as failure:
                    failures.append(failure)
                except OSError as failure:
                    failures.append(from_os(failure, f"remove {os.fspath(bundle)!r}"))
    if failures:
        raise failures[0]


_FOLDER: Final = "lamella-run-"


@contextmanager
def _bundle() -> Iterator[tuple[Path, int]]:
    """A directory for one container, locked by a file whose descriptor comes with it."""
    bundle = Path(tempfile.mkdtemp(prefix=_FOLDER))
    try:
        lock = os.open(bundle / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield bundle, lock
        finally:
            os.close(lock)
    finally:
        _remove_bundle(bundle)


@contextmanager
def _dead(bundle: Path) -> Iterator[bool]:
    """Whether nobody is at work on a bundle; it is ours as long as the block lasts."""
    try:
        lock = os.open(bundle / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True
        return
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(lock)


def _end(space: LocalNamespace, key: str, bundle: Path, program: str, name: str, *, keep: bool) -> None:
    """Remove a container, its mount, its bundle, its snapshot and last its lease, as far as they are there."""
    state = bundle / _STATE
    if program and (state / name).exists():
        try:
            subprocess.run(
                with_original_limit([program, "--root", os.fspath(state), "delete", "--force", name]),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PATIENCE,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            pass
    root = bundle / ROOTFS
    if is_mounted(root):
        unmount(root, lazy=True)
    _remove_bundle(bundle)
    for resource in space.leases.resources(key):
        if not keep and resource.id == key and resource.type.startswith(SNAPSHOTS):
            try:
                space.snapshots(resource.type.removeprefix(SNAPSHOTS)).remove(key)
            except NotFound:
                pass
    space.leases.delete(key)


def _remove_bundle(bundle: Path) -> None:
    """Never more than what was made here: what should still be mounted stays as it is."""
    with suppress(OSError):
        remove_path(bundle / _STATE)
    for name in (CONFIG, _LOCK):
        (bundle / name).unlink(missing_ok=True)
    for directory in (bundle / ROOTFS, bundle):
        try:
            directory.rmdir()
        except OSError:
            pass


def _run(program: str, bundle: Path, name: str, lock: int) -> int:
    command = [program, "--root", os.fspath(bundle / _STATE), "run", "--bundle", os.fspath(bundle), name]
    sys.stdout.flush()
    with _forwarding() as start:
        try:
            # The lock lasts as long as the runtime does, even if this process is killed.
            process = subprocess.Popen(with_original_limit(command), pass_fds=(lock,))
        except OSError as error:
            raise from_os(error, f"start {program!r}") from error
        try:
            start(process)
            code = process.wait()
        except BaseException:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            raise
    return code if code >= 0 else 128 - code


@contextmanager
def _forwarding() -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """Hand signals on to the process that the block is about to start and calls the result with.

    What a terminal sends reaches both by itself.
    """
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield lambda _: None
        return
    started: list[subprocess.Popen[bytes]] = []
    early: list[int] = []
    by_itself = {signal.SIGINT, signal.SIGQUIT} if sys.stdin is not None and os.isatty(0) else set()

    def forward(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if started:
            if number not in by_itself:
                started[0].send_signal(number)
        else:
            early.append(number)

    def start(process: subprocess.Popen[bytes]) -> None:
        started.append(process)
        for number in early:
            process.send_signal(number)

    before = {number: signal.getsignal(number) for number in _FORWARDED}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, forward)
    try:
        yield start
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _changed(config: ImageConfig, options: RunOptions) -> ImageConfig:
    import msgspec

    process = config.config
    entrypoint, cmd = process.entrypoint, process.cmd
    if options.entrypoint is not None:
        entrypoint, cmd = list(options.entrypoint), []
    if options.command:
        cmd = list(options.command)
    env = {one.partition("=")[0]: one for one in process.env}
    if options.terminal and "TERM" in os.environ:
        env.setdefault("TERM", f"TERM={os.environ['TERM']}")
    for one in options.env:
        name, equals, _ = one.partition("=")
        if equals:
            env[name] = one
        elif name in os.environ:
            env[name] = f"{name}={os.environ[name]}"
    process = msgspec.structs.replace(
        process,
        entrypoint=entrypoint,
        cmd=cmd,
        env=list(env.values()),
        working_dir=process.working_dir if options.working_dir is None else options.working_dir,
        user=process.user if options.user is None else options.user,
    )
    return msgspec.structs.replace(config, config=process)
