"""Errors and names: each error knows how a worker ends, and no two names mean the same."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

import pytest

from contract import errors, names
from contract.names import ExitCode
from contract.store import errors as store_errors
from contract.store.protocol import ETag, Stored


def subclasses(base: type[errors.InferenceRunError]) -> Iterator[type[errors.InferenceRunError]]:
    """All errors below `base`, those of the two modules only."""
    for found in base.__subclasses__():
        if found.__module__ in {errors.__name__, store_errors.__name__}:
            yield found
            yield from subclasses(found)


ERRORS = sorted(set(subclasses(errors.InferenceRunError)), key=lambda error: error.__name__)
PERMANENT = {"AccessDenied", "Corrupt", "IncompatibleRun", "InvalidInput", "ModelError", "NewerFormat", "SpecError"}
PERMANENT |= {"UnsuitableStore"}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_each_error_ends_a_worker_with_a_failure(error: type[errors.InferenceRunError]) -> None:
    """An error never looks like success or like a drain, and is permanent exactly if trying again cannot help."""
    assert error.exit_code not in {ExitCode.NO_WORK_LEFT, ExitCode.DRAINED}
    assert (error.exit_code in {ExitCode.INVALID, ExitCode.STORE_REFUSED}) == (error.__name__ in PERMANENT)
    assert error.__doc__


def test_all_permanent_errors_are_known() -> None:
    """The table above names existing errors."""
    assert {error.__name__ for error in ERRORS} >= PERMANENT


def test_exit_codes_stay_clear_of_signals_and_of_python() -> None:
    """1 and 2 are Python's, 128 + n a shell's for signals: a worker uses neither, SIGTERM's 143 excepted."""
    codes = {code.value for code in ExitCode} - {0, 143}

    assert codes
    assert all(64 <= code <= 113 for code in codes)
    assert ExitCode.DRAINED == 128 + 15


def test_store_errors_name_the_key() -> None:
    """Whoever reads the message knows which object it is about."""
    error = store_errors.PreconditionFailed("g0001/plan.json", "ETag moved")

    assert str(error) == "g0001/plan.json: ETag moved"
    assert (error.key, error.detail) == ("g0001/plan.json", "ETag moved")


def test_superseded_carries_what_is_there_now() -> None:
    """The caller decides again from the current object, without another read."""
    current = Stored(body=b"{}", etag=ETag("e"))

    error = store_errors.Superseded("run.json", "version 3 by another", current)

    assert error.current is current
    assert str(error) == "run.json: version 3 by another"


def test_environment_variables_are_distinct() -> None:
    """Two settings never share a variable."""
    variables = [value for name, value in vars(names).items() if name.startswith("ENV_")]

    assert len(variables) == len(set(variables)) > 1


@pytest.mark.parametrize(
    "kind",
    [names.FailureClass, names.QuarantineClass, names.Phase, names.ConditionType],
    ids=lambda kind: kind.__name__,
)
def test_what_the_api_shows_is_camel_case(kind: type[StrEnum]) -> None:
    """Kubernetes' convention for reasons, phases and conditions."""
    assert all(item.value.isalnum() and item.value[0].isupper() for item in kind)
