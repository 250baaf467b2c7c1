# SPDX-License-Identifier: Apache-2.0
"""The config.json of a runtime bundle, from an image config (image-spec, conversion.md; runtime-spec, config.md)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from lamella.changes.contracts import Tree
from lamella.changes.model import Kind, dense
from lamella.changes.tree import resolve
from lamella.errors import AlreadyExists, Exhausted, InvalidInput, NotFound, from_os
from lamella.host.durability import durable_outputs, sync_directory
from lamella.paths import LayerPath

if TYPE_CHECKING:
    from lamella.changes.job import Job
    from lamella.images.resolve import PlatformImage
    from lamella.oci.config import ImageConfig
    from lamella.operations.unpack import Unpacked, UnpackOptions

_LARGEST: Final = 8 << 20
"""Largest passwd or group file that is read, in bytes."""
_LAST_ID: Final = (1 << 32) - 2


class Account(Struct, frozen=True):
    """The ids of a process, and its home directory if passwd has one."""

    uid: int
    gid: int
    additional_gids: tuple[int, ...] = ()
    home: str | None = None


def find_account(tree: Tree, user: str) -> Account:
    """Look up ``user`` in ``tree``: a name or uid, with ``:group`` or ``:gid`` if wanted; empty is 0.

    Without a group, the account has its group of passwd and the additional ones of the group file; with one, only that.
    An id need not be in the files, a name must. Raises NotFound, InvalidInput.
    """
    name, colon, group = user.partition(":")
    if colon and not group:
        raise InvalidInput(f"malformed user {user!r}: the group after the colon is empty")
    uid = _number(name or "0")
    home: str | None = None
    known: str | None = None
    gid = 0
    for fields in _lines(tree, "etc/passwd", 7):
        found = _number(fields[2])
        if found is None or (fields[0] != name if uid is None else found != uid):
            continue
        known, uid, gid, home = fields[0], found, _number(fields[3]) or 0, fields[5] or None
        break
    if uid is None:
        raise NotFound(f"the image's /etc/passwd has no user {name!r}", hint="give the user as a number")
    if group:
        return Account(uid, _group(tree, group), (), home)
    further = {
        number
        for fields in _lines(tree, "etc/group", 4)
        if known is not None and known in fields[3].split(",") and (number := _number(fields[2])) is not None
    }
    return Account(uid, gid, tuple(sorted(further - {gid})), home)


def _group(tree: Tree, group: str) -> int:
    gid = _number(group)
    if gid is None:
        for fields in _lines(tree, "etc/group", 4):
            if fields[0] == group and (gid := _number(fields[2])) is not None:
                break
        else:
            raise NotFound(f"the image's /etc/group has no group {group!r}", hint="give the group as a number")
    return gid


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()):
        return None
    number = int(text[:20])
    if number > _LAST_ID:
        raise InvalidInput(f"the id {text[:20]} is above {_LAST_ID}")
    return number


def _lines(tree: Tree, path: str, count: int) -> Iterator[list[str]]:
    """Yield the fields of each well-formed line; nothing if the file is missing."""
    try:
        at = resolve(tree, LayerPath(path))
    except (NotFound, InvalidInput):  # missing, or a loop of symbolic links
        return
    entry = tree.lookup(at)
    if entry is None or entry.kind is not Kind.FILE:
        return
    if entry.size > _LARGEST:
        raise Exhausted(f"the image's /{path} has {entry.size} bytes, more than the limit of {_LARGEST}")
    raw = b"".join(bytes(chunk) for chunk in dense(tree.open(at)))
    for line in raw.decode("utf-8", "surrogateescape").split("\n"):
        fields = line.rstrip("\r").split(":")
        if len(fields) >= count and not line.startswith("#"):
            yield fields


ROOTFS: Final = "rootfs"
CONFIG: Final = "config.json"

_VERSION: Final = "1.0.2"
"""The lowest version with all fields used here, so that every runtime accepts it."""
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CAPABILITIES: Final = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")
_MASKED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
)
_READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


class IdRange(Struct, frozen=True):
    """Maps ``size`` ids of a container, from ``inside`` on, to the host's, from ``outside`` on."""

    inside: int
    outside: int
    size: int


class Rootless(Struct, frozen=True):
    """The id mappings of an unprivileged runtime."""

    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]

    @classmethod
    def of_this_user(cls) -> Rootless:
        """Map this user to 0, and the ranges of /etc/subuid and /etc/subgid to the ids above."""
        uid, gid = os.geteuid(), os.getegid()
        return cls(_ranges(uid, uid, "/etc/subuid"), _ranges(gid, uid, "/etc/subgid"))


def runtime_config(config: ImageConfig, rootfs: Tree, *, rootless: Rootless | None = None) -> dict[str, Any]:
    """Return the runtime configuration for a container of an image; ``rootfs`` is its unpacked tree.

    The process is Entrypoint and Cmd, or ``sh`` if the image has neither, without a terminal. Its user is looked up in
    the image's files. Namespaces, mounts, capabilities and masked paths are those of ``runc spec``. Raises NotFound and
    InvalidInput (user not found).
    """
    process = config.config
    account = find_account(rootfs, process.user)
    working = process.working_dir or "/"
    spec: dict[str, Any] = {
        "ociVersion": _VERSION,
        "process": {
            "terminal": False,
            "user": _user(account),
            "args": [*process.entrypoint, *process.cmd] or ["sh"],
            "env": _environment(process.env, account),
            "cwd": working if working.startswith("/") else f"/{working}",
            "capabilities": {which: list(_CAPABILITIES) for which in ("bounding", "effective", "permitted", "ambient")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": ROOTFS, "readonly": False},
        "hostname": "lamella",
        "mounts": _mounts(rootless),
        "linux": _linux(rootless),
    }
    annotations = _annotations(config)
    if annotations:
        spec["annotations"] = annotations
    return spec


def unpack_bundle(
    image: PlatformImage, directory: Path, options: UnpackOptions | None = None, *, job: Job | None = None
) -> Unpacked:
    """Unpack ``image`` into ``directory``/rootfs and write ``directory``/config.json, for a runtime to start.

    The mode of the bundle is 0700, as an image may have set-id programs. A failure removes it, except with
    ``options.merge``, which also unpacks over an existing bundle. Raises as `unpack` and `runtime_config`; InvalidInput
    (Windows image).
    """
    from lamella.operations.unpack import DEFAULT_OPTIONS, unpack

    options = options or DEFAULT_OPTIONS
    if image.config.os == "windows":
        raise InvalidInput("the image is for Windows; a bundle for crun or runc needs one for Linux")
    rootless = None if os.geteuid() == 0 else Rootless.of_this_user()
    if options.merge:
        _make(directory, exist_ok=True)
        unpacked = unpack(image, directory / ROOTFS, options, job=job)
        with durable_outputs(options.durable):
            write_runtime_config(directory, image.config, rootless=rootless)
        return unpacked
    _make(directory, exist_ok=False)
    try:
        unpacked = unpack(image, directory / ROOTFS, options, job=job)
        with durable_outputs(options.durable):
            write_runtime_config(directory, image.config, rootless=rootless)
        if options.durable:
            sync_directory(directory.absolute().parent)
    except BaseException as error:
        _remove(directory, error)
        raise
    return unpacked


def write_runtime_config(bundle: Path, config: ImageConfig, *, rootless: Rootless | None = None) -> Path:
    """Write config.json into ``bundle``, whose rootfs exists; atomic.

    Raises as `runtime_config`; Denied, Exhausted.
    """
    import json

    from lamella.layers.directory.tree import DirectoryTree
    from lamella.operations.atomic_file import replacing

    with DirectoryTree(bundle / ROOTFS) as tree:
        spec = runtime_config(config, tree, rootless=rootless)
    target = bundle / CONFIG
    with replacing(target) as file:
        file.write(json.dumps(spec, indent=2).encode() + b"\n")
    return target


def _make(bundle: Path, *, exist_ok: bool) -> None:
    try:
        os.mkdir(bundle, 0o700)
    except FileExistsError:
        if not exist_ok:
            hint = "choose a new directory, or give --merge to unpack over this one"
            raise AlreadyExists(f"{os.fspath(bundle)!r} exists", hint=hint) from None
    except OSError as error:
        raise from_os(error, f"make directory {os.fspath(bundle)!r}") from error


def _remove(bundle: Path, error: BaseException) -> None:
    from lamella.layers.directory.dirfd_cache import remove_path

    try:
        remove_path(bundle.absolute())
    except OSError as failure:
        error.add_note(f"the unfinished bundle {os.fspath(bundle)!r} remains: {failure}")


def _user(account: Account) -> dict[str, Any]:
    user: dict[str, Any] = {"uid": account.uid, "gid": account.gid}
    if account.additional_gids:
        user["additionalGids"] = list(account.additional_gids)
    return user


def _environment(stated: list[str], account: Account) -> list[str]:
    names = {entry.partition("=")[0] for entry in stated}
    environment = list(stated)
    if "PATH" not in names:
        environment.insert(0, f"PATH={_PATH}")
    if "HOME" not in names:
        environment.append(f"HOME={account.home or '/'}")
    return environment


def _mounts(rootless: Rootless | None) -> list[dict[str, Any]]:
    def mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"destination": destination, "type": kind, "source": source}
        return {**entry, "options": list(options)} if options else entry

    terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    if rootless is None or _covers(rootless.gids, 5):
        terminals.append("gid=5")
    system = (
        mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro")
        if rootless is None
        # Mounting sysfs needs a private network namespace.
        else mount("/sys", "none", "/sys", "rbind", "nosuid", "noexec", "nodev", "ro")
    )
    return [
        mount("/proc", "proc", "proc"),
        mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        mount("/dev/pts", "devpts", "devpts", *terminals),
        mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),  # noqa: S108
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        system,
        mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"),
    ]


def _linux(rootless: Rootless | None) -> dict[str, Any]:
    kinds = ["pid", "network", "ipc", "uts", "mount", "cgroup"]
    linux: dict[str, Any] = {}
    if rootless is None:
        linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    else:
        kinds = ["pid", "ipc", "uts", "mount", "cgroup", "user"]
        linux["uidMappings"] = _mappings(rootless.uids)
        linux["gidMappings"] = _mappings(rootless.gids)
    linux["namespaces"] = [{"type": kind} for kind in kinds]
    linux["maskedPaths"] = list(_MASKED)
    linux["readonlyPaths"] = list(_READ_ONLY)
    return linux


def _mappings(ranges: tuple[IdRange, ...]) -> list[dict[str, int]]:
    return [{"containerID": one.inside, "hostID": one.outside, "size": one.size} for one in ranges]


def _covers(ranges: tuple[IdRange, ...], wanted: int) -> bool:
    return any(one.inside <= wanted < one.inside + one.size for one in ranges)


def _ranges(own: int, uid: int, allowed: str) -> tuple[IdRange, ...]:
    """Map ``own`` to 0, then the ranges of this user in the file ``allowed`` (subuid(5)), contiguously."""
    import pwd

    try:
        names = {str(uid), pwd.getpwuid(uid).pw_name}
    except KeyError:
        names = {str(uid)}
    ranges = [IdRange(0, own, 1)]
    try:
        with open(allowed, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                owner, _, rest = line.strip().partition(":")
                first, _, size = rest.partition(":")
                if owner in names and first.isdecimal() and size.isdecimal() and int(size):
                    inside = ranges[-1].inside + ranges[-1].size
                    ranges.append(IdRange(inside, int(first), int(size)))
    except OSError:
        pass
    return tuple(ranges)


def _annotations(config: ImageConfig) -> dict[str, str]:
    """Return the annotations of conversion.md; the image's labels take precedence."""
    facts = {
        "os": config.os,
        "architecture": config.architecture,
        "variant": config.variant,
        "os.version": config.os_version,
        "os.features": ",".join(config.os_features),
        "author": config.author,
        "created": config.created,
        "stopSignal": config.config.stop_signal,
        "exposedPorts": ",".join(sorted(config.config.exposed_ports)),
    }
    return {
        **{f"org.opencontainers.image.{name}": value for name, value in facts.items() if value},
        **config.config.labels,
    }
