# SPDX-License-Identifier: Apache-2.0
"""An image as most programs want it: what it is made of, and what can be done with it."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, Unpack

from lamella.errors import Conflict, InvalidInput
from lamella.images.resolve import PlatformImage, open_platform_image
from lamella.images.transports import parse_image_name

if TYPE_CHECKING:
    from lamella.changes.job import Job
    from lamella.changes.losses import Losses
    from lamella.images.resolve import ImageLayer
    from lamella.images.transports import ImageName
    from lamella.layers.policy import Policy
    from lamella.oci.config import ImageConfig
    from lamella.oci.descriptor import Descriptor
    from lamella.oci.manifest import Manifest
    from lamella.oci.platform import Platform
    from lamella.operations.layers.write import LayerOptions
    from lamella.operations.surgery.convert import Format
    from lamella.operations.surgery.draft import Draft
    from lamella.operations.surgery.mutate import Pairs, SettingsGiven
    from lamella.operations.surgery.new_layers import LayerLike
    from lamella.operations.trees.filesystem import Filesystem
    from lamella.operations.unpack import Unpacked


def open_image(name: str | ImageName, platform: str | Platform | None = None) -> Image:
    """The image that ``name`` names, as in ``oci:DIR:TAG``, for ``platform`` or this host.

    Its documents are read and checked, its layers not yet. Use it as a context manager, or `close` it. Raises
    InvalidInput, NotFound, Unsupported, Integrity.
    """
    image = Image.open(name, platform)
    image._source.image()  # noqa: SLF001  # errors are wanted now
    return image


class Image:
    """An image: one that is somewhere, or one that is made of it.

    It never changes. The methods from `append` to `with_annotations` give another image, which is made when it is
    written or looked into, and not before; so is what `Image.open` opens. The same steps always give the same digest.
    What an image has open is let go of by `close`, or when nothing refers to the image any more.
    """

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._resources = ExitStack()
        self._filesystem: Filesystem | None = None

    @classmethod
    def scratch(cls, platform: str | Platform | None = None) -> Image:
        """An image without layers, for ``platform`` or this host. Raises InvalidInput."""
        from lamella.oci.platform import host_platform, parse_platform

        wanted = parse_platform(platform) if isinstance(platform, str) else platform or host_platform()

        def draft() -> Draft:
            from lamella.operations.surgery.draft import empty_draft
            from lamella.operations.surgery.mutate import new_config

            return empty_draft(new_config(wanted))

        return cls(_Made(draft))

    @classmethod
    def open(cls, name: str | ImageName, platform: str | Platform | None = None) -> Image:
        """The image that ``name`` names, as in ``oci:DIR:TAG``, for ``platform`` or this host.

        Nothing is read yet, so that what is wrong shows later; see `open_image` for an error at once. Raises
        InvalidInput for a malformed name.
        """
        return cls(_Placed(parse_image_name(name) if isinstance(name, str) else name, platform))

    @property
    def name(self) -> str | None:
        """The name that it was opened by; None for one that is made."""
        return self._source.name

    @property
    def _image(self) -> PlatformImage:
        return self._source.image()

    @property
    def descriptor(self) -> Descriptor:
        """Digest, size and media type of the manifest."""
        return self._image.descriptor

    @property
    def manifest(self) -> Manifest:
        """The manifest."""
        return self._image.manifest

    @property
    def config(self) -> ImageConfig:
        """The image config; how a container starts is in its ``config``."""
        return self._image.config

    @property
    def platform(self) -> Platform:
        """What it was built for."""
        return self._source.draft().config.platform

    @property
    def layers(self) -> tuple[ImageLayer, ...]:
        """The layers, the base first: descriptor, diff id, and `open` for the blob."""
        return self._image.layers

    def unpack(
        self,
        directory: str | os.PathLike[str],
        *,
        kind: str | None = None,
        bundle: bool = False,
        policy: Policy | None = None,
        merge: bool = False,
        job: Job | None = None,
    ) -> Unpacked:
        """Unpack into ``directory``, which must not exist and appears when everything is unpacked and checked.

        With ``kind`` it is another form than a plain tree, see `lamella.operations.unpack.unpack`; an image for Windows
        needs one. With ``merge`` the directory may exist, and is unpacked over. With ``bundle``, the files of a plain
        tree go into its ``rootfs``, beside a ``config.json`` for a runtime. ``policy`` chooses owners and devices.
        Raises what `lamella.operations.unpack.unpack` raises.
        """
        from lamella.changes.job import Job
        from lamella.operations.runtime.bundle import unpack_bundle
        from lamella.operations.unpack import unpack

        if bundle and kind not in (None, "directory"):
            raise InvalidInput("a bundle for a runtime holds a plain tree")
        job = job or Job()
        return (unpack_bundle if bundle else partial(unpack, kind=kind))(
            self._image,
            Path(directory),
            policy=policy,
            merge=merge,
            losses=job.losses,
            progress=job.progress,
            cancel=job.cancel,
        )

    def filesystem(self) -> Filesystem:
        """The merged view of the layers, to be read as a file system is, until the image is closed.

        The layers are read when this is first called, and checked as unpacking checks them. Raises as unpacking does.
        """
        if self._filesystem is None:
            from lamella.operations.trees.filesystem import Filesystem
            from lamella.operations.trees.open import image_tree

            self._filesystem = Filesystem(self._resources.enter_context(image_tree(self._image)))
        return self._filesystem

    def describe(self) -> dict[str, Any]:
        """What ``lamella inspect --json`` prints."""
        from lamella.operations.inspect import describe

        return describe(self._image)

    # Other images ------------------------------------------------------------------------------------------------

    def append(
        self,
        *layers: LayerLike,
        created_by: str | None = None,
        options: LayerOptions | None = None,
        losses: Losses | None = None,
    ) -> Image:
        """This image with ``layers`` on top: directories, blobs, or mappings of paths to files.

        Directories and files on disk are read when the image is written or looked into. ``losses`` collects what the
        layers cannot hold; the default are those of the job that writes the image. Raises InvalidInput for files that
        cannot be in one layer.
        """
        from lamella.operations.layers.write import DEFAULT_OPTIONS
        from lamella.operations.surgery.append import CREATED_BY, add_layers
        from lamella.operations.surgery.new_layers import new_layers

        new = new_layers(layers, options or DEFAULT_OPTIONS, losses)
        by = CREATED_BY if created_by is None else created_by
        return Image(_Made(lambda: add_layers(self._source.draft(), new, created_by=by)))

    def with_config(self, **settings: Unpack[SettingsGiven]) -> Image:
        """This image with another config; what is not given stays. See `lamella.operations.surgery.mutate.Settings`.

        Raises InvalidInput.
        """
        from lamella.operations.surgery.mutate import Settings, with_settings

        wanted = Settings(**settings)
        return Image(_Made(lambda: with_settings(self._source.draft(), wanted)))

    def with_annotations(self, annotations: Pairs) -> Image:
        """This image with these annotations of its manifest set or, where the value is None, removed."""
        from lamella.operations.surgery.mutate import checked_pairs, with_annotations

        wanted = checked_pairs("annotations", annotations)
        return Image(_Made(lambda: with_annotations(self._source.draft(), wanted)))

    def flatten(
        self, layers: range | str | None = None, *, compression: str = "gzip", level: int | None = None
    ) -> Image:
        """This image with all of its layers, or some, merged into one, as `lamella.flatten` does."""
        from lamella.operations.layers.write import LayerOptions
        from lamella.operations.surgery.flatten import merge_layers

        options = LayerOptions(compression, level)
        return Image(_Made(lambda: merge_layers(self._image, layers, options)))

    def rebase(self, old_base: Image, new_base: Image) -> Image:
        """This image with the layers of ``new_base`` in place of those of ``old_base``.

        See `lamella.operations.surgery.rebase.rebase`.
        """
        from lamella.operations.surgery.rebase import replace_base

        return Image(_Made(lambda: replace_base(self._image, old_base._image, new_base._image)))

    def convert(
        self,
        compression: str | None = None,
        *,
        level: int | None = None,
        again: bool = False,
        format: Format | None = None,  # noqa: A002  # the option's name in all verbs
    ) -> Image:
        """This image with its layers recompressed, or in another format, as `lamella.convert` does.

        Raises InvalidInput.
        """
        from lamella.changes.job import Job
        from lamella.operations.surgery.convert import Conversion, convert_image

        how = Conversion(compression, level, again=again, format=format)
        return Image(_Made(lambda: convert_image(self._image, how, Job())))

    def write(self, name: str | ImageName, *, replace: bool = False, job: Job | None = None) -> Descriptor:
        """Write the image to the place that ``name`` names, which is unchanged until all is there; its manifest.

        What that place has already is neither read nor written. See `open_writer` for ``replace``. Raises what making
        the image raises, and AlreadyExists.
        """
        from lamella.images.transports import open_writer
        from lamella.operations.surgery.draft import write_draft
        from lamella.operations.surgery.new_layers import refuse_own_source

        target = parse_image_name(name) if isinstance(name, str) else name
        draft = self._source.draft()
        refuse_own_source(draft.layers, target)
        with open_writer(target, replace=replace) as writer:
            return write_draft(draft, writer, tag=target.tag, job=job).descriptor

    def push(self, reference: str, *, job: Job | None = None) -> Descriptor:
        """Write the image to a registry, as in ``registry.example/app:1``; the same as `write` to ``docker://…``."""
        name = reference if reference.startswith("docker://") else f"docker://{reference}"
        return self.write(name, job=job)

    def close(self) -> None:
        """Let go of the place; files of `filesystem` cannot be read any more, nor what images made of it need."""
        self._resources.close()
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Image {self.name or 'made of others'}>"


class _Source(Protocol):
    """Where an image comes from."""

    name: str | None

    def image(self) -> PlatformImage:
        """The image, ready to be read."""
        ...

    def draft(self) -> Draft:
        """The image, to be written, as far as it is made."""
        ...

    def close(self) -> None: ...


class _Placed:
    """An image that is somewhere; opened once, when it is needed."""

    def __init__(self, name: ImageName, platform: str | Platform | None) -> None:
        self.name: str | None = str(name)
        self._where = name
        self._platform = platform
        self._image: PlatformImage | None = None
        self._closing: weakref.finalize[..., _Placed] | None = None
        self._closed = False

    def image(self) -> PlatformImage:
        if self._image is None:
            if self._closed:
                raise Conflict(f"{self.name}: the image is closed")
            self._image = open_platform_image(self._where, self._platform)
            self._closing = weakref.finalize(self, self._image.close)
        return self._image

    def draft(self) -> Draft:
        from lamella.operations.surgery.draft import draft_of

        return draft_of(self.image())

    def close(self) -> None:
        self._closed = True
        if self._closing is not None:
            self._closing()


class _Made:
    """An image that is made of others; its new layers are in a temporary place once it has been looked into."""

    name: str | None = None

    def __init__(self, make: Callable[[], Draft]) -> None:
        self._make = make
        self._draft: Draft | None = None
        self._image: PlatformImage | None = None
        self._closing: weakref.finalize[..., _Made] | None = None

    def image(self) -> PlatformImage:
        if self._image is None:
            from lamella.operations.surgery.draft import Spool, spool_draft

            spool = Spool()
            self._closing = weakref.finalize(self, spool.close)
            self._image = spool_draft(self.draft(), spool)
        return self._image

    def draft(self) -> Draft:
        from lamella.operations.surgery.draft import draft_of

        if self._image is not None:
            return draft_of(self._image)
        if self._draft is None:
            self._draft = self._make()
        return self._draft

    def close(self) -> None:
        if self._closing is not None:
            self._closing()
        self._image = None
