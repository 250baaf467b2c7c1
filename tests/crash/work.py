# SPDX-License-Identifier: Apache-2.0
"""A process that works on a store until it is killed, and tells what it is about to do and what it has done.

Each line is ``begin`` or ``done`` and then a verb with its words. Started with the root, a seed, the namespace, a
directory of images and how much there is to do at most.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from lamella.changes.apply import apply
from lamella.errors import AlreadyExists, Conflict, NotFound
from lamella.operations.store.transfer import ImportOptions, import_image
from lamella.store.gc.collect import collect
from lamella.store.gc.labels import ROOT
from lamella.store.store import LocalNamespace, Store
from lamella.store.unpack.image import unpack_image
from lamella.testing.builders import directory, file

NAMES = [f"docker.io/library/name{number}:latest" for number in range(4)]


def tell(*words: object) -> None:
    print(*words, flush=True)


class Work:
    """What there is to do, each with the same chance."""

    def __init__(self, space: LocalNamespace, dice: random.Random, images: Path, kinds: list[str]) -> None:
        self.space = space
        self.dice = dice
        self.images = sorted(images.iterdir())
        self.kinds = kinds

    def bring(self) -> None:
        name = self.dice.choice(NAMES)
        source = self.dice.choice(self.images)
        tell("begin", "bring", name)
        done = import_image(self.space, f"oci:{source}:it", ImportOptions(name=name, replace=True))
        tell("done", "bring", name, done.images[0].target.digest)

    def unpack(self) -> None:
        records = self.space.images.list()
        if records:
            record, kind = self.dice.choice(records), self.dice.choice(self.kinds)
            tell("begin", "unpack")
            done = unpack_image(self.space, record.target, kind)
            tell("done", "unpack", record.target.digest, kind, done.snapshot)

    def drop(self) -> None:
        records = self.space.images.list()
        if records:
            name = self.dice.choice(records).name
            tell("begin", "drop", name)
            self.space.images.delete(name)
            tell("done", "drop", name)

    def commit(self) -> None:
        kind, name = self.dice.choice(self.kinds), f"own {self.dice.randrange(6)}"
        snapshots = self.space.snapshots(kind)
        parents = ["", *(one.name for one in snapshots.list(["kind==committed"]) if one.name.startswith("own"))]
        key = f"key {self.dice.randrange(3)}"
        tell("begin", "commit", kind, name.replace(" ", "_"))
        try:
            snapshots.prepare(key, self.dice.choice(parents), {ROOT: "yes"})
        except AlreadyExists:
            snapshots.remove(key)
            return
        content = name.encode() * 1000
        if kind == "erofs" and self.dice.random() < 0.5:  # as somebody would who has it mounted
            written = snapshots.directory(key) / "fs" / "d"
            written.mkdir()
            (written / name).write_bytes(content)
        else:
            apply([directory("d"), file(f"d/{name}", content)], snapshots.sink(key))
        try:
            snapshots.commit(name, key, {ROOT: "yes"})
        except AlreadyExists:
            snapshots.remove(key)
        tell("done", "commit", kind, name.replace(" ", "_"))

    def remove(self) -> None:
        kind = self.dice.choice(self.kinds)
        snapshots = self.space.snapshots(kind)
        own = [one.name for one in snapshots.list() if one.name.startswith("own")]
        if own:
            name = self.dice.choice(own)
            tell("begin", "remove", kind, name.replace(" ", "_"))
            try:
                snapshots.remove(name)
            except Conflict:
                return  # others lie on it
            tell("done", "remove", kind, name.replace(" ", "_"))

    def collect(self) -> None:
        tell("begin", "collect")
        collect(self.space.store)
        tell("done", "collect")


def main() -> None:
    root, seed, namespace, images, count = sys.argv[1:6]
    with Store.open(root) as store:
        work = Work(store.namespace(namespace), random.Random(int(seed)), Path(images), sys.argv[6:])
        verbs = [work.bring, work.bring, work.unpack, work.unpack, work.drop, work.commit, work.remove, work.collect]
        tell("ready")
        for _ in range(int(count)):
            try:
                work.dice.choice(verbs)()
            except NotFound:
                pass  # another process was quicker
        tell("end")


if __name__ == "__main__":
    main()
