"""Every answer of design's outcome table, over real sockets: the committer ends in certainty, and commits once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import pytest

from contract.store.commit import Committer
from contract.store.errors import (
    AccessDenied,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    Superseded,
    Unavailable,
)
from contract.store.gcs import GcsStore
from contract.store.probe import probe
from contract.store.protocol import ETag
from contract.store.s3 import S3Store
from tests.faults import Call, Fault, FaultProxy
from tests.gcs_server import FakeGcs
from tests.servers import S3Server

KEY = "g0001/shards/00001.json"
APPLIED = [Fault.DROP_REPLY, Fault.ERROR_AFTER, Fault.TIMEOUT_AFTER]
NOT_APPLIED = [Fault.DROP_BEFORE, Fault.CONFLICT, Fault.SLOW_DOWN, Fault.CORRUPT]


def document(*history: str) -> bytes:
    """A document changed by these commits."""
    return json.dumps({"history": list(history), "version": len(history)}).encode()


@dataclass(frozen=True)
class Rig:
    """A store behind the proxy, the same store directly (the rival's way), and a committer on the former."""

    proxy: FaultProxy
    store: S3Store | GcsStore
    rival: S3Store | GcsStore
    committer: Committer


@pytest.fixture(params=[("s3_server", S3Store), ("gcs_server", GcsStore)], ids=["s3", "gs"])
def rig(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Everything on a fresh bucket; the committer does not sleep."""
    fixture, kind = request.param
    server: S3Server | FakeGcs = request.getfixturevalue(fixture)
    server.use(monkeypatch)
    bucket = server.new_bucket()
    with FaultProxy(server.port) as proxy:
        store = kind(bucket, "run", endpoint_url=proxy.endpoint_url, read_timeout_s=0.5)
        yield Rig(proxy, store, kind(bucket, "run"), Committer(store, sleep=lambda _: None))


@pytest.mark.parametrize("fault", [*APPLIED, *NOT_APPLIED])
def test_the_store_says_when_it_does_not_know(rig: Rig, fault: Fault) -> None:
    """A put whose reply settles nothing is OutcomeUnknown, after exactly one request: nothing below retries it."""
    etag = rig.rival.put_create("other", b"{}")
    for put in (
        lambda: rig.store.put_create(KEY, b"{}"),
        lambda: rig.store.put_update("other", b"{ }", etag),
        lambda: rig.store.put_overwrite("third", b"{}"),
    ):
        rig.proxy.inject(fault)
        num_calls = rig.proxy.num_calls

        with pytest.raises(OutcomeUnknown):
            put()

        assert rig.proxy.num_calls == num_calls + 1


@pytest.mark.parametrize("fault", [*APPLIED, *NOT_APPLIED, Fault.LATE])
def test_an_update_is_applied_once(rig: Rig, fault: Fault) -> None:
    """Whatever happens to the first attempt of an update, it ends committed, once, with the ETag to go on from."""
    etag = rig.rival.put_create(KEY, document("a"))
    rig.proxy.inject(fault)

    committed = rig.committer.update_document(KEY, document("a", "b"), etag, commit_id="b")

    current = rig.rival.get(KEY)
    assert (current.body, current.etag) == (document("a", "b"), committed.etag)
    assert committed.superseded_by is None
    assert rig.proxy.count("PUT") == (1 if fault in APPLIED else 2)


@pytest.mark.parametrize("fault", [*APPLIED, *NOT_APPLIED, Fault.LATE])
def test_a_creation_is_applied_once(rig: Rig, fault: Fault) -> None:
    """Whatever happens to the first attempt of a creation, it ends committed, under the same key with the same bytes."""
    rig.proxy.inject(fault)

    committed = rig.committer.create_document(KEY, document("a"), commit_id="a")

    current = rig.rival.get(KEY)
    assert (current.body, current.etag) == (document("a"), committed.etag)
    assert committed.superseded_by is None
    assert rig.proxy.count("PUT") == (1 if fault in APPLIED else 2)


@pytest.mark.parametrize("fault", [*APPLIED, *NOT_APPLIED, Fault.LATE])
def test_a_data_object_is_stored_once(rig: Rig, fault: Fault) -> None:
    """The same for a checkpoint, sent from a buffer: its bytes, whole, under its key."""
    body = bytes(range(256)) * 1000
    rig.proxy.inject(fault)

    etag = rig.committer.create_immutable("data/e0001-000001.pt", BytesIO(body))

    current = rig.rival.get("data/e0001-000001.pt")
    assert (current.body, current.etag) == (body, etag)


@pytest.mark.parametrize("fault", APPLIED)
def test_a_lost_reply_and_then_a_takeover(rig: Rig, fault: Fault) -> None:
    """An update that landed before the takeover is known as committed, together with what the new owner wrote."""
    etag = rig.rival.put_create(KEY, document("a"))
    rig.proxy.inject(fault)

    def take_over(_: float) -> None:
        if rig.rival.get(KEY).body == document("a", "b"):
            rig.rival.put_update(KEY, document("a", "b", "c"), rig.rival.get(KEY).etag)

    committed = Committer(rig.store, sleep=take_over).update_document(KEY, document("a", "b"), etag, commit_id="b")

    assert committed.superseded_by is not None
    assert committed.superseded_by.body == document("a", "b", "c")
    assert committed.etag == rig.rival.get(KEY).etag


@pytest.mark.parametrize("fault", APPLIED)
def test_a_lost_reply_of_a_creation_and_then_a_takeover(rig: Rig, fault: Fault) -> None:
    """The same for the first version: a claim that was released meanwhile was a claim."""
    rig.proxy.inject(fault)

    def take_over(_: float) -> None:
        if rig.rival.get(KEY).body == document("a"):
            rig.rival.put_update(KEY, document("a", "b"), rig.rival.get(KEY).etag)

    committed = Committer(rig.store, sleep=take_over).create_document(KEY, document("a"), commit_id="a")

    assert committed.superseded_by is not None
    assert committed.superseded_by.body == document("a", "b")


@pytest.mark.parametrize("fault", [None, *NOT_APPLIED])
def test_an_update_that_lost(rig: Rig, fault: Fault | None) -> None:
    """A rival's change since our read, with or without trouble on the way, is Superseded and carries what is there."""
    etag = rig.rival.put_create(KEY, document("a"))
    rig.rival.put_update(KEY, document("a", "rival"), etag)
    if fault:
        rig.proxy.inject(fault)

    with pytest.raises(Superseded) as caught:
        rig.committer.update_document(KEY, document("a", "b"), etag, commit_id="b")

    assert caught.value.current == rig.rival.get(KEY)
    assert caught.value.current.body == document("a", "rival")
    assert rig.proxy.count("PUT") == 1


@pytest.mark.parametrize("fault", [None, *NOT_APPLIED])
def test_a_creation_that_lost(rig: Rig, fault: Fault | None) -> None:
    """A rival's document under the key is Superseded and stays."""
    rig.rival.put_create(KEY, document("rival"))
    if fault:
        rig.proxy.inject(fault)

    with pytest.raises(Superseded) as caught:
        rig.committer.create_document(KEY, document("a"), commit_id="a")

    assert caught.value.current.body == document("rival")
    assert rig.rival.get(KEY).body == document("rival")


def test_a_data_object_of_other_bytes(rig: Rig) -> None:
    """Other bytes under an immutable key are never overwritten and never taken for ours; equal bytes are."""
    rig.rival.put_create("data.pt", b"theirs")

    with pytest.raises(Superseded):
        rig.committer.create_immutable("data.pt", b"ours!!")

    assert rig.committer.create_immutable("data.pt", b"theirs") == rig.rival.get("data.pt").etag


def test_a_refusal_with_an_unchanged_etag_is_tried_again(rig: Rig) -> None:
    """A 412 that the object itself contradicts is no verdict: the same put goes out again."""
    etag = rig.rival.put_create(KEY, document("a"))
    rig.proxy.inject(Fault.PRECONDITION)

    committed = rig.committer.update_document(KEY, document("a", "b"), etag, commit_id="b")

    assert rig.rival.get(KEY).etag == committed.etag
    assert rig.proxy.count("PUT") == 2


def test_an_exists_that_is_gone_is_tried_again(rig: Rig) -> None:
    """A creation refused because of an object that is gone by the time it is read is made after all."""
    rig.proxy.inject(Fault.PRECONDITION)

    rig.committer.create_document(KEY, document("a"), commit_id="a")

    assert rig.rival.get(KEY).body == document("a")
    assert rig.proxy.count("PUT") == 2


@pytest.mark.parametrize("fault", [None, Fault.DROP_BEFORE, Fault.CONFLICT])
def test_a_deleted_document_is_never_made_again(rig: Rig, fault: Fault | None) -> None:
    """An update of a manifest that somebody deleted stops with NotFound, also after an unknown outcome."""
    etag = rig.rival.put_create(KEY, document("a"))
    rig.rival.delete(KEY)
    if fault:
        rig.proxy.inject(fault)

    with pytest.raises(NotFound):
        rig.committer.update_document(KEY, document("a", "b"), etag, commit_id="b")

    assert list(rig.rival.list()) == []


@pytest.mark.parametrize("fault", [Fault.DROP_BEFORE, Fault.SLOW_DOWN, Fault.CUT_REPLY, Fault.TIMEOUT_AFTER])
def test_reads_outlast_a_store_in_trouble(rig: Rig, fault: Fault) -> None:
    """Reading, listing and deleting succeed after a few failures, those the SDK gives up on included."""
    rig.rival.put_create(KEY, document("a"))
    rig.proxy.inject(fault, method="GET", times=4)
    rig.proxy.inject(fault, method="DELETE", times=4)

    assert rig.committer.read(KEY).body == document("a")
    assert [item.key for item in rig.committer.list("g0001/")] == [KEY]
    rig.committer.delete(KEY)

    assert list(rig.rival.list()) == []


def test_a_read_that_is_cut_is_no_object(rig: Rig) -> None:
    """A body that ends early is Unavailable, never a shorter object."""
    rig.rival.put_create("data", b"x" * 100_000)
    rig.proxy.inject(Fault.CUT_REPLY, method="GET", times=3)

    with pytest.raises(Unavailable):
        rig.store.get("data")


def test_changed_bytes_are_refused_by_the_store(rig: Rig) -> None:
    """A body changed on its way is not stored: the store compares it with the checksum sent along."""
    rig.proxy.inject(Fault.CORRUPT)

    with pytest.raises(OutcomeUnknown, match="BadDigest"):
        rig.store.put_create("data", b"bytes")

    assert list(rig.rival.list()) == []


def test_a_refused_put_is_permanent(rig: Rig) -> None:
    """403 is no unknown outcome: it stops at once and says what to set."""
    rig.proxy.inject(Fault.DENIED)

    with pytest.raises(AccessDenied, match=r"AWS_ACCESS_KEY_ID|roles/storage\.objectUser"):
        rig.committer.create_document(KEY, document("a"), commit_id="a")

    assert rig.proxy.num_calls == 1


def test_the_store_tells_a_conflict_from_doubt(rig: Rig) -> None:
    """A 412 to a single attempt is a real refusal, said as such by the store."""
    etag = rig.rival.put_create(KEY, document("a"))

    with pytest.raises(PreconditionFailed):
        rig.store.put_update(KEY, document("b"), ETag(etag[::-1]))


def test_the_probe_waits_for_clear_answers(rig: Rig) -> None:
    """Lost replies and refusals of a store in trouble are no verdict: the probe repeats the check."""
    for fault in (*APPLIED, *NOT_APPLIED):
        rig.proxy.inject(fault, nth=2)

    probe(rig.store, nonce="n", sleep=lambda _: None)

    assert list(rig.rival.list()) == []


def test_the_proxy_tells_before_from_after(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook before a call sees the store without its effect, the hook after with it; calls are numbered from 1."""
    s3_server.use(monkeypatch)
    bucket = s3_server.new_bucket()
    direct = S3Store(bucket)
    seen: list[tuple[str, int, str, int]] = []

    def look(when: str, call: Call) -> None:
        seen.append((when, call.number, call.method, len(list(direct.list()))))

    with FaultProxy(
        s3_server.port, before=lambda call: look("before", call), after=lambda call: look("after", call)
    ) as proxy:
        store = S3Store(bucket, endpoint_url=proxy.endpoint_url)
        store.put_create("key", b"x")
        store.delete("key")

    assert seen == [
        ("before", 1, "PUT", 0),
        ("after", 1, "PUT", 1),
        ("before", 2, "DELETE", 1),
        ("after", 2, "DELETE", 0),
    ]
    assert [call.path for call in proxy.calls] == [f"/{bucket}/key"] * 2
