# SPDX-License-Identifier: Apache-2.0
"""Lamella side by side with its peers: the same work, the same files, the same file system."""
