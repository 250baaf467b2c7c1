# SPDX-License-Identifier: Apache-2.0
"""Names of layers together with all that lie below them (image-spec, config.md, "Layer ChainID")."""

from __future__ import annotations

from collections.abc import Sequence

from lamella.digests import Digest


def chain_ids(diff_ids: Sequence[Digest]) -> list[Digest]:
    """The chain id of each layer, the base first; that of the base is its diff id."""
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(Digest.of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain
