# SPDX-License-Identifier: Apache-2.0
"""System calls and ctypes bindings beyond the os module, under the same names on each system."""

from __future__ import annotations

import sys

if sys.platform == "linux":
    from lamella.host.linux import (
        HAS_XATTRS,
        chmod_beneath,
        chmod_open,
        current_umask,
        get_xattr,
        list_xattrs,
        names_open_files,
        path_beneath,
        path_of,
        remove_xattr,
        rename_exclusive,
        set_xattr,
        xattr_lister,
    )
else:
    from lamella.host.generic import (
        HAS_XATTRS,
        chmod_beneath,
        chmod_open,
        current_umask,
        get_xattr,
        list_xattrs,
        names_open_files,
        path_beneath,
        path_of,
        remove_xattr,
        rename_exclusive,
        set_xattr,
        xattr_lister,
    )

__all__ = [
    "HAS_XATTRS",
    "chmod_beneath",
    "chmod_open",
    "current_umask",
    "get_xattr",
    "list_xattrs",
    "names_open_files",
    "path_beneath",
    "path_of",
    "remove_xattr",
    "rename_exclusive",
    "set_xattr",
    "xattr_lister",
]
