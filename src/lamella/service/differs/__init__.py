# SPDX-License-Identifier: Apache-2.0
"""Differs by mount type: files, and Windows layers."""
