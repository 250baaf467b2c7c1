# SPDX-License-Identifier: Apache-2.0
"""EROFS images: the read-only file system of Linux (Documentation/filesystems/erofs.rst, fs/erofs/erofs_fs.h).

Uncompressed images are read, whoever wrote them, and written. Names and contents are bytes here, numbers are as stored.
"""
