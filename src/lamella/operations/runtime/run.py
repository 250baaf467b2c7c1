# SPDX-License-Identifier: Apache-2.0
"""Runs a container of an image of a store with crun or runc, and removes it when its command ends.

Its changes go to a snapshot, under a lease whose labels name the bundle. The bundle is locked while it is in use, so
that the leftovers of a killed run can be distinguished from a running container.
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
from lamella.errors import LamellaError, Unsupported, from_os
from lamella.host.open_files import with_original_limit
from lamella.layers.directory.dirfd_cache import remove_path
from lamella.operations.runtime.bundle import CONFIG, ROOTFS, Rootless, runtime_config
from lamella.store.contract import BindMount, Resource
from lamella.store.gc.labels import SNAPSHOTS
from lamella.store.metadata.leases import remove_leased_snapshot
from lamella.store.mounting import is_mounted, mount_all, unmount
from lamella.store.snapshots.kinds import canonical

if TYPE_CHECKING:
    from lamella.oci.config import ImageConfig
    from lamella.oci.platform import Platform
    from lamella.store.store import LocalNamespace, Store

PREFIX: Final = "run:"
"""Prefix of the container's name in the id of its lease and in the key of its snapshot."""
KEPT: Final = "kept:"
"""Prefix of the lease of a snapshot that outlives its container."""
BUNDLE: Final = "lamella.run/bundle"
"""Label of the lease: the directory of the bundle."""
RUNTIME: Final = "lamella.run/runtime"
"""Label of the lease: the runtime's path."""

RUNTIMES: Final = ("crun", "runc")
_STATE: Final = "state"
_LOCK: Final = "lock"
_HYBRID: Final = "/sys/fs/cgroup/unified"
"""Mount point of cgroup v2 on hosts with both versions, which crun refuses."""
_FORWARDED: Final = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
_TIMEOUT: Final = 30.0
"""Seconds for a runtime to remove a container."""


class RunOptions(Struct, frozen=True, kw_only=True):
    """How to run a container, and how it differs from its image's config."""

    command: Sequence[str] = ()
    """Replaces Cmd."""
    entrypoint: Sequence[str] | None = None
    """Replaces Entrypoint, and Cmd too if ``command`` is empty."""
    env: Sequence[str] = ()
    """``NAME=VALUE``, or ``NAME`` with this process's value."""
    working_dir: str | None = None
    user: str | None = None
    readonly: bool = False
    """Mount the root file system read-only."""
    terminal: bool = False
    """Give it a terminal, connected to standard input and output."""
    runtime: str | None = None
    """The runtime's name or path; by default crun or runc."""
    keep: bool = False
    """Keep the snapshot with the changes."""
    snapshotter: str | None = None
    """The snapshotter of the container's files; by default ``overlayfs`` for root, ``native`` for others."""
    platform: str | Platform | None = None
    """The image to take from an index; by default that for this host."""


class Ran(Struct, frozen=True):
    """The result of a container."""

    name: str
    exit_code: int
    """The exit code of its command; 128 plus the number of the signal that ended it."""
    snapshot: str
    """The snapshot with its changes; empty unless `RunOptions.keep`."""
    snapshotter: str


def run_image(
    namespace: LocalNamespace,
    image: str,
    options: RunOptions,
    *,
    job: Job | None = None,
) -> Ran:
    """Run a container of the image ``image`` until its command ends; unpack the image first if necessary.

    The container shares standard input, output and error with this process, which forwards signals to it; call it from
    the main thread. A user other than root gets the snapshotter ``native`` by default, which needs no mounts. Raises
    NotFound, Unsupported (no runtime), Denied, and as `unpack_image` and `runtime_config`.
    """
    from lamella.operations.store.images import unpack_by_name

    job = job or Job()
    program = find_runtime(options.runtime)
    end_dead_runs(namespace.store)
    kind = canonical(options.snapshotter or ("overlayfs" if os.geteuid() == 0 else "native"))
    name = f"lamella-{secrets.token_hex(6)}"
    key = f"{PREFIX}{name}"
    with _locked_bundle() as (bundle, lock):
        namespace.leases.create(key, {BUNDLE: os.fspath(bundle), RUNTIME: program})
        leased = namespace.under(key)
        try:
            found = unpack_by_name(leased, image, kind, platform=options.platform, job=job)
            snapshots = leased.snapshots(kind)
            mounts = snapshots.prepare(key, found.top)
            root = bundle / ROOTFS
            if len(mounts) == 1 and isinstance(mounts[0], BindMount):
                root = mounts[0].source  # the runtime binds it itself, without privileges of ours
            else:
                root.mkdir()
                mount_all(mounts, root)
            with snapshots.tree(key) as tree:
                config = runtime_config(
                    _apply_options(found.config, options),
                    tree,
                    rootless=None if os.geteuid() == 0 else Rootless.of_this_user(),
                )
            config["root"] = {"path": os.fspath(root), "readonly": options.readonly}
            config["process"]["terminal"] = options.terminal
            (bundle / CONFIG).write_text(json.dumps(config), encoding="utf-8")
            job.check()
            code = _run(program, bundle, name, lock)
            if options.keep:
                namespace.leases.create(f"{KEPT}{name}")
                namespace.leases.add(f"{KEPT}{name}", Resource(f"{SNAPSHOTS}{kind}", key))
        except BaseException as error:
            try:
                _end(leased, key, bundle, program, name, keep=False)
            except (LamellaError, OSError) as failure:
                error.add_note(f"the next run removes what is left of the container {name}: {failure}")
            raise
        _end(leased, key, bundle, program, name, keep=options.keep)
    return Ran(name, code, key if options.keep else "", kind)


def find_runtime(name: str | None = None) -> str:
    """Return the path of the runtime ``name``, by default crun or runc. Raises Unsupported."""
    if name is not None:
        found = shutil.which(name)
        if found is None:
            raise Unsupported(f"the runtime {name!r} is not installed")
        return found
    for one in RUNTIMES:
        found = shutil.which(one)
        if found is not None and not (one == "crun" and os.path.ismount(_HYBRID) and shutil.which("runc")):
            return found
    raise Unsupported("no container runtime is installed", hint="install crun or runc")


def end_dead_runs(store: Store) -> None:
    """Remove the leftovers of killed runs. Raises the first error after all were tried."""
    failures: list[LamellaError] = []
    for name, lease in store.leases(PREFIX):
        key, labels = lease.id, lease.labels
        namespace = store.namespace(name, key)
        bundle = Path(labels.get(BUNDLE, ""))
        if not bundle.name.startswith(_FOLDER):
            continue  # not made by `run_image`
        with _lock_if_dead(bundle) as dead:
            if dead:
                try:
                    _end(namespace, key, bundle, labels.get(RUNTIME, ""), key.removeprefix(PREFIX), keep=False)
                except LamellaError as failure:
                    failures.append(failure)
                except OSError as failure:
                    failures.append(from_os(failure, f"remove {os.fspath(bundle)!r}"))
    if failures:
        raise failures[0]


_FOLDER: Final = "lamella-run-"


@contextmanager
def _locked_bundle() -> Iterator[tuple[Path, int]]:
    """Make the bundle of one container; yield it and the descriptor of its lock file."""
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
def _lock_if_dead(bundle: Path) -> Iterator[bool]:
    """Yield whether no run uses a bundle; if so, hold its lock for the block."""
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


def _end(namespace: LocalNamespace, key: str, bundle: Path, program: str, name: str, *, keep: bool) -> None:
    """Remove what exists of a container: its mount, its bundle, its snapshot, and last its lease."""
    state = bundle / _STATE
    if program and (state / name).exists():
        try:
            subprocess.run(
                with_original_limit([program, "--root", os.fspath(state), "delete", "--force", name]),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            pass
    root = bundle / ROOTFS
    if is_mounted(root):
        unmount(root, lazy=True)
    _remove_bundle(bundle)
    if keep:
        namespace.leases.delete(key)
    else:
        remove_leased_snapshot(namespace, key)


def _remove_bundle(bundle: Path) -> None:
    """Remove the files that `run_image` made; a root file system that is still mounted stays."""
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
    with _forward_signals() as start:
        try:
            # The runtime inherits the lock, so that it outlives this process.
            process = subprocess.Popen(with_original_limit(command), pass_fds=(lock,))
        except OSError as error:
            raise from_os(error, f"start {program!r}") from error
        try:
            start(process)
            code = process.wait()
        except BaseException:
            process.terminate()
            try:
                process.wait(_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            raise
    return code if code >= 0 else 128 - code


@contextmanager
def _forward_signals() -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """Forward signals to the process that the block starts and passes to the yielded function.

    Signals of the terminal are not forwarded: both processes receive them.
    """
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield lambda _: None
        return
    started: list[subprocess.Popen[bytes]] = []
    early: list[int] = []
    from_terminal = {signal.SIGINT, signal.SIGQUIT} if sys.stdin is not None and os.isatty(0) else set()

    def forward(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if started:
            if number not in from_terminal:
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


def _apply_options(config: ImageConfig, options: RunOptions) -> ImageConfig:
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
