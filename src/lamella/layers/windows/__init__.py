# SPDX-License-Identifier: Apache-2.0
"""The folder of a Windows layer as the place of a layer: on Windows' own terms as far as another system has them.

``docs/windows.md`` tells what is where in such a folder.
"""

from lamella.layers.windows.folder.layout import WindowsLayer

__all__ = ["WindowsLayer"]
