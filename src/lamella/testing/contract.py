# SPDX-License-Identifier: Apache-2.0
"""The contracts of the neck as test suites, which pytest collects where a kind of layer is bound to them.

A binding says how to make one, and inherits the tests::

    class TestMemorySink(contract.SinkTests):
        def make(self, tmp_path: Path) -> contract.Place:
            return MemoryPlace()

Write ``pytest.register_assert_rewrite("lamella.testing")`` into ``conftest.py`` to be told more by what fails.
"""

from __future__ import annotations

from lamella.testing.limits_suite import LimitTests
from lamella.testing.sink_suite import AtomicSinkTests, DeviceSinkTests, Place, SinkTests
from lamella.testing.source_suite import SourceTests
from lamella.testing.tree_suite import TreeTests

__all__ = ["AtomicSinkTests", "DeviceSinkTests", "LimitTests", "Place", "SinkTests", "SourceTests", "TreeTests"]
