"""Who asks at Google, without a key in sight: application default credentials, their token, and its renewal.

google-auth finds them: GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login`, or the metadata server,
which on GKE speaks for the pod's service account (Workload Identity). One account serves all stores of the process.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from contract.store.errors import AccessDenied, StoreError

if TYPE_CHECKING:
    from google.auth.credentials import Credentials
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport import Request

_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
REMEDY = (
    "give the pod's service account access by Workload Identity, run 'gcloud auth application-default login', or name a "
    "file in GOOGLE_APPLICATION_CREDENTIALS"
)

_lock = threading.Lock()
"""The search for an account, and the state of its credentials, belong to one thread at a time."""


class Account:
    """An account whose tokens are renewed before they expire. Threads share it."""

    def __init__(self, credentials: Credentials, request: Request) -> None:
        self._credentials = credentials
        self._request = request

    @property
    def name(self) -> str:
        """The service account, where there is one; for messages."""
        return str(getattr(self._credentials, "service_account_email", None) or "the account in use")

    def headers(self, url: str) -> dict[str, str]:
        """What shows at `url` who asks; it stays valid for minutes. Raises GoogleAuthError."""
        shown: dict[str, str] = {}
        with _lock:
            self._credentials.before_request(self._request, "GET", url, shown)  # type: ignore[no-untyped-call]
        return shown

    def renew(self, shown: dict[str, str]) -> None:
        """Fetch a new token after `shown` was refused. Of many threads with one token only the first does.

        Raises GoogleAuthError.
        """
        with _lock:
            if f"Bearer {self._credentials.token}" in shown.values():
                self._credentials.refresh(self._request)  # type: ignore[no-untyped-call]


def application_default() -> Account:
    """The account of this process.

    Raises:
        GoogleAuthError: there is none.
        ImportError: google-auth is not installed.
    """
    with _lock:
        return _found()


@functools.cache
def _found() -> Account:
    import google.auth  # noqa: PLC0415  (0.3 s, and only gs:// needs it)
    from google.auth.transport.requests import Request  # noqa: PLC0415

    request = Request()
    credentials, _ = google.auth.default(scopes=[_SCOPE], request=request)
    return Account(credentials, request)


@contextlib.contextmanager
def account_edge(key: str, *, doubtful: type[StoreError]) -> Iterator[None]:
    """Whatever google-auth raises becomes one of the protocol's errors here.

    Args:
        key: for messages.
        doubtful: what no clear answer becomes.
    """
    try:
        from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415
    except ImportError as error:
        raise AccessDenied(key, "gs:// needs google-auth: pip install '.[gcs]' in a checkout of the project") from error
    try:
        yield
    except GoogleAuthError as error:
        if _may_pass(error):
            raise doubtful(key, f"no token: {error}") from error
        raise AccessDenied(key, f"no token: {error}; {REMEDY}") from error


def _may_pass(error: GoogleAuthError) -> bool:
    """Whether the token may come later. The metadata server gives no answer in the first seconds of a pod."""
    from google.auth.exceptions import TransportError  # noqa: PLC0415

    cause = error.__cause__ if isinstance(error.__cause__, TransportError) else error
    if not isinstance(cause, TransportError):
        return bool(error.retryable)
    status = next((part.status for part in cause.args if hasattr(part, "status")), None)
    return status is None or status == 429 or status >= 500
