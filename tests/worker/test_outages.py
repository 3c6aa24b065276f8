"""A worker whose store is silent says so long before it gives up, and not at each attempt."""

from __future__ import annotations

import json
import logging

import pytest

from contract.logs import STORE_BACK, STORE_SILENT, JsonFormatter
from contract.store.errors import OutcomeUnknown, Unavailable
from contract.store.measured import StoreCall, StoreResult
from tests.servers import free_port
from worker import __main__ as entry
from worker import outages
from worker.outages import OutageLog

URI = "s3://bucket/out"
ENDPOINT = "http://store:9000"
FAILURES = {
    StoreResult.UNAVAILABLE: Unavailable("plan.json", "connection refused"),
    StoreResult.UNKNOWN: OutcomeUnknown("plan.json", "connection reset"),
}


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Also what is no warning."""
    caplog.set_level(logging.INFO)


def told(calls: list[tuple[float, StoreResult]]) -> None:
    """Tell a log of calls that each took a second, by when they ended and how."""
    clock = [0.0]
    log = OutageLog(URI, endpoint=lambda: ENDPOINT, clock=lambda: clock[0])
    for at_s, result in calls:
        clock[0] = at_s
        log(StoreCall.GET, result, 1.0, FAILURES.get(result))


def test_a_closed_port_is_told_as_one_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a worker's store is opened: with its URI, where that leads, and the error, as a JSON line."""
    endpoint = f"http://127.0.0.1:{free_port()}"
    for name, value in {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(outages, "WARN_AFTER_S", 0.0)  # this test does not wait; the others say when
    counted: list[StoreResult] = []
    store = entry._watched(URI, lambda _call, result, _seconds, _error: counted.append(result))

    with pytest.raises(OutcomeUnknown):
        store.put_create("k", b"")

    (record,) = (item for item in caplog.records if item.name == outages.__name__)
    line = json.loads(JsonFormatter().format(record))
    assert counted == [StoreResult.UNKNOWN]
    assert (line["level"], line["message"], line["store"], line["endpoint"]) == (
        "warning",
        STORE_SILENT,
        URI,
        endpoint,
    )
    assert "Could not connect to the endpoint URL" in line["detail"]


def test_warnings_come_after_ten_seconds_and_then_ever_more_rarely(caplog: pytest.LogCaptureFixture) -> None:
    """Of the 180 attempts in which a worker's patience ends, five are told; a call's own time counts."""
    told([(at_s, StoreResult.UNAVAILABLE) for at_s in range(1, 181)])

    assert [vars(item)["silent_s"] for item in caplog.records] == [10, 20, 40, 80, 160]
    assert {item.levelname for item in caplog.records} == {"WARNING"}


def test_an_answer_ends_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    """It is told once, if the outage was; the next outage begins anew. What says nothing of the store changes nothing."""
    told(
        [
            (1, StoreResult.UNKNOWN),
            (9, StoreResult.ERROR),
            (12, StoreResult.UNAVAILABLE),
            (13, StoreResult.MISSING),
            (14, StoreResult.OK),
            (15, StoreResult.UNAVAILABLE),
            (20, StoreResult.CONFLICT),
            (30, StoreResult.UNAVAILABLE),
            (38, StoreResult.UNAVAILABLE),
        ]
    )

    assert [(item.getMessage(), vars(item)["silent_s"]) for item in caplog.records] == [
        (STORE_SILENT, 12),
        (STORE_BACK, 13),
    ]
