# SPDX-License-Identifier: Apache-2.0
"""A directory on disk as a sink of changes and as a tree."""
