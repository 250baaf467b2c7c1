# SPDX-License-Identifier: Apache-2.0
"""Credentials and tokens for registries."""
