# SPDX-License-Identifier: Apache-2.0
"""Generates the modules of this package from its .proto files; needs ``grpcio-tools``.

The compiler's version is removed: it changes with each release, and it rejects earlier releases of protobuf, which read
these plain descriptors too.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

PACKAGE: Final = Path(__file__).parent
_IMPORTS: Final = PACKAGE.parents[2]
"""Root of the paths in ``import`` statements."""

_LICENCE: Final = "# SPDX-License-Identifier: Apache-2.0\n"
_VERSIONS: Final = (
    re.compile(r"^# -\*- coding.*\n", re.MULTILINE),
    re.compile(r"^# NO CHECKED-IN PROTOBUF GENCODE\n", re.MULTILINE),
    re.compile(r"^# Protobuf Python Version: .*\n", re.MULTILINE),
    re.compile(r"^from google\.protobuf import runtime_version .*\n", re.MULTILINE),
    re.compile(r"^_runtime_version\.ValidateProtobufRuntimeVersion\((?:\n    .*)*\n\)\n", re.MULTILINE),
)


def generated() -> dict[str, str]:
    """The text of each module and stub, by file name. Raises RuntimeError if a file does not compile."""
    from grpc_tools import protoc

    sources = sorted(str(path.relative_to(_IMPORTS)) for path in PACKAGE.glob("*.proto"))
    included = Path(protoc.__file__).parent / "_proto"
    with TemporaryDirectory() as folder:
        code = protoc.main(
            ["protoc", f"-I{_IMPORTS}", f"-I{included}", f"--python_out={folder}", f"--pyi_out={folder}", *sources]
        )
        if code:
            raise RuntimeError(f"protoc failed with code {code}")
        return {path.name: _settled(path.read_text()) for path in sorted(Path(folder).rglob("*_pb2.py*"))}


def _settled(text: str) -> str:
    for pattern in _VERSIONS:
        text = pattern.sub("", text)
    return _LICENCE + text


def main() -> int:
    """Write the files."""
    for name, text in generated().items():
        (PACKAGE / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
