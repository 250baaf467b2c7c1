# SPDX-License-Identifier: Apache-2.0
"""Messages of containerd's services, generated from the .proto files of this package.

``python -m lamella.protocol.proto.generate`` regenerates them.
"""
