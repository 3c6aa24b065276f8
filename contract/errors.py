"""Errors that cross a boundary, split by what the caller must do; each knows the exit code a worker ends with.

Store errors live in `contract.store.errors`.
"""

from __future__ import annotations

from contract.names import ExitCode


class InferenceRunError(Exception):
    """Base of all errors that carry a message meant for the user."""

    exit_code: ExitCode = ExitCode.TRANSIENT


class SpecError(InferenceRunError):
    """The spec is wrong. Permanent: the user must change it; the message names the field and the remedy."""

    exit_code = ExitCode.INVALID


class InvalidInput(InferenceRunError):
    """An input object is not what it claims to be. Permanent; the message names object, offset and remedy."""

    exit_code = ExitCode.INVALID


class IncompatibleRun(InferenceRunError):
    """The output holds a run of another input or model. Permanent; nothing was touched."""

    exit_code = ExitCode.INVALID


class Corrupt(InferenceRunError):
    """A document or object does not match its checksum or format. Stop; a human decides (`inferencerun repair`)."""

    exit_code = ExitCode.INVALID


class NewerFormat(InferenceRunError):
    """A document was written by a newer version. Permanent for this version: upgrade it."""

    exit_code = ExitCode.INVALID


class Fenced(InferenceRunError):
    """Another epoch or owner holds the shard. Stop working on it at once and never retry."""

    exit_code = ExitCode.FENCED


class ModelError(InferenceRunError):
    """The model cannot be loaded. Permanent: wrong source, parameters or missing package."""

    exit_code = ExitCode.INVALID


class ModelProcessDied(InferenceRunError):
    """The model process kept dying without any record to blame."""

    exit_code = ExitCode.TRANSIENT


class GpuHardwareError(InferenceRunError):
    """The device reported a hardware fault."""

    exit_code = ExitCode.GPU_HARDWARE


class OutOfMemory(InferenceRunError):
    """Memory is exhausted and no split of a batch can mend it."""

    exit_code = ExitCode.MEMORY


class NoProgress(InferenceRunError):
    """No batch finished within the no-progress timeout."""

    exit_code = ExitCode.NO_PROGRESS
