# SPDX-License-Identifier: Apache-2.0
"""The messages of containerd's services, generated from the .proto files beside this one.

``python -m lamella.protocol.proto.generate`` writes them anew.
"""
