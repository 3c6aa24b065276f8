"""Errors of object stores, split by what the caller must do. Every message names the key."""

from __future__ import annotations

from contract.errors import InferenceRunError
from contract.names import ExitCode
from contract.store.protocol import Stored


class StoreError(InferenceRunError):
    """Base of all store errors."""

    exit_code = ExitCode.TRANSIENT

    def __init__(self, key: str, detail: str) -> None:
        super().__init__(f"{key}: {detail}")
        self.key = key
        self.detail = detail


class NotFound(StoreError):
    """No such object."""


class AlreadyExists(StoreError):
    """put_create on a key that exists: read it and decide whether it is one's own."""


class PreconditionFailed(StoreError):
    """put_update with a stale ETag: read and decide whether it was one's own put that moved it."""


class OutcomeUnknown(StoreError):
    """A write that may or may not have been applied: read, recognise, resend the same bytes."""


class Unavailable(StoreError):
    """The store does not answer: back off and try again."""


class AccessDenied(StoreError):
    """Credentials, policy, bucket or settings forbid it. Permanent until somebody changes them; the message says which."""

    exit_code = ExitCode.STORE_REFUSED


class UnsuitableStore(StoreError):
    """The store ignores conditions on writes; a run on it would lose data. Permanent: choose another store."""

    exit_code = ExitCode.STORE_REFUSED


class Superseded(StoreError):
    """Somebody else's change is in place of ours: take `current` (bytes and ETag) and decide again."""

    def __init__(self, key: str, detail: str, current: Stored) -> None:
        super().__init__(key, detail)
        self.current = current
