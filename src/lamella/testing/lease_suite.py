# SPDX-License-Identifier: Apache-2.0
"""What every store of leases promises, that of a server included."""

from __future__ import annotations

from pathlib import Path

from lamella.digests import Digest
from lamella.errors import AlreadyExists, InvalidInput, NotFound, Unsupported
from lamella.store.contract import LeaseStore, Resource
from lamella.testing.reading import raises

BLOB = Resource("content", Digest.of(b"anything"))
KINDS = (
    BLOB,
    Resource("images", "docker.io/library/one:1"),
    Resource("ingests", "layer-1 of/some:thing"),
    Resource("snapshots/native", "key with spaces"),
    Resource("snapshots/overlayfs", "sha256:1"),
)


class LeaseTests:
    """Bind with ``make``, which gives a store without leases. What leases hold need not be there."""

    def make(self, tmp_path: Path) -> LeaseStore:
        """A store without leases; ``tmp_path`` is an empty directory for it."""
        raise NotImplementedError

    def test_what_was_created_is_there(self, tmp_path: Path) -> None:
        leases = self.make(tmp_path)
        made = leases.create("/mnt/some where", {"containerd.io/gc.flat": "true", "empty": ""})
        assert (made.id, dict(made.labels)) == ("/mnt/some where", {"containerd.io/gc.flat": "true"})
        assert made.created_at > 0
        assert [made] == list(leases.list())
        assert list(leases.resources(made.id)) == []

    def test_an_id_is_chosen_where_none_is_given(self, tmp_path: Path) -> None:
        leases = self.make(tmp_path)
        made = {leases.create().id for _ in range(20)}
        assert len(made) == 20
        assert "" not in made
        assert sorted(made) == [one.id for one in leases.list()]

    def test_an_id_is_taken_once(self, tmp_path: Path) -> None:
        leases = self.make(tmp_path)
        made = leases.create("one")
        with raises(AlreadyExists):
            leases.create("one", {"a": "1"})
        assert [made] == list(leases.list())

    def test_malformed_labels_are_refused(self, tmp_path: Path) -> None:
        leases = self.make(tmp_path)
        with raises(InvalidInput):
            leases.create("one", {"long": "x" * 4096})
        assert list(leases.list()) == []

    def test_a_lease_that_is_not_there(self, tmp_path: Path) -> None:
        leases = self.make(tmp_path)
        with raises(NotFound):
            leases.delete("nobody")
        with raises(NotFound):
            leases.resources("nobody")
        with raises(NotFound):
            leases.add("nobody", BLOB)
        with raises(NotFound):
            leases.remove("nobody", BLOB)

    def test_filters_choose_by_every_field(self, tmp_path: Path) -> None:
        leases = self.make(tmp_path)
        leases.create("b", {"a.b/c": "1"})
        leases.create("a", {"tier": "x"})
        for filters, ids in (
            ([], "a b"),
            (["id==b"], "b"),
            (["id==b", "labels.tier==x"], "a b"),
            (['labels."a.b/c"'], "b"),
            (["name"], ""),
        ):
            assert ids.split() == [one.id for one in leases.list(filters)], filters
        with raises(InvalidInput):
            leases.list(["id="])

    def test_a_lease_holds_every_kind_of_resource_once(self, tmp_path: Path) -> None:
        leases = self.make(tmp_path)
        leases.create("one")
        leases.create("two")
        for resource in (*reversed(KINDS), BLOB):
            leases.add("one", resource)
        leases.add("two", BLOB)
        assert sorted(KINDS) == list(leases.resources("one"))
        assert list(leases.resources("two")) == [BLOB]

    def test_a_lease_does_not_hold_other_things(self, tmp_path: Path) -> None:
        leases = self.make(tmp_path)
        leases.create("one")
        for kind in ("", "contents", "leases", "snapshots", "snapshots/", "snapshots/a/b", "Content", "containers"):
            with raises(Unsupported):
                leases.add("one", Resource(kind, "x"))
            with raises(Unsupported):
                leases.remove("one", Resource(kind, "x"))
        assert list(leases.resources("one")) == []

    def test_what_was_removed_is_held_no_more(self, tmp_path: Path) -> None:
        leases = self.make(tmp_path)
        leases.create("one")
        for resource in KINDS:
            leases.add("one", resource)
        leases.remove("one", BLOB)
        leases.remove("one", BLOB)
        leases.remove("one", Resource("content", "sha256:not held"))
        assert sorted(set(KINDS) - {BLOB}) == list(leases.resources("one"))

    def test_a_lease_goes_with_what_it_holds(self, tmp_path: Path) -> None:
        leases = self.make(tmp_path)
        leases.create("one")
        leases.add("one", BLOB)
        leases.delete("one")
        assert list(leases.list()) == []
        leases.create("one")
        assert list(leases.resources("one")) == []
