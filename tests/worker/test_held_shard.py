"""Changing the manifest of a held shard: one put when all is well, never two changes when it is not."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from contract import layout, manifest
from contract.errors import Corrupt, Fenced
from contract.manifest import Hints, ShardManifest
from contract.store.errors import NotFound, OutcomeUnknown
from contract.transitions import claimed, committed, first_claim, released
from tests import make
from tests.worker.build import ME, NOW, RIVAL, ids, impatient, put_manifest, shard, stored_manifest
from tests.worker.doubtful_store import DoubtfulStore
from worker.held_shard import MAX_REBASES, HeldShard

KEY = layout.build_shard_key(1, 0)


def held_in(store: DoubtfulStore) -> HeldShard:
    """A shard that has just been claimed."""
    first = first_claim(shard(), generation=1, owner=ME, commit_id="claim", now=NOW)
    etag = store.put_create(KEY, manifest.to_json(first))
    return HeldShard(committer=impatient(store), new_id=ids("mine"), current=first, etag=etag)


def with_budget(budget: int):
    """A change that is easy to see."""
    return lambda current, commit_id: committed(current, commit_id=commit_id, hints=Hints(token_budget=budget))


def taken_over(store: DoubtfulStore) -> ShardManifest:
    """The controller has released the shard and a rival has claimed it; returns the rival's version."""
    current = stored_manifest(store)
    free = released(current, attempt=make.attempt(current), commit_id="release")
    rival = claimed(free, owner=RIVAL, commit_id="rival", now=NOW + timedelta(seconds=1))
    put_manifest(store, rival)
    return rival


def test_a_commit_is_one_put_and_keeps_the_new_etag() -> None:
    """Two commits in a row need no read between them."""
    store = DoubtfulStore()
    held = held_in(store)

    held.commit(with_budget(10))
    new = held.commit(with_budget(20))

    assert stored_manifest(store) == new == held.current
    assert (new.version, new.hints.token_budget) == (3, 20)
    assert held.etag == store.get(KEY).etag


@pytest.mark.parametrize("fate", ["applied", "lost"])
def test_a_lost_reply_is_settled_and_the_change_made_once(fate: str) -> None:
    """Whether the put was applied or not: one new version, and the next commit works."""
    store = DoubtfulStore()
    held = held_in(store)
    store.fates = [fate]

    held.commit(with_budget(10))
    held.commit(with_budget(20))

    found = stored_manifest(store)
    assert (found.version, found.hints.token_budget, found.history) == (3, 20, ("claim", "mine-0", "mine-1"))


def test_a_takeover_fences() -> None:
    """Another epoch and owner: stop, and say that the last commit did not land."""
    store = DoubtfulStore()
    held = held_in(store)
    rival = taken_over(store)

    with pytest.raises(Fenced, match="now epoch 2 held by rival; the last commit did not land"):
        held.commit(with_budget(10))
    assert stored_manifest(store) == rival


def test_a_takeover_after_our_commit_fences_and_says_that_it_had_landed() -> None:
    """The reply was lost, and a rival came before we looked: our change is in the history and counts."""
    store = DoubtfulStore()
    held = held_in(store)
    store.fates = ["applied"]
    store.meanwhile = lambda: taken_over(store)

    with pytest.raises(Fenced, match="the last commit had landed before"):
        held.commit(with_budget(10))
    found = stored_manifest(store)
    assert (found.owner, found.hints.token_budget, found.history[1]) == (RIVAL, 10, "mine-0")


def test_a_release_by_the_controller_fences_though_nobody_holds_the_shard() -> None:
    """The epoch is the same, the owner is gone: a late commit must not slip in."""
    store = DoubtfulStore()
    held = held_in(store)
    free = released(held.current, attempt=make.attempt(held.current), commit_id="release")
    put_manifest(store, free)

    with pytest.raises(Fenced, match="held by nobody"):
        held.commit(with_budget(10))
    assert stored_manifest(store) == free


def test_a_change_under_our_own_epoch_is_built_upon() -> None:
    """The manifest moved but is still ours: the change is made again on top, and neither is lost."""
    store = DoubtfulStore()
    held = held_in(store)
    put_manifest(store, committed(held.current, commit_id="other", bytes_done=77))

    new = held.commit(with_budget(10))

    assert (new.version, new.bytes_done, new.hints.token_budget) == (3, 77, 10)
    assert new.history == ("claim", "other", "mine-1")


def test_our_change_seen_under_a_later_one_of_our_epoch_is_kept() -> None:
    """Reply lost, then somebody changed the manifest without taking it: go on from what is there."""
    store = DoubtfulStore()
    held = held_in(store)
    store.fates = ["applied"]
    store.meanwhile = lambda: put_manifest(store, committed(stored_manifest(store), commit_id="other", bytes_done=77))

    held.commit(with_budget(10))
    new = held.commit(with_budget(20))

    assert (new.version, new.bytes_done, new.hints.token_budget) == (4, 77, 20)


def test_changes_without_end_under_our_epoch_stop_the_shard() -> None:
    """Rebasing is bounded: nobody may change a held shard that often."""
    store = DoubtfulStore()
    held = held_in(store)

    def change(current: ShardManifest, commit_id: str) -> ShardManifest:
        put_manifest(store, committed(stored_manifest(store), commit_id=f"other-{commit_id}"))
        return with_budget(10)(current, commit_id)

    with pytest.raises(Fenced, match=f"changed {MAX_REBASES} times"):
        held.commit(change)


def test_a_deleted_manifest_stops_loudly_and_is_not_made_again() -> None:
    """404 on If-Match: NotFound, and the key stays absent."""
    store = DoubtfulStore()
    held = held_in(store)
    store.delete(KEY)

    with pytest.raises(NotFound):
        held.commit(with_budget(10))
    assert list(store.list()) == []


def test_a_store_that_stays_down_ends_with_an_unknown_outcome() -> None:
    """The budget of the commit ends; nothing is claimed to have happened."""
    store = DoubtfulStore()
    held = held_in(store)
    store.is_down = True

    with pytest.raises(OutcomeUnknown, match="gave up after"):
        held.commit(with_budget(10))
    assert held.current.version == 1


def test_a_manifest_that_cannot_be_read_stops_loudly() -> None:
    """Somebody overwrote it with garbage: Corrupt, with the way out."""
    store = DoubtfulStore()
    held = held_in(store)
    store.put_overwrite(KEY, b"{}")

    with pytest.raises(Corrupt, match="inferencerun repair"):
        held.commit(with_budget(10))


def test_a_change_that_breaks_an_invariant_never_reaches_the_store() -> None:
    """Our own mistake is found before the put."""
    store = DoubtfulStore()
    held = held_in(store)

    with pytest.raises(AssertionError, match="version 9 must follow 1"):
        held.commit(lambda current, commit_id: replace(with_budget(1)(current, commit_id), version=9))
    assert stored_manifest(store) == held.current
