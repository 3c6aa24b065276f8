"""Fixtures for all tests: see `tests.servers` and `tests.cluster.fixtures`."""

from hypothesis import settings

pytest_plugins = ["tests.servers", "tests.cluster.fixtures"]

# How long an example takes says how busy the machine is; pytest's own timeout is bound enough.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")
