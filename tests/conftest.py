"""Fixtures for all tests: see `tests.servers` and `tests.cluster.fixtures`."""

pytest_plugins = ["tests.servers", "tests.cluster.fixtures"]
