# SPDX-License-Identifier: Apache-2.0
"""Images in OCI layouts that lie side by side in the directory that the variable SHELF names."""

from __future__ import annotations

import os
from pathlib import Path

from lamella.images.contract import ImageReader, ImageWriter
from lamella.images.layout import LayoutWriter, open_directory
from lamella.images.transports import Access, ImageName, Syntax, Transport


def _directory(name: ImageName) -> str:
    return str(Path(os.environ["SHELF"]) / name.path)


def _read(name: ImageName, access: Access) -> ImageReader:
    del access
    return open_directory(_directory(name))


def _write(name: ImageName, access: Access) -> ImageWriter:
    return LayoutWriter(_directory(name), replace=access.replace, durable=access.durable)


SHELF = Transport("shelf:NAME[:TAG]", Syntax.PATH, _read, _write)
