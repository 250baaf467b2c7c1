# SPDX-License-Identifier: Apache-2.0
"""Client of containerd's services: a remote store with the contracts of the local one."""
