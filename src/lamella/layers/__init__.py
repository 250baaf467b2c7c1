# SPDX-License-Identifier: Apache-2.0
"""Where a layer can live; each module is one kind of place."""
