"""controller.observation: what is kept of pods, and for how long."""

from __future__ import annotations

import asyncio
from typing import cast

from controller.cluster import Cluster
from controller.observation import Observation, RunKey
from tests.controller.test_pods import pod, running
from tests.make import NOW

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


def test_a_pod_is_to_be_noted_until_it_is_forgotten() -> None:
    """Whether its deletion shows before or after: a look that began earlier must not ask for its log again."""

    async def scenario() -> None:
        observation = observed()
        noted = [observation.is_to_be_noted("p-1")]
        observation.forget("p-1")
        noted.append(observation.is_to_be_noted("p-1"))
        observation.pods.drop("p-1")
        noted.append(observation.is_to_be_noted("p-1"))

        assert noted == [True, False, False]

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


def test_pods_of_a_run_that_was_deleted_unseen_are_let_go_of() -> None:
    """No reconciler was ever told of that run, so none forgets its pods; those of other runs stay."""

    async def scenario() -> None:
        observation = observed()
        observation.pods.drop("p-1")
        observation.forget_runs_but({"u-1", "u-2"})
        kept = observation.pod("p-1")
        observation.forget_runs_but({"u-2"})

        assert kept is not None
        assert observation.pod("p-1") is None
        assert observation.pods_of(RUN) == []

    asyncio.run(scenario())


def test_nodes_that_may_not_be_read_are_not_asked_for() -> None:
    """Nothing is known of them then, which is not the same as that they are gone."""

    async def scenario() -> None:
        observation = Observation(cast("Cluster", None), namespace="ns", wake=lambda _pod: None, watches_nodes=False)
        observation.put(pod(state=running()))
        tasks = observation.tasks()
        (view,) = await observation.views_of(RUN, NOW)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

        assert [task.get_name() for task in tasks] == ["watch of pods"]
        assert view.is_live

    asyncio.run(scenario())
