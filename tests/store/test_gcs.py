"""What only the Google store must do: generations, stored bytes, remedies, and who asks."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, RefreshError, TransportError

from contract.store.errors import (
    AccessDenied,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
    Unavailable,
    UnsuitableStore,
)
from contract.store.gcs import GcsStore
from contract.store.google_account import account_edge
from contract.store.open import open_store
from contract.store.probe import probe
from contract.store.protocol import ETag
from tests.faults import Fault, FaultProxy, Refusal
from tests.gcs_server import LOOPBACK, FakeGcs, FakeMetadata, Reply, read, serving


@pytest.fixture
def proxy(gcs_server: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A fault proxy in front of the server, and the environment pointing at the proxy."""
    with FaultProxy(gcs_server.port) as running:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", running.endpoint_url)
        yield running


@pytest.fixture
def store(proxy: FaultProxy, gcs_server: FakeGcs) -> GcsStore:
    """A store in a fresh bucket, through the proxy."""
    return GcsStore(gcs_server.new_bucket(), "run")


@pytest.mark.parametrize(
    ("refusal", "kind", "remedy"),
    [
        (Refusal(400, "BadDigest"), OutcomeUnknown, "BadDigest"),
        (Refusal(408, "RequestTimeout"), OutcomeUnknown, "408"),
        (Refusal(409, "OperationAborted"), OutcomeUnknown, "409"),
        (Refusal(429, "SlowDown"), OutcomeUnknown, "429"),
        (Refusal(403, "userRateLimitExceeded"), OutcomeUnknown, "userRateLimitExceeded"),
        (Refusal(500, "InternalError"), OutcomeUnknown, "500"),
        (Refusal(503, "ServiceUnavailable"), OutcomeUnknown, "503"),
        (Refusal(404, "NoSuchBucket"), AccessDenied, "create bucket"),
        (Refusal(404, "NoSuchKey"), NotFound, "404"),
        (Refusal(400, "InvalidArgument"), AccessDenied, "correct the URI"),
        (Refusal(301, "MovedPermanently"), AccessDenied, "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE"),
        (Refusal(401, "AuthenticationRequired"), AccessDenied, "Workload Identity"),
        (Refusal(403, "AccessDenied"), AccessDenied, r"roles/storage\.objectUser on gs://gs-bucket"),
    ],
    ids=lambda value: f"{value.status}-{value.code}" if isinstance(value, Refusal) else "",
)
def test_every_refusal_of_a_put_has_its_error(
    proxy: FaultProxy, store: GcsStore, refusal: Refusal, kind: type[StoreError], remedy: str
) -> None:
    """Each reply becomes the error that says what the caller does next, after one request, with code and remedy."""
    proxy.inject(refusal)

    with pytest.raises(kind, match=remedy) as caught:
        store.put_create("key", b"x")

    assert type(caught.value) is kind
    assert refusal.code in str(caught.value)
    assert store.uri in str(caught.value)
    assert proxy.num_calls == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_reads_are_retried_below(proxy: FaultProxy, store: GcsStore, status: int) -> None:
    """A read survives a hiccup without its caller, and gives up as Unavailable after three attempts."""
    store.put_create("key", b"x")
    proxy.inject(Refusal(status, "InternalError", (("Retry-After", "600"),)), method="GET")

    assert store.get("key").body == b"x"

    proxy.inject(Refusal(status, "InternalError"), method="GET", times=3)
    with pytest.raises(Unavailable, match=str(status)):
        store.get("key")
    assert proxy.count("GET", "key") == 5


def test_equal_bytes_are_another_version(store: GcsStore) -> None:
    """Unlike an MD5 a generation moves with every put: an old version written again does not pass for the new one."""
    first = store.put_create("key", b"one")
    second = store.put_update("key", b"one", first)

    with pytest.raises(PreconditionFailed):
        store.put_update("key", b"two", first)

    assert second != first


@pytest.mark.parametrize("etag", ["0", "-1", "9e107d9d372bb6826bd81d3542a419d6", "", "9" * 40])
def test_what_is_no_generation_matches_nothing(store: GcsStore, etag: str) -> None:
    """An ETag of another kind of store, or the 0 that would mean "create", neither makes nor changes an object."""
    with pytest.raises(NotFound):
        store.put_update("key", b"two", ETag(etag))
    store.put_create("key", b"one")

    with pytest.raises(PreconditionFailed):
        store.put_update("key", b"two", ETag(etag))

    assert store.get("key").body == b"one"


def test_a_refused_update_stays_refused_when_nobody_can_tell_why(proxy: FaultProxy, store: GcsStore) -> None:
    """Whether the object is gone is asked after a 412; without an answer the 412 is what the caller gets."""
    store.put_create("key", b"one")
    proxy.inject(Fault.SLOW_DOWN, method="HEAD", times=3)

    with pytest.raises(PreconditionFailed):
        store.put_update("key", b"two", ETag("123"))


def test_stored_bytes_are_what_is_read(store: GcsStore, gcs_server: FakeGcs) -> None:
    """An object with Content-Encoding: gzip is read as it is stored and listed, not as the server would unpack it."""
    packed = gzip.compress(b">a\nMKV\n" * 100)
    store.put_create("in.fasta.gz", packed)
    objects = gcs_server.buckets[store.uri.split("/")[2]]
    objects["run/in.fasta.gz"] = replace(objects["run/in.fasta.gz"], headers={"content-encoding": "gzip"})

    assert store.get("in.fasta.gz").body == packed
    assert store.get("in.fasta.gz", start=3, end=20).body == packed[3:20]
    assert gcs_server.requests[-1][2]["accept-encoding"] == "gzip"


def test_a_read_is_compared_with_the_checksum(
    store: GcsStore, gcs_server: FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that changed on their way are Unavailable, not an object."""
    store.put_create("key", b"one")
    monkeypatch.setattr("tests.gcs_server.read", lambda item, headers: replace(read(item, headers), body=b"two"))

    with pytest.raises(Unavailable, match="another MD5"):
        store.get("key")

    assert gcs_server.requests[-1][0] == "GET"


def test_a_put_sends_one_buffer_with_a_checksum(store: GcsStore, gcs_server: FakeGcs) -> None:
    """A large body goes through unchanged, with Content-Length and Content-MD5, under our name."""
    body = bytes(range(256)) * 20_000

    store.put_create("data", BytesIO(body))

    method, target, headers = gcs_server.requests[-1]
    assert store.get("data").body == body
    assert (method, target.rpartition("/")[2]) == ("PUT", "data")
    assert headers["content-length"] == str(len(body))
    assert "content-md5" in headers
    assert headers["user-agent"] == "inferencerun-operator"
    assert headers["x-goog-if-generation-match"] == "0"
    assert not {"authorization", "transfer-encoding"} & headers.keys()


def test_folder_markers_are_no_objects(gcs_uri: str) -> None:
    """The empty 'folder/' objects that consoles make are not listed; one with content is an object."""
    store = open_store(gcs_uri)
    for key, body in (("", b""), ("folder/", b""), ("folder/x", b"1"), ("odd/", b"1")):
        store.put_overwrite(key, body)

    assert [item.key for item in store.list()] == ["folder/x", "odd/"]


@pytest.mark.parametrize("body", [b"<html>log in</html>", b"[]", b""])
def test_what_is_no_listing_is_no_empty_bucket(
    gcs_server: FakeGcs, monkeypatch: pytest.MonkeyPatch, gcs_uri: str, body: bytes
) -> None:
    """A proxy that answers 200 in the store's place is Unavailable: an empty listing would let a run begin anew."""
    monkeypatch.setattr("tests.gcs_server.answer_json", lambda *_: Reply(200, body))

    with pytest.raises(Unavailable, match="no JSON object"):
        list(open_store(gcs_uri).list())

    assert gcs_server.requests[-1][0] == "GET"


def test_a_prefix_is_a_folder(gcs_uri: str) -> None:
    """A store at `runs/one` neither lists nor reads what belongs to `runs/one-more`."""
    open_store(gcs_uri + "-more").put_create("run.json", b"{}")

    assert list(open_store(gcs_uri).list()) == []
    assert [item.key for item in open_store(gcs_uri.rpartition("/")[0]).list()] == ["one-more/run.json"]


def test_a_missing_bucket_stops_a_run_for_good(gcs_server: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads, writes and listings of a bucket that does not exist are refusals that name the bucket."""
    gcs_server.use(monkeypatch)
    store = open_store("gs://no-such-bucket/run")

    for call in (lambda: store.get("x"), lambda: store.put_create("x", b""), lambda: list(store.list())):
        with pytest.raises(AccessDenied, match="create bucket 'no-such-bucket'"):
            call()


@pytest.mark.parametrize("endpoint", ["not a url", "ftp://host", "http://"])
def test_an_endpoint_that_is_no_url_is_refused(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """A mistake in the endpoint variable is permanent and named."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "x")
    store = GcsStore("bucket", endpoint_url=endpoint)

    with pytest.raises(AccessDenied, match="correct CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE"):
        store.get("key")


def test_nobody_listening_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection may pass: a read is Unavailable, a put unknown. An emulator's scheme may be left out."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"{LOOPBACK}:9")
    store = open_store("gs://bucket")

    with pytest.raises(Unavailable, match="refused"):
        store.get("key")
    with pytest.raises(OutcomeUnknown, match="refused"):
        store.put_create("key", b"x")


def test_a_server_that_ignores_generations_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with S3: the probe refuses a server that answers 200 where it must refuse, and leaves nothing there."""
    with serving(server := FakeGcs(honours_conditions=False)):
        server.use(monkeypatch)
        store = open_store(f"gs://{server.new_bucket()}/run")

        with pytest.raises(UnsuitableStore, match="creating a key that exists succeeded"):
            probe(store, nonce="n")

        assert list(store.list()) == []


def test_opening_imports_nothing_heavy() -> None:
    """Importing and opening cost neither urllib3 nor google-auth: only a call does."""
    program = (
        "import sys; from contract.store.open import open_store; open_store('gs://b'); "
        "print([name for name in ('urllib3', 'google.auth', 'requests') if name in sys.modules])"
    )

    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout

    assert said.strip() == "[]"


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeGcs, FakeMetadata]]:
    """A pod with Workload Identity: a store that wants a token, a metadata server that gives it, and nothing else."""
    metadata = FakeMetadata()
    server = FakeGcs(tokens=metadata.valid)
    with serving(server), serving(metadata):
        for name, value in metadata.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("NO_GCE_CHECK")
        monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE", server.endpoint_url)
        server.buckets["bucket"] = {}
        yield server, metadata


def in_a_pod(program: str, *, times: int = 1) -> list[str]:
    """What calls of a store print, in a process of its own: google-auth reads its environment when it is imported."""
    prelude = (
        "import sys\n"
        "from contract.store.errors import StoreError\n"
        "from contract.store.open import open_store\n"
        "store = open_store('gs://bucket/run')\n"
        "def tried(call, *arguments):\n"
        "    try: print('ok', call(*arguments) and '')\n"
        "    except StoreError as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", prelude + program * times], capture_output=True, text=True, check=True)
    return [line.strip() for line in done.stdout.splitlines()]


def test_a_pod_needs_no_key(node: tuple[FakeGcs, FakeMetadata]) -> None:
    """The token comes from the metadata server, once for many calls, and goes to the store as a bearer token."""
    server, metadata = node

    said = in_a_pod("tried(store.put_create, 'a', b'1'); tried(store.get, 'a'); tried(list, store.list())\n")

    assert said == ["ok"] * 3
    assert metadata.tokens == ["token-1"]
    assert {headers["authorization"] for _, _, headers in server.requests} == {"Bearer token-1"}


def test_a_token_is_renewed_before_it_expires(node: tuple[FakeGcs, FakeMetadata]) -> None:
    """A token with less than minutes to live is replaced by the next call, before it is sent."""
    server, metadata = node
    metadata.expires_in_s = 30

    said = in_a_pod("tried(store.get, 'a')\n", times=3)

    assert all(line.startswith("NotFound") for line in said)
    assert len(said) == 3
    assert len(metadata.tokens) >= 3
    assert len({headers["authorization"] for _, _, headers in server.requests}) == 3


def test_a_token_that_is_refused_is_renewed_once(node: tuple[FakeGcs, FakeMetadata]) -> None:
    """A put answered 401 was not applied: it goes out again with a new token. A second 401 is final."""
    server, metadata = node
    metadata.refused = {"token-1"}

    assert in_a_pod("tried(store.put_create, 'a', b'1')\n") == ["ok"]
    assert [headers["authorization"] for _, _, headers in server.requests] == ["Bearer token-1", "Bearer token-2"]

    metadata.refused = {f"token-{number}" for number in range(10)}
    (said,) = in_a_pod("tried(store.put_create, 'b', b'1')\n")
    assert said.startswith("AccessDenied b: gs://bucket/run answered 401")
    assert "Workload Identity" in said
    assert len(server.requests) == 4


def test_a_role_that_is_missing_is_named(node: tuple[FakeGcs, FakeMetadata]) -> None:
    """403 says which account needs which role on which bucket."""
    server, metadata = node
    server.denied = True

    (said,) = in_a_pod("tried(store.get, 'a')\n")

    assert said.startswith("AccessDenied a: ")
    assert f"grant {metadata.email} roles/storage.objectUser on gs://bucket" in said


@pytest.mark.parametrize("status", [403, 404])
def test_an_account_without_tokens_is_refused(node: tuple[FakeGcs, FakeMetadata], status: int) -> None:
    """A metadata server that clearly says no is a permanent refusal with the remedy."""
    _, metadata = node
    metadata.failures = [status]

    (said,) = in_a_pod("tried(store.get, 'a')\n")

    assert said.startswith("AccessDenied a: no token: ")
    assert "Workload Identity" in said


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TransportError("metadata server unavailable"), Unavailable),
        (TransportError("status 503", Reply(503)), Unavailable),
        (TransportError("status 404", Reply(404)), AccessDenied),
        (RefreshError("the token endpoint is busy", retryable=True), Unavailable),
        (RefreshError("invalid_grant"), AccessDenied),
        (DefaultCredentialsError("none found"), AccessDenied),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_only_a_clear_no_is_permanent(error: GoogleAuthError, kind: type[StoreError], *, is_wrapped: bool) -> None:
    """A token that may come later is no refusal: a metadata server without an answer, also where google-auth wraps it."""

    def fail() -> None:
        if is_wrapped and isinstance(error, TransportError):
            raise RefreshError(error) from error
        raise error

    with pytest.raises(kind, match=str(error.args[0])), account_edge("key", doubtful=Unavailable):
        fail()


def test_no_account_at_all_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Away from Google and without credentials nothing is sent, and the error names the ways."""
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))

    (said,) = in_a_pod("tried(store.get, 'a')\n")

    assert said.startswith("AccessDenied a: no token: ")
    assert "gcloud auth application-default login" in said


def test_a_key_file_that_is_wrong_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file named in the environment that holds no credentials is a permanent refusal that names it."""
    path = tmp_path / "key.json"
    path.write_text(json.dumps({"type": "nonsense"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))

    (said,) = in_a_pod("tried(store.get, 'a')\n")

    assert said.startswith("AccessDenied a: no token: ")
    assert str(path) in said


def test_without_google_auth_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without the extra says which one to add."""
    program = "import sys; sys.modules['google.auth'] = sys.modules['google.auth.exceptions'] = None\n"

    (said,) = in_a_pod(program + "tried(store.get, 'a')\n")

    assert said == "AccessDenied a: gs:// needs google-auth: pip install '.[gcs]' in a checkout of the project"
