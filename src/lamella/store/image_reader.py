# SPDX-License-Identifier: Apache-2.0
"""Reads images from a store, local or remote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, Final

from lamella.errors import Conflict, InvalidInput, NotFound, SizeMismatch
from lamella.images.contract import ImageReader, StoredImage
from lamella.images.options import StoreOptions
from lamella.images.transports import ImageName
from lamella.oci.descriptor import Descriptor
from lamella.oci.reference import DEFAULT_REGISTRY, DEFAULT_TAG, parse_reference
from lamella.store.contract import Namespace
from lamella.store.store import Store, default_root

if TYPE_CHECKING:
    from lamella.store.store import LocalNamespace

_IMPLIED: Final = (f"{DEFAULT_REGISTRY}/library/", f"{DEFAULT_REGISTRY}/")
"""Prefixes that a short name omits."""


class StoreReader(ImageReader):
    """Reads one image of a namespace, by name or ``target``, and every blob of the namespace by digest.

    A short name has Docker's implied prefixes, or else is looked up as it is. Without name and target, `images` is
    empty. ``closing`` is called at the end.
    """

    place = "the store"
    """Name of the store, for messages."""
    hint = "lamella store images lists the images"

    def __init__(
        self,
        namespace: Namespace,
        name: ImageName | None = None,
        *,
        target: Descriptor | None = None,
        closing: Callable[[], None] | None = None,
    ) -> None:
        self.namespace = namespace
        self.where = str(name) if name is not None else self.place
        self._name = name
        self._target = target
        self._closing = closing

    def images(self) -> Sequence[StoredImage]:
        """Return the image as it is now. Raises NotFound, Conflict (another digest than the name's)."""
        name = self._name
        if name is None:
            return [] if self._target is None else [StoredImage((), self._target)]
        if name.tag is None:
            target = self._find_digest(name)
            return [StoredImage((), target)]
        target = self._find_name(name)
        if name.digest is not None and name.digest != target.digest:
            raise Conflict(f"{self.where}: the tag refers to {target.digest} in {self.place}")
        return [StoredImage((name.tag,), target)]

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        content = self.namespace.content
        try:
            size = content.info(descriptor.digest).size
        except NotFound:
            raise NotFound(f"{self.where}: there is no blob {descriptor.digest}") from None
        if size != descriptor.size:
            raise SizeMismatch(f"{self.where}: {descriptor.digest}", expected=descriptor.size, actual=size)
        return content.open(descriptor.digest)

    def close(self) -> None:
        super().close()
        if self._closing is not None:
            self._closing()

    def _find_name(self, name: ImageName) -> Descriptor:
        for full in stored_names(name):
            try:
                return self.namespace.images.get(full).target
            except NotFound:
                pass
        raise self._no_image()

    def _find_digest(self, name: ImageName) -> Descriptor:
        for image in self.namespace.images.list():
            if image.target.digest == name.digest and _repository(image.name) == name.path:
                return image.target
        raise self._no_image()

    def _no_image(self) -> NotFound:
        return NotFound(f"{self.where}: there is no such image in {self.place}", hint=self.hint)


def stored_names(name: ImageName) -> Iterator[str]:
    """Yield the names that an image with a tag may have in a store, the full one first.

    Other programs store short names too: `ctr` takes names from archives unchanged.
    """
    yield f"{name.path}:{name.tag}"
    for prefix in _IMPLIED:
        if name.path.startswith(prefix):
            short = name.path.removeprefix(prefix)
            yield f"{short}:{name.tag}"
            if name.tag == DEFAULT_TAG:
                yield short


def open_store_reader(name: ImageName, options: StoreOptions | None = None) -> StoreReader:
    """Open a store for reading, and an image of it. Raises as `Store.open`."""
    namespace = open_namespace(options, readonly=True)
    try:
        return StoreReader(namespace, name, closing=namespace.store.close)
    except BaseException:
        namespace.store.close()
        raise


def open_namespace(options: StoreOptions | None = None, *, readonly: bool = False) -> LocalNamespace:
    """Open the store and the namespace of ``options``; the caller closes the store. Raises as `Store.open`."""
    options = options or StoreOptions()
    store = Store.open(options.root or default_root(), readonly=readonly, create=not readonly)
    try:
        return store.namespace(options.namespace)
    except BaseException:
        store.close()
        raise


def _repository(name: str) -> str:
    try:
        return parse_reference(name).name
    except InvalidInput:
        return ""
