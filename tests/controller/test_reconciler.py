"""controller.reconciler and what it is made of, against an API server in miniature: what is written, and when."""

from __future__ import annotations

import asyncio
from pathlib import Path

from contract import names
from controller.observed import Intent
from tests.controller.bench import PODS, RUN, bench


def test_pods_are_created_and_the_status_says_so(tmp_path: Path) -> None:
    """One pod for each worker, owned by the run, and nothing on the run that only a controller could take off."""

    async def scenario() -> None:
        async with bench(tmp_path) as found:
            await found.until(lambda: len(found.pods) == 2, "two pods")
            await found.until(lambda: found.status.get("workers", {}).get("active") == 2, "the status to count them")

            assert [pod["metadata"]["name"] for pod in found.pods] == ["run-0-0", "run-1-0"]
            assert [pod["metadata"]["ownerReferences"][0]["kind"] for pod in found.pods] == ["InferenceRun"] * 2
            assert not found.server.objects[RUN]["metadata"].get("finalizers")

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
            await found.until(lambda: not found.pods_known, "its pods to go, and their ends to be noted")
            metadata = found.server.objects[RUN]["metadata"]
            found.change(RUN, metadata={**metadata, "annotations": {names.ANNOTATION_RETRY: "once"}})
            await found.until(lambda: found.status["phase"] == "Pending" and found.pods, "the run to go on")
            found.sleep(101)
            await found.until(lambda: found.status["phase"] == "Failed", "the deadline, once more")

            reasons = [event["reason"] for event in found.server.of_kind("events")]
            assert reasons.count("Failed") == 2

    asyncio.run(scenario())


def test_a_run_that_is_being_deleted_drains(tmp_path: Path) -> None:
    """Whatever keeps it, its pods are told to stop, and the one that ends first is not replaced."""

    async def scenario() -> None:
        async with bench(tmp_path) as found:
            await found.until(lambda: len(found.pods) == 2, "two pods")
            metadata = found.server.objects[RUN]["metadata"]
            held = {"deletionTimestamp": "2026-01-01T12:00:30Z", "finalizers": ["foregroundDeletion"]}
            found.change(RUN, metadata={**metadata, **held})
            await found.until(lambda: all(pod["metadata"].get("deletionTimestamp") for pod in found.pods), "the drain")
            found.server.remove(f"{PODS}/run-0-0")
            found.sleep(60)
            await found.until(lambda: not found.reconciler._resource.changed.is_set(), "a look")

            assert [pod["metadata"]["name"] for pod in found.pods] == ["run-1-0"]
            assert found.pods[0]["metadata"]["annotations"][names.ANNOTATION_INTENT] == Intent.RUN_ENDED

    asyncio.run(scenario())


def test_a_reconciler_ends_when_it_is_cancelled(tmp_path: Path) -> None:
    """Also when it is woken at the same moment: whoever lost the Lease must not go on."""

    async def scenario() -> None:
        async with bench(tmp_path, is_working=False) as found:
            work = asyncio.create_task(found.reconciler.work())
            await found.until(lambda: len(found.pods) == 2, "two pods")
            await found.until(lambda: found.reconciler._resource.changed._waiters, "it to wait")
            found.reconciler.wake()
            await asyncio.sleep(0)
            work.cancel()
            await asyncio.wait({work}, timeout=5)

            assert work.cancelled()

    asyncio.run(scenario())
