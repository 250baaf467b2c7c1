# SPDX-License-Identifier: Apache-2.0
"""A gRPC server over HTTP/2 on unix sockets."""
