"""Fixtures for all tests: see `tests.servers`."""

pytest_plugins = ["tests.servers"]
