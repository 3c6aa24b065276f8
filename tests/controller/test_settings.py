"""controller.settings: the environment, read strictly."""

from __future__ import annotations

import pytest

from contract.errors import SpecError
from controller.settings import PREFIX, from_environment

IMAGE = {f"{PREFIX}WORKER_IMAGE": "worker:1"}


def test_defaults_suit_most() -> None:
    """Only the worker's image must be named."""
    settings = from_environment(IMAGE)

    assert settings.worker_image == "worker:1"
    assert (settings.api_qps, settings.api_burst) == (50.0, 100)
    assert settings.lease_retry_s < settings.lease_renew_deadline_s < settings.lease_duration_s


def test_values_are_converted() -> None:
    """Numbers are numbers, and what is switched is on or off."""
    given = {f"{PREFIX}API_QPS": "7.5", f"{PREFIX}HEALTH_PORT": "0", f"{PREFIX}WATCH_NODES": "false"}
    settings = from_environment({**IMAGE, **given})

    assert (settings.api_qps, settings.health_port, settings.watch_nodes) == (7.5, 0, False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_QPS", "fast"),
        ("API_QPS", "0"),
        ("POLL_S", "-1"),
        ("API_BURST", "1.5"),
        ("WATCH_NODES", "no"),
        ("COLOUR", "red"),
    ],
)
def test_what_cannot_be_used_is_named(name: str, value: str) -> None:
    """A typing error must not become a default."""
    with pytest.raises(SpecError, match=PREFIX + name):
        from_environment({**IMAGE, PREFIX + name: value})


def test_the_image_is_required() -> None:
    """There is no image that would do by itself."""
    with pytest.raises(SpecError, match="WORKER_IMAGE: not set"):
        from_environment({})


def test_variables_of_services_are_let_pass() -> None:
    """A Service named inferencerun-controller gives every container of the namespace such variables."""
    links = {
        f"{PREFIX}SERVICE_HOST": "10.0.0.1",
        f"{PREFIX}SERVICE_PORT_METRICS": "8080",
        f"{PREFIX}PORT": "tcp://10.0.0.1:8080",
        f"{PREFIX}PORT_8080_TCP_ADDR": "10.0.0.1",
    }

    assert from_environment({**IMAGE, **links}).worker_image == "worker:1"
