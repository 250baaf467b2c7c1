# SPDX-License-Identifier: Apache-2.0
"""A tar blob as a source and a sink of changes."""
