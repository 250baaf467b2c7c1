# SPDX-License-Identifier: Apache-2.0
"""An image as most programs want it: what it is made of, and what can be done with it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from lamella.images import image as images

if TYPE_CHECKING:
    from lamella.changes.losses import Losses
    from lamella.images.image import ImageLayer
    from lamella.images.naming import ImageName
    from lamella.layers.policy import Policy
    from lamella.oci.config import ImageConfig
    from lamella.oci.descriptor import Descriptor
    from lamella.oci.manifest import Manifest
    from lamella.oci.platform import Platform
    from lamella.operations.filesystem import Filesystem
    from lamella.operations.unpack import Unpacked
    from lamella.progress import Cancellation, Progress


def open_image(name: str | ImageName, platform: str | Platform | None = None) -> Image:
    """The image that ``name`` names, as in ``oci:DIR:TAG``, for ``platform`` or this host.

    Its documents are read and checked, its layers not yet. Use it as a context manager, or `close` it. Raises
    InvalidInput, NotFound, Unsupported, Integrity.
    """
    return Image(images.open_image(name, platform))


class Image:
    """An image that is open."""

    def __init__(self, image: images.Image) -> None:
        self._image = image
        self._resources = ExitStack()
        self._resources.enter_context(image)
        self._filesystem: Filesystem | None = None

    @property
    def name(self) -> str | None:
        """The name that it was opened by."""
        return None if self._image.name is None else str(self._image.name)

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
        return self._image.platform

    @property
    def layers(self) -> tuple[ImageLayer, ...]:
        """The layers, the base first: descriptor, diff id, and `open` for the blob."""
        return self._image.layers

    def unpack(
        self,
        directory: str | os.PathLike[str],
        *,
        bundle: bool = False,
        policy: Policy | None = None,
        merge: bool = False,
        losses: Losses | None = None,
        progress: Progress | None = None,
        cancel: Cancellation | None = None,
    ) -> Unpacked:
        """Unpack into ``directory``, which must not exist and appears when all is done and checked.

        With ``merge`` it may exist, and is unpacked over. With ``bundle``, the files go into its ``rootfs``, beside a
        ``config.json`` for a runtime. ``policy`` says what becomes of owners and devices, ``losses`` collects what the
        file system cannot hold. Raises as `lamella.operations.unpack.unpack`.
        """
        from lamella.operations.bundle import unpack_bundle
        from lamella.operations.unpack import unpack

        return (unpack_bundle if bundle else unpack)(
            self._image,
            Path(directory),
            policy=policy,
            merge=merge,
            losses=losses,
            progress=progress,
            cancel=cancel,
        )

    def filesystem(self) -> Filesystem:
        """The merged view of the layers, to be read as a file system is, until the image is closed.

        The layers are read when this is first called, and checked as unpacking checks them. Raises as unpacking does.
        """
        if self._filesystem is None:
            from lamella.operations.filesystem import Filesystem
            from lamella.operations.trees import image_tree

            self._filesystem = Filesystem(self._resources.enter_context(image_tree(self._image)))
        return self._filesystem

    def describe(self) -> dict[str, Any]:
        """What ``lamella inspect --json`` prints."""
        from lamella.operations.inspect import describe

        return describe(self._image)

    def close(self) -> None:
        """Let go of the place; files of `filesystem` cannot be read any more."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Image {self.name or self.descriptor.digest}>"
