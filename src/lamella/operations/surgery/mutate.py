# SPDX-License-Identifier: Apache-2.0
"""What is to be another in an image's config."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypedDict

import msgspec
from msgspec import Struct
from msgspec.structs import force_setattr
from msgspec.structs import replace as replaced

from lamella.errors import InvalidInput
from lamella.images.resolve import open_platform_image
from lamella.images.transports import ImageName, open_writer, parse_image_name
from lamella.oci.config import History, ImageConfig, RootFs
from lamella.oci.platform import Platform, parse_platform
from lamella.operations.surgery.draft import Draft, Finished, draft_of, write_draft
from lamella.times import SECOND, source_date_epoch

if TYPE_CHECKING:
    from lamella.progress import Cancellation, Progress

Pairs: TypeAlias = Mapping[str, str | None]
"""Names and values to set; None takes a name away."""
Members: TypeAlias = Iterable[str] | Mapping[str, bool]
"""What is to be in a set; a mapping's False takes out."""

_PORT: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(?:tcp|udp|sctp))?")
_LAST_PORT: Final = 65535
_TIME: Final = re.compile(
    r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])T(?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)"
    r"(?:\.[0-9]+)?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)


class Settings(Struct, frozen=True):
    """What is to be another in a config; None leaves what is there, and so does an empty mapping.

    An empty text or list takes a value away. ``env`` and ``labels`` go by name: a variable that is there keeps its
    place. The platform is replaced as a whole, and ``os_version`` counts more than the one in it. ``created`` is a
    text of RFC 3339 or an aware datetime; without it SOURCE_DATE_EPOCH dates the image, and where that is not set the
    date stays. ``history`` adds a step that made no layer, with this text.
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
            self._own(name, pairs)
        for name in ("cmd", "entrypoint"):
            self._own(name, _words)
        for name in ("exposed_ports", "volumes"):
            self._own(name, _members)
        for name in ("user", "working_dir", "stop_signal", "os_version", "author", "history"):
            self._own(name, _text)
        for variable in self.env or {}:
            if "=" in variable:
                raise InvalidInput(f"malformed name of a variable {variable[:100]!r}")
        for port in self.exposed_ports or {}:
            match = _PORT.fullmatch(port)
            if match is None or not 0 < int(match[1]) <= int(match[2] or match[1]) <= _LAST_PORT:
                raise InvalidInput(f"malformed port {port[:100]!r}", hint="write it as PORT[-PORT][/tcp|udp|sctp]")
        if isinstance(self.platform, str):
            force_setattr(self, "platform", parse_platform(self.platform))
        self._own("created", _moment)

    def _own(self, name: str, make: Callable[[str, Any], object]) -> None:
        """Keep a checked copy of what was given, which nobody can change later."""
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


def configured(config: ImageConfig, settings: Settings) -> ImageConfig:
    """``config`` with what ``settings`` say; what they do not speak of, known or not, stays."""
    process = config.config
    wanted: dict[str, Any] = {
        "env": None if settings.env is None else with_variables(process.env, settings.env),
        "cmd": None if settings.cmd is None else list(settings.cmd),
        "entrypoint": None if settings.entrypoint is None else list(settings.entrypoint),
        "labels": None if settings.labels is None else merged(process.labels, settings.labels),
        "user": settings.user,
        "working_dir": settings.working_dir,
        "exposed_ports": _with_members(process.exposed_ports, settings.exposed_ports),
        "volumes": _with_members(process.volumes, settings.volumes),
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
    """The config of an image that has nothing yet."""
    return ImageConfig(**_platform_fields(platform), created=creation_time(), rootfs=RootFs(diff_ids=[]))


def creation_time() -> str:
    """When an image says that it was made: SOURCE_DATE_EPOCH, or 1970. Raises InvalidInput."""
    seconds = (source_date_epoch() or 0) // SECOND
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        raise InvalidInput(f"SOURCE_DATE_EPOCH {seconds} is no time that an image can have") from None


def parse_variables(entries: Iterable[str]) -> dict[str, str]:
    """Variables that are written as ``NAME=VALUE``; the last of a name counts. Raises InvalidInput."""
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not name or not equals:
            raise InvalidInput(f"malformed variable {entry[:100]!r}", hint="write it as NAME=VALUE")
        found[name] = value
    return found


def pairs(what: str, given: Pairs) -> dict[str, str | None]:
    """``given``, where its names and values can stand in a document. Raises InvalidInput."""
    for name, value in given.items():
        if not _text(what, name):
            raise InvalidInput(f"{what}: a name is empty")
        if value is not None:
            _text(what, value)
    return dict(given)


def merged(stated: Mapping[str, str], wanted: Pairs) -> dict[str, str]:
    """``stated`` with what is wanted; None takes away."""
    return {name: value for name, value in {**stated, **wanted}.items() if value is not None}


def with_variables(stated: Sequence[str], wanted: Pairs) -> list[str]:
    """Each wanted variable in the place of the one of its name, or at the end; None takes it away."""
    result: list[str] = []
    left = dict(wanted)
    for entry in stated:
        name = entry.partition("=")[0]
        if name not in wanted:
            result.append(entry)
        elif (value := left.pop(name, None)) is not None:
            result.append(f"{name}={value}")
    return [*result, *(f"{name}={value}" for name, value in left.items() if value is not None)]


def _platform_fields(platform: Platform) -> dict[str, Any]:
    names = ("architecture", "os", "os_version", "os_features", "variant")
    return {name: getattr(platform, name) for name in names}


def _with_members(stated: Mapping[str, Any], wanted: Members | None) -> dict[str, Any] | None:
    if wanted is None:
        return None
    changes = dict(wanted) if isinstance(wanted, Mapping) else dict.fromkeys(wanted, True)
    kept = {name: value for name, value in stated.items() if changes.get(name, True)}
    return {**{name: {} for name, there in changes.items() if there}, **kept}


def _members(what: str, given: Members) -> dict[str, bool]:
    names = dict(given) if isinstance(given, Mapping) else dict.fromkeys(_several(what, given), True)
    for name in names:
        if not _text(what, name):
            raise InvalidInput(f"{what}: a name is empty")
    return names


def _words(what: str, given: Iterable[Any]) -> tuple[str, ...]:
    return tuple(_text(what, word) for word in _several(what, given))


def _several(what: str, given: Iterable[Any]) -> Iterable[Any]:
    if isinstance(given, (str, bytes)):
        raise InvalidInput(f"{what}: expected a list, got the text {given[:100]!r}")
    return given


def _text(what: str, given: object) -> str:
    """``given``, where it is text that a document can hold."""
    if not isinstance(given, str):
        raise InvalidInput(f"{what}: {given!r} is no text")
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


NOTHING: Final = Settings()


def mutate(
    source: str | ImageName,
    target: str | ImageName,
    settings: Settings = NOTHING,
    *,
    annotations: Pairs | None = None,
    platform: str | Platform | None = None,
    replace: bool = False,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Finished:
    """Write the image ``source`` as ``target`` with what ``settings`` say of its config.

    ``annotations`` are those of the manifest. Fields of the documents that are not known stay, and where nothing
    changes the digest stays. ``platform`` chooses from an index; see `open_writer` for ``replace``. Only the documents
    of ``source`` are read, unless the target lacks its layers. Raises InvalidInput, NotFound, AlreadyExists.
    """
    target = parse_image_name(target) if isinstance(target, str) else target
    with open_platform_image(source, platform) as image:
        draft = with_annotations(with_settings(draft_of(image), settings), annotations or {})
        with open_writer(target, replace=replace) as writer:
            return write_draft(draft, writer, tag=target.tag, progress=progress, cancel=cancel)


def with_settings(draft: Draft, settings: Settings) -> Draft:
    """``draft`` with another config."""
    return replaced(draft, config=configured(draft.config, settings))


def with_annotations(draft: Draft, annotations: Pairs) -> Draft:
    """``draft`` with these annotations set or, where the value is None, taken away."""
    changed = merged(draft.manifest.annotations, pairs("annotations", annotations))
    return replaced(draft, manifest=msgspec.structs.replace(draft.manifest, annotations=changed))
