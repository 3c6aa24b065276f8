"""controller.reconciler and what it is made of, against an API server in miniature: what is written, and when."""

from __future__ import annotations

import asyncio
from pathlib import Path

from contract import names
from tests.controller.bench import PODS, RUN, bench


def test_pods_are_created_and_the_status_says_so(tmp_path: Path) -> None:
    """One pod for each worker, owned by the run, which is held until they have drained."""

    async def scenario() -> None:
        async with bench(tmp_path) as found:
            await found.until(lambda: len(found.pods) == 2, "two pods")
            await found.until(lambda: found.status.get("workers", {}).get("active") == 2, "the status to count them")

            assert [pod["metadata"]["name"] for pod in found.pods] == ["run-0-0", "run-1-0"]
            assert found.server.objects[RUN]["metadata"]["finalizers"] == [names.FINALIZER_DRAIN]

    asyncio.run(scenario())


def test_a_failed_run_goes_on_when_it_is_told_to_retry(tmp_path: Path) -> None:
    """The annotation, set to another text, begins the deadline anew; the same text does nothing twice."""

    async def scenario() -> None:
        async with bench(tmp_path, {"activeDeadlineSeconds": 100}) as found:
            await found.until(lambda: len(found.pods) == 2, "two pods")
            found.sleep(101)
            await found.until(lambda: found.status["phase"] == "Failed", "the deadline")
            for pod in found.pods:
                found.server.remove(f"{PODS}/{pod['metadata']['name']}")
            await found.until(lambda: not found.pods, "its pods to go")
            await found.until(lambda: not found.server.objects[RUN]["metadata"]["finalizers"], "the run to be let go")
            metadata = found.server.objects[RUN]["metadata"]
            found.change(RUN, metadata={**metadata, "annotations": {names.ANNOTATION_RETRY: "once"}})
            await found.until(lambda: found.status["phase"] == "Pending" and found.pods, "the run to go on")
            found.sleep(101)
            await found.until(lambda: found.status["phase"] == "Failed", "the deadline, once more")

            reasons = [event["reason"] for event in found.server.of_kind("events")]
            assert reasons.count("Failed") == 2

    asyncio.run(scenario())
