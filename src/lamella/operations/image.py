# SPDX-License-Identifier: Apache-2.0
"""`Image`, the public class of images: it reads, writes and derives them."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from contextlib import ExitStack
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
    """Open the image ``name``, as in ``oci:DIR:TAG``; from an index, the image for ``platform`` or this host.

    Reads and checks index, manifest and config, not the layers. Use the image as a context manager, or `close` it.
    Raises InvalidInput for a malformed name or platform, NotFound for a missing image, Unsupported for a document that
    is no image, Integrity for a document that does not match its digest.
    """
    image = Image.open(name, platform)
    image._source.image()  # noqa: SLF001  # raises errors now
    return image


class Image:
    """An immutable image: one that is stored somewhere, or one derived from other images.

    The methods from `append` to `convert` return a derived image. It is built when it is first written or read, so
    most of their errors are raised then. The same steps on the same images always give the same digest. `close`, or
    garbage collection of the image, releases its files. A derived image reads the images that it was derived from:
    keep them open while it is used.
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

        return cls(_DerivedImage(draft))

    @classmethod
    def open(cls, name: str | ImageName, platform: str | Platform | None = None) -> Image:
        """The image ``name``, as `open_image` opens it, but opened on first use, which then raises its errors.

        Raises InvalidInput for a malformed name.
        """
        return cls(_NamedImage(parse_image_name(name) if isinstance(name, str) else name, platform))

    @property
    def name(self) -> str | None:
        """The name of an opened image; None for a derived one."""
        return self._source.name

    @property
    def _image(self) -> PlatformImage:
        return self._source.image()

    @property
    def descriptor(self) -> Descriptor:
        """Digest, size in bytes and media type of the manifest."""
        return self._image.descriptor

    @property
    def manifest(self) -> Manifest:
        return self._image.manifest

    @property
    def config(self) -> ImageConfig:
        """The image config; its ``config`` has the defaults of a container."""
        return self._image.config

    @property
    def platform(self) -> Platform:
        """The platform in the config."""
        return self._source.draft().config.platform

    @property
    def layers(self) -> tuple[ImageLayer, ...]:
        """The layers, base first. Each has a descriptor and a diff id, and `open` opens its blob."""
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
        """Unpack into ``directory``, which must not exist and appears when all layers are unpacked and checked.

        ``kind`` is a kind of layer; the default is a plain directory, and a Windows image needs another. With
        ``merge`` the directory may exist, and files in it are replaced. With ``bundle``, the files go into its
        ``rootfs``, beside a ``config.json`` for a runtime. ``policy`` says how to unpack owners and devices. Raises
        InvalidInput for a bundle of another kind, and as `lamella.unpack`.
        """
        from lamella.operations.runtime.bundle import unpack_bundle
        from lamella.operations.unpack import UnpackOptions, unpack

        if bundle and kind not in (None, "directory"):
            raise InvalidInput("a bundle for a runtime holds a plain tree")
        options = UnpackOptions(kind, policy, merge)
        return (unpack_bundle if bundle else unpack)(self._image, Path(directory), options, job=job)

    def filesystem(self) -> Filesystem:
        """The merged view of the layers as a read-only file system, valid until the image is closed.

        The first call reads and checks all layers, and raises as `unpack`; later calls return the same file system.
        """
        if self._filesystem is None:
            from lamella.operations.trees.filesystem import Filesystem
            from lamella.operations.trees.open import image_tree

            self._filesystem = Filesystem(self._resources.enter_context(image_tree(self._image)))
        return self._filesystem

    def describe(self) -> dict[str, Any]:
        """The document that ``lamella inspect --json`` prints; sizes are in bytes."""
        from lamella.operations.inspect import describe

        return describe(self._image)

    # Derived images ------------------------------------------------------------------------------------------------

    def append(
        self,
        *layers: LayerLike,
        created_by: str | None = None,
        options: LayerOptions | None = None,
        losses: Losses | None = None,
    ) -> Image:
        """This image with ``layers`` on top: directories, blobs, or mappings of paths to files.

        Directories and files on disk are read when the image is written or read. ``created_by`` is the text of the new
        steps in the history. ``losses`` collects what the layers cannot hold; by default, the losses of the job that
        writes the image. Raises InvalidInput for files that cannot be in one layer.
        """
        from lamella.operations.layers.write import DEFAULT_OPTIONS
        from lamella.operations.surgery.append import CREATED_BY, add_layers
        from lamella.operations.surgery.new_layers import new_layers

        new = new_layers(layers, options or DEFAULT_OPTIONS, losses)
        by = CREATED_BY if created_by is None else created_by
        return Image(_DerivedImage(lambda: add_layers(self._source.draft(), new, created_by=by)))

    def with_config(self, **settings: Unpack[SettingsGiven]) -> Image:
        """This image with fields of its config changed, as `lamella.operations.surgery.mutate.Settings` describes.

        Raises InvalidInput for a malformed value.
        """
        from lamella.operations.surgery.mutate import Settings, with_settings

        wanted = Settings(**settings)
        return Image(_DerivedImage(lambda: with_settings(self._source.draft(), wanted)))

    def with_annotations(self, annotations: Pairs) -> Image:
        """This image with annotations of its manifest set; None as the value removes one. Raises InvalidInput."""
        from lamella.operations.surgery.mutate import checked_pairs, with_annotations

        wanted = checked_pairs("annotations", annotations)
        return Image(_DerivedImage(lambda: with_annotations(self._source.draft(), wanted)))

    def flatten(
        self, layers: range | str | None = None, *, compression: str = "gzip", level: int | None = None
    ) -> Image:
        """This image with ``layers`` merged into one: a range of numbers, as a text ``"A..B"``, or all by default.

        The numbers count from 0 at the base. ``compression`` and ``level`` are those of the new layer.
        """
        from lamella.operations.layers.write import LayerOptions
        from lamella.operations.surgery.flatten import merge_layers

        options = LayerOptions(compression, level)
        return Image(_DerivedImage(lambda: merge_layers(self._image, layers, options)))

    def rebase(self, old_base: Image, new_base: Image) -> Image:
        """This image with the layers of ``old_base``, on which it must be built, replaced by those of ``new_base``."""
        from lamella.operations.surgery.rebase import replace_base

        return Image(_DerivedImage(lambda: replace_base(self._image, old_base._image, new_base._image)))

    def convert(
        self,
        compression: str | None = None,
        *,
        level: int | None = None,
        again: bool = False,
        format: Format | None = None,  # noqa: A002  # the option's name in all verbs
    ) -> Image:
        """This image with its layers recompressed, or with its manifest in another format.

        Layers that have the compression already are kept, unless ``again`` is true. Raises InvalidInput for an unknown
        compression or level.
        """
        from lamella.changes.job import Job
        from lamella.operations.surgery.convert import Conversion, convert_image

        how = Conversion(compression, level, again=again, format=format)
        return Image(_DerivedImage(lambda: convert_image(self._image, how, Job())))

    def write(self, name: str | ImageName, *, replace: bool = False, job: Job | None = None) -> Descriptor:
        """Write the image as ``name``, atomically, and return the descriptor of its manifest.

        Blobs that the target holds are neither read nor written. ``replace`` permits to replace an existing archive, or
        the image of that name in a store. Raises AlreadyExists without it, InvalidInput if the image would overwrite
        one that it is made from, and as the steps that derived the image.
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
        """Write the image to a registry, as in ``registry.example/app:1``, like `write` to ``docker://…``."""
        name = reference if reference.startswith("docker://") else f"docker://{reference}"
        return self.write(name, job=job)

    def close(self) -> None:
        """Close all files. `filesystem` and images derived from this one become unusable. May be called again."""
        self._resources.close()
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Image {self.name or '(derived)'}>"


class _Source(Protocol):
    """The origin of an image."""

    name: str | None

    def image(self) -> PlatformImage:
        """The image for reading."""
        ...

    def draft(self) -> Draft:
        """The image for writing; its new layers may not be written yet."""
        ...

    def close(self) -> None: ...


class _NamedImage:
    """An image in a place, opened on first use."""

    def __init__(self, name: ImageName, platform: str | Platform | None) -> None:
        self.name: str | None = str(name)
        self._name = name
        self._platform = platform
        self._image: PlatformImage | None = None
        self._closing: weakref.finalize[..., _NamedImage] | None = None
        self._closed = False

    def image(self) -> PlatformImage:
        if self._image is None:
            if self._closed:
                raise Conflict(f"{self.name}: the image is closed")
            self._image = open_platform_image(self._name, self._platform)
            self._closing = weakref.finalize(self, self._image.close)
        return self._image

    def draft(self) -> Draft:
        from lamella.operations.surgery.draft import draft_of

        return draft_of(self.image())

    def close(self) -> None:
        self._closed = True
        if self._closing is not None:
            self._closing()


class _DerivedImage:
    """An image that is derived from others. Reading it writes its new layers to a temporary directory."""

    name: str | None = None

    def __init__(self, make: Callable[[], Draft]) -> None:
        self._make = make
        self._draft: Draft | None = None
        self._image: PlatformImage | None = None
        self._closing: weakref.finalize[..., _DerivedImage] | None = None

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
