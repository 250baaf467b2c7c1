# SPDX-License-Identifier: Apache-2.0
"""The sockets' endpoints: a store served directly, or as a containerd plugin."""
