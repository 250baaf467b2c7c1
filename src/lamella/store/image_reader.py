# SPDX-License-Identifier: Apache-2.0
"""Images that the store keeps, read as from any other place."""

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
"""What a name may be without."""


class StoreReader(ImageReader):
    """The image that a name names in a namespace, and whatever can be reached from it by digest.

    A name means what it does to Docker's users, or else is taken as it stands. ``target`` is an image without a name.
    Neither given, there is nothing to list, and blobs can be read all the same. ``closing`` is called in the end.
    """

    place = "the store"
    """Where images are, for messages."""
    hint = "lamella store images tells what there is"

    def __init__(
        self,
        space: Namespace,
        name: ImageName | None = None,
        *,
        target: Descriptor | None = None,
        closing: Callable[[], None] | None = None,
    ) -> None:
        self.space = space
        self.where = str(name) if name is not None else self.place
        self._name = name
        self._target = target
        self._closing = closing

    def images(self) -> Sequence[StoredImage]:
        """The one image, as the store's record has it now. Raises NotFound, Conflict (another digest)."""
        name = self._name
        if name is None:
            return [] if self._target is None else [StoredImage((), self._target)]
        if name.tag is None:
            target = self._by_digest(name)
            return [StoredImage((), target)]
        target = self._by_name(name)
        if name.digest is not None and name.digest != target.digest:
            raise Conflict(f"{self.where}: by that tag {self.place} has {target.digest}")
        return [StoredImage((name.tag,), target)]

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """The file of the blob."""
        content = self.space.content
        try:
            size = content.info(descriptor.digest).size
        except NotFound:
            raise NotFound(f"{self.where}: {descriptor.digest} is not there") from None
        if size != descriptor.size:
            raise SizeMismatch(f"{self.where}: {descriptor.digest}", expected=descriptor.size, actual=size)
        return content.open(descriptor.digest)

    def close(self) -> None:
        """Let go of the store."""
        super().close()
        if self._closing is not None:
            self._closing()

    def _by_name(self, name: ImageName) -> Descriptor:
        for full in stored_names(name):
            try:
                return self.space.images.get(full).target
            except NotFound:
                pass
        raise self._missing()

    def _by_digest(self, name: ImageName) -> Descriptor:
        for image in self.space.images.list():
            if image.target.digest == name.digest and _repository(image.name) == name.path:
                return image.target
        raise self._missing()

    def _missing(self) -> NotFound:
        return NotFound(f"{self.where}: there is no such image in {self.place}", hint=self.hint)


def stored_names(name: ImageName) -> Iterator[str]:
    """The names under which an image may be kept that has a tag, the full one first: others may keep it as it stands.

    `ctr` does so with the names of archives' images.
    """
    yield f"{name.path}:{name.tag}"
    for prefix in _IMPLIED:
        if name.path.startswith(prefix):
            short = name.path.removeprefix(prefix)
            yield f"{short}:{name.tag}"
            if name.tag == DEFAULT_TAG:
                yield short


def open_store_reader(name: ImageName, options: StoreOptions | None = None) -> StoreReader:
    """A reader of the image that ``name`` names, in a store that is only looked at. Raises as `Store.open` does."""
    space = open_space(options, readonly=True)
    try:
        return StoreReader(space, name, closing=space.store.close)
    except BaseException:
        space.store.close()
        raise


def open_space(options: StoreOptions | None = None, *, readonly: bool = False) -> LocalNamespace:
    """The namespace that ``options`` say, whose store is to be closed. Raises as `Store.open` does."""
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
