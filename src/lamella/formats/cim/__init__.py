# SPDX-License-Identifier: Apache-2.0
"""Composite images of Windows (CIM) in their multi-file form: structures, reading, writing.

``docs/formats/cim.md`` says what is known of the format, and by whom. Nothing here opens a file: regions are given.
"""
