# SPDX-License-Identifier: Apache-2.0
"""Contract suites, builders and hypothesis strategies for implementations of layers and stores.

A binding inherits the tests of a suite and defines how to make the object under test::

    class TestMemorySink(sink_suite.SinkTests):
        def make(self, tmp_path: Path) -> sink_suite.Place:
            return MemoryPlace()

Write ``pytest.register_assert_rewrite("lamella.testing")`` into ``conftest.py`` to get pytest's detailed assertion
messages. `lamella.testing.builders` writes changes by hand; `lamella.testing.strategies` needs hypothesis.
"""
