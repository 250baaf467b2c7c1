# SPDX-License-Identifier: Apache-2.0
"""Garbage collection by containerd's rules."""
