# SPDX-License-Identifier: Apache-2.0
"""Windows' own calls: privileges, files with all that they carry, layers, hives, disks, composite images.

Each module takes a ``Loader``, so that the same bindings run against Windows and against a stub of it.
"""
