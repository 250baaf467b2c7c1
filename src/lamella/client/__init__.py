# SPDX-License-Identifier: Apache-2.0
"""A store at the other end of a socket: containerd's services, keeping the store's promises."""
