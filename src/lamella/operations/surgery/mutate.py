# SPDX-License-Identifier: Apache-2.0
"""Change the config of an image."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias, TypedDict

import msgspec
from msgspec import Struct
from msgspec.structs import force_setattr
from msgspec.structs import replace as replaced

from lamella.changes.job import Job
from lamella.errors import InvalidInput
from lamella.images.resolve import open_platform_image
from lamella.images.transports import ImageName, open_writer, parse_image_name
from lamella.oci.config import History, ImageConfig, RootFs
from lamella.oci.platform import Platform, parse_platform
from lamella.operations.surgery.draft import Draft, WrittenImage, draft_of, write_draft
from lamella.times import SECOND, source_date_epoch

Pairs: TypeAlias = Mapping[str, str | None]
"""Names and values to set; None removes a name."""
Members: TypeAlias = Iterable[str] | Mapping[str, bool]
"""Names to add to a set; in a mapping, False removes a name."""

_PORT: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(?:tcp|udp|sctp))?")
_LAST_PORT: Final = 65535
_TIME: Final = re.compile(
    r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])T(?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)"
    r"(?:\.[0-9]+)?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)


class Settings(Struct, frozen=True):
    """Changes to an image config. None and an empty mapping keep the present value; an empty text or list removes it.

    ``env`` and ``labels`` are set by name; a variable that exists keeps its position. ``platform`` replaces all fields
    of the platform, and ``os_version`` overrides the one in it. ``created`` is a text as in RFC 3339 or an aware
    datetime; the default is SOURCE_DATE_EPOCH, and without that the date stays. ``history`` adds a step without a
    layer, with this text. Construction raises InvalidInput.
    """

    env: Pairs | None = None
    cmd: Sequence[str] | None = None
    entrypoint: Sequence[str] | None = None
    labels: Pairs | None = None
    user: str | None = None
    working_dir: str | None = None
    exposed_ports: Members | None = None
    volumes: Members | None = None
    stop_signal: str | None = None
    platform: str | Platform | None = None
    os_version: str | None = None
    created: str | datetime | None = None
    author: str | None = None
    history: str | None = None

    def __post_init__(self) -> None:
        for name in ("env", "labels"):
            self._normalize(name, checked_pairs)
        for name in ("cmd", "entrypoint"):
            self._normalize(name, _words)
        for name in ("exposed_ports", "volumes"):
            self._normalize(name, _members)
        for name in ("user", "working_dir", "stop_signal", "os_version", "author", "history"):
            self._normalize(name, _text)
        for variable in self.env or {}:
            if "=" in variable:
                raise InvalidInput(f"malformed name of a variable {variable[:100]!r}")
        for port in self.exposed_ports or {}:
            match = _PORT.fullmatch(port)
            if match is None or not 0 < int(match[1]) <= int(match[2] or match[1]) <= _LAST_PORT:
                raise InvalidInput(f"malformed port {port[:100]!r}", hint="write it as PORT[-PORT][/tcp|udp|sctp]")
        if isinstance(self.platform, str):
            force_setattr(self, "platform", parse_platform(self.platform))
        self._normalize("created", _moment)

    def _normalize(self, name: str, make: Callable[[str, Any], object]) -> None:
        """Replace a field by a checked copy, which the caller cannot change."""
        given = getattr(self, name)
        if given is not None:
            force_setattr(self, name, make(name, given))


class SettingsGiven(TypedDict, total=False):
    """The fields of `Settings` as keywords of a function."""

    env: Pairs | None
    cmd: Sequence[str] | None
    entrypoint: Sequence[str] | None
    labels: Pairs | None
    user: str | None
    working_dir: str | None
    exposed_ports: Members | None
    volumes: Members | None
    stop_signal: str | None
    platform: str | Platform | None
    os_version: str | None
    created: str | datetime | None
    author: str | None
    history: str | None


def apply_settings(config: ImageConfig, settings: Settings) -> ImageConfig:
    """``config`` with ``settings`` applied. Other fields stay, unknown ones too."""
    process = config.config
    wanted: dict[str, Any] = {
        "env": None if settings.env is None else merge_variables(process.env, settings.env),
        "cmd": None if settings.cmd is None else list(settings.cmd),
        "entrypoint": None if settings.entrypoint is None else list(settings.entrypoint),
        "labels": None if settings.labels is None else merge_pairs(process.labels, settings.labels),
        "user": settings.user,
        "working_dir": settings.working_dir,
        "exposed_ports": _merge_members(process.exposed_ports, settings.exposed_ports),
        "volumes": _merge_members(process.volumes, settings.volumes),
        "stop_signal": settings.stop_signal,
    }
    process = msgspec.structs.replace(process, **{name: to for name, to in wanted.items() if to is not None})
    outer: dict[str, Any] = {"config": process}
    if settings.platform is not None:
        wanted_platform = settings.platform
        outer |= _platform_fields(
            parse_platform(wanted_platform) if isinstance(wanted_platform, str) else wanted_platform
        )
    if settings.os_version is not None:
        outer["os_version"] = settings.os_version
    if settings.author is not None:
        outer["author"] = settings.author
    created = settings.created
    if created is None and source_date_epoch() is not None:
        created = creation_time()
    if created is not None:
        outer["created"] = created
    if settings.history is not None:
        step = History(created=str(outer.get("created", config.created)), created_by=settings.history, empty_layer=True)
        outer["history"] = [*config.history, step]
    changed: ImageConfig = msgspec.structs.replace(config, **outer)
    return changed


def new_config(platform: Platform) -> ImageConfig:
    """An empty config for ``platform``."""
    return ImageConfig(**_platform_fields(platform), created=creation_time(), rootfs=RootFs(diff_ids=[]))


def creation_time() -> str:
    """The creation time of a new image, as in RFC 3339: SOURCE_DATE_EPOCH, or 1970. Raises InvalidInput."""
    seconds = (source_date_epoch() or 0) // SECOND
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        raise InvalidInput(f"SOURCE_DATE_EPOCH {seconds} is not a time that an image can have") from None


def parse_variables(entries: Iterable[str]) -> dict[str, str]:
    """Parse variables of the form ``NAME=VALUE``; the last one of a name wins. Raises InvalidInput."""
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not name or not equals:
            raise InvalidInput(f"malformed variable {entry[:100]!r}", hint="write it as NAME=VALUE")
        found[name] = value
    return found


def checked_pairs(what: str, given: Pairs) -> dict[str, str | None]:
    """A copy of ``given``; raises InvalidInput if a name is empty or a text is not valid UTF-8."""
    for name, value in given.items():
        if not _text(what, name):
            raise InvalidInput(f"{what}: a name is empty")
        if value is not None:
            _text(what, value)
    return dict(given)


def merge_pairs(present: Mapping[str, str], wanted: Pairs) -> dict[str, str]:
    """``present`` with ``wanted`` set; None removes a name."""
    return {name: value for name, value in {**present, **wanted}.items() if value is not None}


def merge_variables(present: Sequence[str], wanted: Pairs) -> list[str]:
    """``present`` with ``wanted`` set, in their position or at the end; None removes a variable."""
    result: list[str] = []
    left = dict(wanted)
    for entry in present:
        name = entry.partition("=")[0]
        if name not in wanted:
            result.append(entry)
        elif (value := left.pop(name, None)) is not None:
            result.append(f"{name}={value}")
    return [*result, *(f"{name}={value}" for name, value in left.items() if value is not None)]


def _platform_fields(platform: Platform) -> dict[str, Any]:
    names = ("architecture", "os", "os_version", "os_features", "variant")
    return {name: getattr(platform, name) for name in names}


def _merge_members(present: Mapping[str, Any], wanted: Members | None) -> dict[str, Any] | None:
    if wanted is None:
        return None
    changes = dict(wanted) if isinstance(wanted, Mapping) else dict.fromkeys(wanted, True)
    kept = {name: value for name, value in present.items() if changes.get(name, True)}
    return {**{name: {} for name, added in changes.items() if added}, **kept}


def _members(what: str, given: Members) -> dict[str, bool]:
    names = dict(given) if isinstance(given, Mapping) else dict.fromkeys(_listed(what, given), True)
    for name in names:
        if not _text(what, name):
            raise InvalidInput(f"{what}: a name is empty")
    return names


def _words(what: str, given: Iterable[Any]) -> tuple[str, ...]:
    return tuple(_text(what, word) for word in _listed(what, given))


def _listed(what: str, given: Iterable[Any]) -> Iterable[Any]:
    if isinstance(given, (str, bytes)):
        raise InvalidInput(f"{what}: expected a list, got the text {given[:100]!r}")
    return given


def _text(what: str, given: object) -> str:
    """``given``; raises InvalidInput unless it is text that a JSON document can hold."""
    if not isinstance(given, str):
        raise InvalidInput(f"{what}: expected text, got {given!r}")
    try:
        given.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{what}: {given[:100]!r} is not UTF-8") from None
    return given


def _moment(what: str, given: str | datetime) -> str:
    if isinstance(given, str):
        if not _TIME.fullmatch(given):
            raise InvalidInput(f"{what}: malformed time {given[:60]!r}", hint="write it as in 2024-01-31T12:00:00Z")
        return given
    if given.tzinfo is None:
        raise InvalidInput(f"{what}: the time {given} has no time zone")
    moment = given.astimezone(UTC)
    fraction = f".{moment.microsecond:06d}".rstrip("0") if moment.microsecond else ""
    return f"{moment.year:04d}-{moment:%m-%dT%H:%M:%S}{fraction}Z"


NO_SETTINGS: Final = Settings()


def mutate(
    source: str | ImageName,
    target: str | ImageName,
    settings: Settings = NO_SETTINGS,
    *,
    annotations: Pairs | None = None,
    platform: str | Platform | None = None,
    replace: bool = False,
    job: Job | None = None,
) -> WrittenImage:
    """Write the image ``source`` as ``target``, with ``settings`` applied to its config.

    ``annotations`` are set in the manifest. Unknown fields of the documents stay, and without any change so does the
    digest. ``platform`` chooses from an index; ``replace`` is as for `open_writer`. Only the documents of ``source``
    are read, unless the target lacks its layers. Raises InvalidInput, NotFound, AlreadyExists.
    """
    target = parse_image_name(target) if isinstance(target, str) else target
    with open_platform_image(source, platform) as image:
        draft = with_annotations(with_settings(draft_of(image), settings), annotations or {})
        with open_writer(target, replace=replace) as writer:
            return write_draft(draft, writer, tag=target.tag, job=job)


def with_settings(draft: Draft, settings: Settings) -> Draft:
    """``draft`` with ``settings`` applied to its config."""
    return replaced(draft, config=apply_settings(draft.config, settings))


def with_annotations(draft: Draft, annotations: Pairs) -> Draft:
    """``draft`` with annotations of its manifest set; None removes one."""
    changed = merge_pairs(draft.manifest.annotations, checked_pairs("annotations", annotations))
    return replaced(draft, manifest=msgspec.structs.replace(draft.manifest, annotations=changed))
