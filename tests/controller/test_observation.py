"""controller.observation: what is kept of pods, and for how long."""

from __future__ import annotations

import asyncio
from typing import cast

from controller.cluster import Cluster
from controller.observation import Observation, RunKey
from tests.controller.test_pods import pod, running

RUN = RunKey(namespace="default", name="run", uid="u-1")


def observed() -> Observation:
    """With one running pod of the run, and no server."""
    found = Observation(cast("Cluster", None), namespace="", wake=lambda _pod: None)
    found.put(pod(state=running()))
    return found


def test_a_deleted_pod_is_kept_until_its_end_is_noted() -> None:
    """Why it ended may show in its last state only."""

    async def scenario() -> None:
        observation = observed()
        observation.pods.drop("p-1")
        kept = [pod.is_deleted for pod in observation.pods_of(RUN)]
        observation.forget("p-1")

        assert kept == [True]
        assert observation.pods_of(RUN) == []
        assert observation.pod("p-1") is None

    asyncio.run(scenario())


def test_a_pod_that_outlives_its_run_is_kept_while_it_lives() -> None:
    """The next run of that name waits for its name; nobody takes note of its end, so nothing stays of it."""

    async def scenario() -> None:
        observation, successor = observed(), RunKey(namespace="default", name="run", uid="u-2")
        observation.forget_run(RUN)
        living = [pod.uid for pod in observation.pods_of(successor)]
        observation.pods.drop("p-1")

        assert living == ["p-1"]
        assert observation.pods_of(successor) == []
        assert observation.pod("p-1") is None

    asyncio.run(scenario())
