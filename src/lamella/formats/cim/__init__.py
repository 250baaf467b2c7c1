# SPDX-License-Identifier: Apache-2.0
"""Windows composite images (CIM) in their multi-file form: structures, reader, writer.

``docs/formats/cim.md`` describes the format and its sources. Nothing here opens files; callers pass regions.
"""
