# SPDX-License-Identifier: Apache-2.0
"""Endpoints: the services that a socket offers, directly over a store or as plugins of a containerd."""
