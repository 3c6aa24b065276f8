"""S3 and S3-compatible stores, through botocore (what boto3 is made of).

Two clients. Conditional puts go through one that never retries: botocore's default retry answers one's own success
with 412 after a lost reply (seen for a dropped reply, a 500 and a timeout, in all three of its retry modes). Reads,
listings and deletes go through one with botocore's standard retries.

Endpoint, region and credentials come from where every AWS tool takes them: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL,
AWS_REGION, AWS_PROFILE, the instance's or pod's role.

Every put carries Content-MD5, the one checksum that all compatible stores verify, and neither the CRC header nor the
chunked trailer that newer SDKs add and older stores refuse. An ETag is kept without its quotes and never parsed: for
an encrypted or multipart object it is no MD5.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC
from io import BytesIO
from typing import TYPE_CHECKING, TypedDict, cast

from contract.store.errors import (
    AccessDenied,
    AlreadyExists,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
    Unavailable,
    UnsuitableStore,
)
from contract.store.protocol import Body, ETag, Listed, Stored, checked_range, view_of

if TYPE_CHECKING:
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.session import Session
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT_S = 5.0
"""For a connection; on a new one also for each send of a piece of a body."""
READ_TIMEOUT_S = 20.0
"""For each wait for bytes, not for the whole call: a put of 64 MiB may take minutes while bytes get through. Long
enough for a store that takes seconds to make a large put durable after its last byte, short enough for three attempts
within the 180 s of contract.store.commit."""
MAX_CONNECTIONS = 32
"""Parallel requests of one store: ranged reads and uploads of a worker's threads."""

_TRANSIENT_CODES = frozenset(
    {
        "RequestTimeout",  # 400: the store waited in vain for the rest of the body
        "BadDigest",  # 400: the body was changed on its way; not stored
        "IncompleteBody",
        "XAmzContentSHA256Mismatch",
        "SlowDown",  # 503, but some stores send it with 400 or 429
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
    }
)
_TRANSIENT_STATUSES = frozenset({408, 409, 425, 429})
_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the pod a role "
    "(s3:GetObject, s3:PutObject, s3:DeleteObject, s3:ListBucket)"
)


class S3Store:
    """A prefix of a bucket. Threads may share it; a forked process may not."""

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self._bucket = bucket
        self._root = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._endpoint_url = endpoint_url
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s

    @property
    def uri(self) -> str:
        """Root URI."""
        return f"s3://{self._bucket}/{self._root}".rstrip("/")

    @property
    def endpoint(self) -> str:
        """URL that requests go to."""
        return self._clients.single.meta.endpoint_url

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> Stored:
        """See ObjectStore."""
        checked_range(start, end)
        if end == start:  # a Range header cannot ask for nothing
            return self._head(key)
        try:
            with self._edge(key, doubtful=Unavailable):
                if (start, end) == (0, None):
                    reply = self._clients.retrying.get_object(Bucket=self._bucket, Key=self._root + key)
                else:
                    span = f"bytes={start}-{'' if end is None else end - 1}"
                    reply = self._clients.retrying.get_object(Bucket=self._bucket, Key=self._root + key, Range=span)
                return Stored(reply["Body"].read(), _etag(reply["ETag"]))
        except _BeyondEnd:
            return self._head(key)

    def put_overwrite(self, key: str, body: Body) -> ETag:
        """See ObjectStore."""
        return self._put(key, body, {}, refused=OutcomeUnknown)

    def put_create(self, key: str, body: Body) -> ETag:
        """See ObjectStore."""
        return self._put(key, body, {"IfNoneMatch": "*"}, refused=AlreadyExists)

    def put_update(self, key: str, body: Body, etag: ETag) -> ETag:
        """See ObjectStore."""
        return self._put(key, body, {"IfMatch": f'"{etag}"'}, refused=PreconditionFailed)

    def list(self, prefix: str = "", *, is_deep: bool = True) -> Iterator[Listed]:
        """See ObjectStore. Folder markers that consoles make (empty, name ends in '/') are no objects."""
        with self._edge(self._root + prefix, doubtful=Unavailable):
            pages = self._clients.retrying.get_paginator("list_objects_v2")
            paginate = pages.paginate if is_deep else functools.partial(pages.paginate, Delimiter="/")
            for page in paginate(Bucket=self._bucket, Prefix=self._root + prefix):
                for item in page.get("Contents", ()):
                    if item["Size"] or not item["Key"].endswith("/"):
                        key = item["Key"].removeprefix(self._root)
                        yield Listed(key, item["Size"], _etag(item["ETag"]), item["LastModified"].astimezone(UTC))

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        # S3 answers 204 for an absent object; some compatible stores answer 404.
        with contextlib.suppress(NotFound), self._edge(key, doubtful=Unavailable):
            self._clients.retrying.delete_object(Bucket=self._bucket, Key=self._root + key)

    def _put(self, key: str, body: Body, condition: _Condition, *, refused: type[StoreError]) -> ETag:
        with view_of(body) as view:
            digest = hashlib.md5(view, usedforsecurity=False).digest()
        if isinstance(body, BytesIO):
            body.seek(0)
        with self._edge(key, doubtful=OutcomeUnknown, refused=refused):
            reply = self._clients.single.put_object(
                Bucket=self._bucket,
                Key=self._root + key,
                Body=body,
                ContentMD5=base64.b64encode(digest).decode(),
                **condition,
            )
            return _etag(reply["ETag"])

    def _head(self, key: str) -> Stored:
        with self._edge(key, doubtful=Unavailable):
            return Stored(
                b"", _etag(self._clients.retrying.head_object(Bucket=self._bucket, Key=self._root + key)["ETag"])
            )

    @functools.cached_property
    def _clients(self) -> _Clients:
        """Made at the first call: importing and loading botocore takes 0.4 s, and opening a store must cost nothing."""
        from botocore.config import Config  # noqa: PLC0415

        base = Config(
            connect_timeout=self._connect_timeout_s,
            read_timeout=self._read_timeout_s,
            max_pool_connections=MAX_CONNECTIONS,
            tcp_keepalive=True,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        with _session_lock:
            session = _session()
            # bucket.host resolves for few stores other than AWS; who needs it sets s3.addressing_style in the profile.
            if _is_custom_endpoint(self._endpoint_url) and not session.get_config_variable("s3"):
                base = base.merge(Config(s3={"addressing_style": "path"}))
            return _Clients(*(self._client(session, base, num_attempts) for num_attempts in (3, 1)))

    def _client(self, session: Session, base: Config, num_attempts: int) -> S3Client:
        from botocore.config import Config  # noqa: PLC0415

        config = base.merge(Config(retries={"mode": "standard", "total_max_attempts": num_attempts}))
        try:
            return cast("S3Client", session.create_client("s3", endpoint_url=self._endpoint_url, config=config))
        except ValueError as error:
            raise AccessDenied(self.uri, f"{error}; correct AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL") from error

    @contextlib.contextmanager
    def _edge(
        self, key: str, *, doubtful: type[StoreError], refused: type[StoreError] = PreconditionFailed
    ) -> Iterator[None]:
        """Whatever botocore raises becomes one of the protocol's errors here.

        Args:
            key: for messages.
            doubtful: what an answer that settles nothing becomes: OutcomeUnknown for writes, Unavailable for reads.
            refused: what 412 becomes.
        """
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            yield
        except ClientError as error:
            raise self._from_reply(error, key, doubtful, refused) from error
        except BotoCoreError as error:
            raise self._from_no_reply(error, key, doubtful) from error

    def _from_reply(
        self, error: ClientError, key: str, doubtful: type[StoreError], refused: type[StoreError]
    ) -> StoreError:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        code = error.response["Error"].get("Code", "")
        said = f"{self.uri} answered {status} {code}: {error.response['Error'].get('Message', '')}".rstrip(": ")
        if status == 412:
            return refused(key, said)
        if code == "NoSuchBucket":
            return AccessDenied(key, f"{said}; create bucket {self._bucket!r}, or correct the URI or the endpoint")
        if status == 404:
            return NotFound(key, said)
        if status == 416:
            return _BeyondEnd(key, said)
        if status == 501:
            return UnsuitableStore(key, f"{said}; it does not support conditional puts")
        # 409 is a race among writers whose end the loser is not told (AWS), or simply the loser (other stores): read
        # and see. After 5xx the put may have been applied all the same.
        if status >= 500 or status in _TRANSIENT_STATUSES or code in _TRANSIENT_CODES:
            return doubtful(key, said)
        if status in {301, 307, 400} and (region := _region(error)):
            return AccessDenied(key, f"{said}; the bucket is in {region}: set AWS_REGION={region}")
        return AccessDenied(key, f"{said}; {_CREDENTIALS}")

    def _from_no_reply(self, error: BotoCoreError, key: str, doubtful: type[StoreError]) -> StoreError:
        from botocore import exceptions  # noqa: PLC0415

        said = f"{self.uri}: {error}"
        if isinstance(error, exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
            return AccessDenied(key, f"{said}; name the store's certificate authority in AWS_CA_BUNDLE")
        transient = (
            exceptions.HTTPClientError,  # reset, closed, read timeout, broken stream
            exceptions.ConnectionError,  # refused, unresolved, connect timeout
            exceptions.IncompleteReadError,
            exceptions.CredentialRetrievalError,  # the role's token endpoint did not answer
            exceptions.MetadataRetrievalError,
        )
        return doubtful(key, said) if isinstance(error, transient) else AccessDenied(key, f"{said}; {_CREDENTIALS}")


_session_lock = threading.Lock()
"""Making a client is not safe among threads; using one is."""


@functools.cache
def _session() -> Session:
    """One for the process: it keeps the parsed service model, 0.2 s of work, and renews a role's credentials once for all.

    botocore's rather than boto3's: it knows whether the profile sets an addressing style.
    """
    from botocore.session import get_session  # noqa: PLC0415

    return get_session()


class _Condition(TypedDict, total=False):
    IfNoneMatch: str
    IfMatch: str


class _BeyondEnd(StoreError):
    """416: the range starts at or beyond the object's end."""


@dataclass(frozen=True, slots=True)
class _Clients:
    retrying: S3Client
    """For reads, listings and deletes."""
    single: S3Client
    """For puts: exactly one attempt."""


def _etag(text: str) -> ETag:
    """Without quotes: servers differ in whether listings carry them."""
    return ETag(text.strip('"'))


def _is_custom_endpoint(endpoint_url: str | None) -> bool:
    return any((endpoint_url, os.environ.get("AWS_ENDPOINT_URL_S3"), os.environ.get("AWS_ENDPOINT_URL")))


def _region(error: ClientError) -> str | None:
    headers = error.response["ResponseMetadata"].get("HTTPHeaders", {})
    return headers.get("x-amz-bucket-region")
