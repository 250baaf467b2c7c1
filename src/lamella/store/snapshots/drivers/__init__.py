# SPDX-License-Identifier: Apache-2.0
"""Snapshot drivers: overlay, native, erofs, cimfs and blockcim."""
