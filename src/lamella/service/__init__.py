# SPDX-License-Identifier: Apache-2.0
"""The gRPC edge: containerd's services over a store, on a unix socket."""
