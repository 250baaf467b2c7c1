# SPDX-License-Identifier: Apache-2.0
"""The upper directory of an overlay mount as a source and a sink of changes."""
