# SPDX-License-Identifier: Apache-2.0
"""Downloads packages through their ordinary clients, and lays their files out as an installation would.

Maintainer scripts are not run: what counts is the size, number and kind of the files.
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
from pathlib import Path

# Distribution tools mark files with the day of the download; images look the same whenever they are built.
DAY = 1_760_000_000


def run(*args: str, cwd: Path | None = None) -> str:
    """Return what a program printed; raise with its error output if it failed."""
    try:
        done = subprocess.run(args, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SystemExit(f"building the images needs {args[0]}, which is not installed") from None
    if done.returncode:
        raise SystemExit(f"{args[0]} failed ({done.returncode}): {done.stderr.strip()[-2000:]}")
    return done.stdout


def debian(names: tuple[str, ...], cache: Path, into: Path) -> None:
    """Unpack Debian packages into a root; names that this release doesn't have are reported and left out."""
    if not names:
        return
    cache.mkdir(parents=True, exist_ok=True)
    have = {path.name.partition("_")[0]: path for path in cache.glob("*.deb")}
    missing = [name for name in names if name not in have]
    if missing:
        known = set(
            re.findall(r"^(\S+):\n(?:  .*\n)*?  Candidate: \d", run("apt-cache", "policy", *missing), re.MULTILINE)
        )
        unknown = [name for name in missing if name not in known]
        if len(unknown) > len(names) // 4:
            raise SystemExit("apt knows too few of the packages: run 'apt-get update' first, on Debian 13")
        if unknown:
            print(f"corpus: not in this release of Debian: {' '.join(unknown)}", file=sys.stderr)
        wanted = [name for name in missing if name in known]
        if wanted:
            run("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *wanted, cwd=cache)
        have = {path.name.partition("_")[0]: path for path in cache.glob("*.deb")}
    into.mkdir(parents=True, exist_ok=True)
    # base-files goes first: it brings the links (/bin -> usr/bin) that the others' paths may pass through.
    for name in sorted(set(names) & set(have), key=lambda name: (name != "base-files", name)):
        run("dpkg-deb", "-x", str(have[name]), str(into))
        lists = into / "var/lib/dpkg/info"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{name}.list").write_text(run("dpkg-deb", "--contents", str(have[name])))


def wheels(pins: tuple[str, ...], cache: Path, into: Path) -> None:
    """Install Python wheels for x86-64 and Python 3.11 into a site-packages folder."""
    if not pins:
        return
    cache.mkdir(parents=True, exist_ok=True)
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 26, 27, 28)] + ["manylinux2014_x86_64"]
    choose = [word for platform in platforms for word in ("--platform", platform)]
    stamp = cache / "pins"
    have = set(stamp.read_text().split()) if stamp.exists() else set()
    if missing := sorted(set(pins) - have):
        run(
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
            *("--python-version", "3.11", "--dest", str(cache), *choose, *missing),
        )
        stamp.write_text("\n".join(sorted(have | set(pins))))
    stems = {re.sub(r"[-_.]+", "_", pin.partition("==")[0]).lower() for pin in pins}
    site = into / "usr/local/lib/python3.11/site-packages"
    site.mkdir(parents=True, exist_ok=True)
    for wheel in sorted(cache.glob("*.whl")):
        if re.sub(r"[-_.]+", "_", wheel.name.partition("-")[0]).lower() not in stems:
            continue
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                place = Path(archive.extract(member, site))
                when = time.mktime((*member.date_time, 0, 0, -1))
                os.utime(place, (when, when))
                if place.is_file():
                    place.chmod(0o755 if member.external_attr >> 16 & 0o111 else 0o644)


def npm(pins: tuple[str, ...], cache: Path, into: Path) -> None:
    """Install npm packages, without their dependencies, into a node_modules folder."""
    if not pins:
        return
    cache.mkdir(parents=True, exist_ok=True)
    modules = into / "srv/app/node_modules"
    for pin in pins:
        name, _, version = pin.rpartition("@")
        archive = cache / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
        if not archive.exists():
            run("npm", "pack", "--silent", "--pack-destination", str(cache), pin)
        place = modules / name
        loose = modules / ".unpacking"
        with tarfile.open(archive) as tar:
            tar.extractall(loose, filter="data")
        (top,) = loose.iterdir()
        place.parent.mkdir(parents=True, exist_ok=True)
        top.rename(place)
        shutil.rmtree(loose)


def leave_out_below(root: Path, least: int) -> None:
    """Remove the files smaller than least, and the directories and links that lead nowhere without them."""
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            path = Path(folder, name)
            if path.is_symlink() or path.stat().st_size < least:
                path.unlink()
        if not os.listdir(folder):
            Path(folder).rmdir()
