# SPDX-License-Identifier: Apache-2.0
"""Lamella: a layer engine for OCI container images."""
