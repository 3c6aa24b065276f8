"""What only the S3 store must do: settings, remedies, and nothing but the protocol's errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from botocore.awsrequest import AWSPreparedRequest

from contract.names import ExitCode
from contract.store.errors import AccessDenied, NotFound, OutcomeUnknown, StoreError, Unavailable, UnsuitableStore
from contract.store.open import open_store
from contract.store.s3 import S3Store
from tests.faults import FaultProxy, Refusal
from tests.servers import LOOPBACK, S3Server


@pytest.fixture
def proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A fault proxy in front of the server, and the environment pointing at the proxy."""
    s3_server.use(monkeypatch)
    with FaultProxy(s3_server.port) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", running.endpoint_url)
        yield running


@pytest.fixture
def store(proxy: FaultProxy, s3_server: S3Server) -> S3Store:
    """A store in a fresh bucket, through the proxy."""
    return S3Store(s3_server.new_bucket(), "run", read_timeout_s=0.5, connect_timeout_s=0.5)


@pytest.mark.parametrize(
    ("refusal", "kind", "remedy"),
    [
        (Refusal(400, "RequestTimeout"), OutcomeUnknown, "RequestTimeout"),
        (Refusal(400, "IncompleteBody"), OutcomeUnknown, "IncompleteBody"),
        (Refusal(408, "RequestTimeout"), OutcomeUnknown, "408"),
        (Refusal(409, "OperationAborted"), OutcomeUnknown, "409"),
        (Refusal(429, "TooManyRequests"), OutcomeUnknown, "429"),
        (Refusal(500, "InternalError"), OutcomeUnknown, "500"),
        (Refusal(507, "XMinioStorageFull"), OutcomeUnknown, "507"),
        (Refusal(501, "NotImplemented"), UnsuitableStore, "does not support conditional puts"),
        (Refusal(404, "NoSuchBucket"), AccessDenied, "create bucket"),
        (Refusal(404, "NoSuchKey"), NotFound, "404"),
        (Refusal(400, "ExpiredToken"), AccessDenied, "AWS_PROFILE"),
        (Refusal(401, "Unauthorized"), AccessDenied, "AWS_ACCESS_KEY_ID"),
        (Refusal(403, "SignatureDoesNotMatch"), AccessDenied, "AWS_SECRET_ACCESS_KEY"),
        (
            Refusal(400, "IllegalLocationConstraint", (("x-amz-bucket-region", "eu-west-3"),)),
            AccessDenied,
            "AWS_REGION=eu-west-3",
        ),
    ],
    ids=lambda value: f"{value.status}-{value.code}" if isinstance(value, Refusal) else "",
)
def test_every_refusal_of_a_put_has_its_error(
    proxy: FaultProxy, store: S3Store, refusal: Refusal, kind: type[StoreError], remedy: str
) -> None:
    """Each reply becomes the error that says what the caller does next, after one request, with code and remedy."""
    proxy.inject(refusal)
    num_calls = proxy.num_calls

    with pytest.raises(kind, match=remedy) as caught:
        store.put_create("key", b"x")

    assert type(caught.value) is kind
    assert refusal.code in str(caught.value)
    assert store.uri in str(caught.value)
    assert proxy.num_calls == num_calls + 1


@pytest.mark.parametrize("status", [500, 503])
def test_reads_are_retried_below(proxy: FaultProxy, store: S3Store, status: int) -> None:
    """A read survives a hiccup without its caller, and gives up as Unavailable after three attempts."""
    store.put_create("key", b"x")
    proxy.inject(Refusal(status, "InternalError"), method="GET")

    assert store.get("key").body == b"x"

    proxy.inject(Refusal(status, "InternalError"), method="GET", times=3)
    with pytest.raises(Unavailable):
        store.get("key")


def test_a_missing_bucket_stops_a_run_for_good(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads, writes and listings of a bucket that does not exist are refusals with exit code 69, naming the bucket."""
    s3_server.use(monkeypatch)
    store = open_store("s3://no-such-bucket/run")

    for call in (lambda: store.get("x"), lambda: store.put_create("x", b""), lambda: list(store.list())):
        with pytest.raises(AccessDenied, match="create bucket 'no-such-bucket'") as caught:
            call()
        assert caught.value.exit_code is ExitCode.STORE_REFUSED


def test_missing_credentials_say_what_to_set(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without credentials nothing is sent, and the error names the variables. In a process of its own: none are cached."""
    program = (
        "from contract.store.open import open_store\n"
        "from contract.store.errors import AccessDenied\n"
        "try: open_store('s3://bucket').get('key')\n"
        "except AccessDenied as error: print(error)\n"
    )
    s3_server.use(monkeypatch)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))

    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout

    assert "Unable to locate credentials" in said
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in said


def test_an_endpoint_that_is_no_url_is_refused(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in the endpoint variable is permanent and named."""
    s3_server.use(monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "not a url")

    with pytest.raises(AccessDenied, match="correct AWS_ENDPOINT_URL_S3"):
        open_store("s3://bucket").get("key")


def test_nobody_listening_is_unavailable(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection may pass: a read is Unavailable, a put unknown."""
    s3_server.use(monkeypatch)
    store = S3Store("bucket", endpoint_url=f"http://{LOOPBACK}:9", connect_timeout_s=0.2)

    with pytest.raises(Unavailable, match="Could not connect"):
        store.get("key")
    with pytest.raises(OutcomeUnknown, match="Could not connect"):
        store.put_create("key", b"x")


def test_an_unknown_certificate_is_refused(
    s3_tls_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A certificate nobody vouches for is a permanent refusal with the variable to set, not an endless retry."""
    s3_tls_server.use(monkeypatch)
    bucket = s3_tls_server.new_bucket()
    monkeypatch.delenv("AWS_CA_BUNDLE")

    with pytest.raises(AccessDenied, match="AWS_CA_BUNDLE"):
        open_store(f"s3://{bucket}").get("key")


def test_folder_markers_are_no_objects(s3_uri: str) -> None:
    """The empty 'folder/' objects that consoles make are not listed; one with content is an object."""
    store = open_store(s3_uri)
    for key, body in (("", b""), ("folder/", b""), ("folder/x", b"1"), ("odd/", b"1")):
        store.put_overwrite(key, body)

    assert [item.key for item in store.list()] == ["folder/x", "odd/"]


def test_a_prefix_is_a_folder(s3_uri: str) -> None:
    """A store at `runs/one` neither lists nor reads what belongs to `runs/one-more`."""
    neighbour = open_store(s3_uri + "-more")
    neighbour.put_create("run.json", b"{}")

    assert list(open_store(s3_uri).list()) == []
    assert [item.key for item in open_store(s3_uri.rpartition("/")[0]).list()] == ["one-more/run.json"]


@pytest.mark.parametrize("server", ["s3_server", "s3_tls_server"])
def test_a_put_sends_plain_bytes_with_a_checksum(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    """A large body goes through unchanged, over HTTPS too, with Content-MD5 and without the SDK's chunked trailer."""
    running: S3Server = request.getfixturevalue(server)
    running.use(monkeypatch)
    store = S3Store(running.new_bucket())
    sent: list[dict[str, str]] = []

    def see(request: AWSPreparedRequest, **_: object) -> None:
        sent.append({name.lower(): str(value) for name, value in request.headers.items()})

    store._clients.single.meta.events.register("before-send.s3.PutObject", see)
    body = bytes(range(256)) * 20_000
    store.put_create("data", BytesIO(body))

    assert store.get("data").body == body
    assert len(sent) == 1
    assert sent[0]["content-length"] == str(len(body))
    assert "content-md5" in sent[0]
    assert not {"transfer-encoding", "content-encoding", "x-amz-trailer"} & sent[0].keys()


def test_opening_imports_nothing_heavy() -> None:
    """Importing and opening cost no botocore: only a call does."""
    program = (
        "import sys; from contract.store.open import open_store; open_store('s3://b'); print('botocore' in sys.modules)"
    )

    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout

    assert said.strip() == "False"
