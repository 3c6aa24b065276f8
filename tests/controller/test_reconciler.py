"""controller.reconciler and what it is made of, against an API server in miniature: what is written, and when."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from contract import layout, manifest, names, run_record, settings
from contract.manifest import Owner
from contract.store.errors import Unavailable
from contract.transitions import claimed, first_claim
from controller import cluster, ledger
from controller.cluster import Object, ObjectChanged, core_path
from controller.ledger import Ledger
from controller.observed import Intent
from tests.controller.api_server import refusal
from tests.controller.bench import PATIENCE_S, PODS, RUN, Bench, bench


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
            told = await found.until(
                lambda: [event for event in found.server.of_kind("events") if event["reason"] == "Failed"][1:],
                "a second Event",
            )

            assert "activeDeadlineSeconds" in told[0]["message"]

    asyncio.run(scenario())


def test_a_refusal_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    """Who mends the spec and meets a store that refuses is told of the store alone."""

    def is_false(found: Bench, kind: str) -> bool:
        return any(item["type"] == kind and item["status"] == "False" for item in found.status.get("conditions") or [])

    async def scenario() -> None:
        async with bench(tmp_path, {"model": {"name": "unheard-of"}}) as found:
            await found.until(lambda: is_false(found, "Accepted"), "the spec to be refused")
            (tmp_path / "out/run.json").write_text("{")
            spec = {**found.server.objects[RUN]["spec"], "model": {"name": "kmer"}}
            metadata = found.server.objects[RUN]["metadata"]
            found.change(RUN, spec=spec, metadata={**metadata, "generation": 2})
            await found.until(lambda: is_false(found, "Planned"), "the store to be refused")

            assert not is_false(found, "Accepted")

    asyncio.run(scenario())


def test_scaling_lists_no_input(tmp_path: Path) -> None:
    """An object that has come since the run began keeps nobody from scaling it; the run stays what it was."""

    async def scenario() -> None:
        spec = {"input": {"uris": [str(tmp_path / "*.fasta")], "shardBytes": 8}, "workers": {"count": 1}}
        async with bench(tmp_path, spec) as found:
            await found.until(lambda: len(found.pods) == 1, "a pod")
            (tmp_path / "later.fasta").write_text(">c\nMKV\n")
            resource = found.server.objects[RUN]
            wider = {**resource["spec"], "workers": {**resource["spec"]["workers"], "count": 2}}
            found.change(RUN, spec=wider, metadata={**resource["metadata"], "generation": 2})
            await found.until(lambda: len(found.pods) == 2, "a second pod")
            await found.until(lambda: found.status.get("observedGeneration") == 2, "the status to follow")

            assert all(item["status"] == "True" for item in found.status["conditions"] if item["type"] == "Accepted")
            assert found.status["shards"]["total"] == 2

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"output": {"uri": "out"}}, "Invalid", "spec.output.uri: 'out' is a relative path; use s3://BUCKET/PREFIX"),
        (
            {"input": {"uris": ["s3://bucket/in/", "in.fasta"]}},
            "Invalid",
            "spec.input.uris[1]: 'in.fasta' is a relative path; use s3://BUCKET/PREFIX or gs://BUCKET/PREFIX",
        ),
        (
            {"output": {"uri": "{}/in.fasta/out"}},
            "PathUnusable",
            "spec.output.uri: {}/in.fasta/out cannot be used by the controller: Not a directory",
        ),
        (
            {"input": {"uris": ["/nowhere"]}},
            "SpecError",
            "a path is one in the controller's pod: use s3://BUCKET/PREFIX",
        ),
    ],
    ids=["relative output", "relative input", "output that cannot be made", "input that is not there"],
)
def test_a_path_that_pods_do_not_have_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str, words: str
) -> None:
    """Not accepted, with the field and the remedy, instead of the system's own words alone."""

    async def scenario() -> None:
        spec = json.loads(json.dumps(changes).replace("{}/", f"{tmp_path}/"))
        async with bench(tmp_path, spec) as found:
            refusal = await found.until(
                lambda: [item for item in found.status.get("conditions") or [] if item["status"] == "False"],
                "a refusal",
            )

            assert [(item["type"], item["reason"]) for item in refusal] == [("Accepted", reason)]
            assert words.replace("{}/", f"{tmp_path}/") in refusal[0]["message"]
            assert "gs://BUCKET/PREFIX" in refusal[0]["message"]
            assert not found.pods

    asyncio.run(scenario())


def test_a_refused_run_may_be_given_another_output(tmp_path: Path) -> None:
    """Plan and record are written where the spec says now, not where it said before the run began."""

    async def scenario() -> None:
        mistyped = {"input": {"uris": [str(tmp_path / "im.fasta")], "shardBytes": 8}}
        async with bench(tmp_path, mistyped) as found:
            await found.until(
                lambda: [item for item in found.status.get("conditions") or [] if item["status"] == "False"],
                "the input to be missed",
            )
            resource = found.server.objects[RUN]
            (tmp_path / "other").mkdir()
            mended = {
                **resource["spec"],
                "input": {"uris": [str(tmp_path / "in.fasta")], "shardBytes": 8},
                "output": {"uri": str(tmp_path / "other")},
            }
            found.change(RUN, spec=mended, metadata={**resource["metadata"], "generation": 2})
            await found.until(lambda: len(found.pods) == 2, "pods")

            assert (tmp_path / "other/g0001/plan.json").exists()
            assert not (tmp_path / "out/run.json").exists()

    asyncio.run(scenario())


def test_a_mistyped_input_is_corrected_in_place(tmp_path: Path) -> None:
    """The refusal says that this is possible, and it is: the run goes on by the same name on the same output."""

    async def scenario() -> None:
        mistyped = {"input": {"uris": [str(tmp_path / "im.fasta")], "shardBytes": 8}}
        async with bench(tmp_path, mistyped) as found:
            refused = await found.until(
                lambda: [item for item in found.status.get("conditions") or [] if item["status"] == "False"],
                "the input to be missed",
            )
            resource = found.server.objects[RUN]
            mended = {**resource["spec"], "input": {"uris": [str(tmp_path / "in.fasta")], "shardBytes": 8}}
            found.change(RUN, spec=mended, metadata={**resource["metadata"], "generation": 2})
            await found.until(lambda: len(found.pods) == 2, "pods")
            found.change(RUN, spec={**mended, **mistyped}, metadata={**resource["metadata"], "generation": 3})
            begun = await found.until(
                lambda: [item for item in found.status["conditions"] if "im.fasta" in item.get("message", "")],
                "the input to be missed once more",
            )

            assert "Correct spec.input in place" in refused[0]["message"]
            assert "of a run that has begun" in begun[0]["message"]

    asyncio.run(scenario())


def test_what_is_said_in_a_cluster_names_what_works_there(tmp_path: Path) -> None:
    """Condition, message and Event of a run that asks for another model speak of its spec, not of the local command."""

    async def scenario() -> None:
        async with bench(tmp_path) as found:
            await found.until(lambda: len(found.pods) == 2, "pods")
            resource = found.server.objects[RUN]
            other = {**resource["spec"], "model": {**resource["spec"]["model"], "maxLength": 100}}
            found.change(RUN, spec=other, metadata={**resource["metadata"], "generation": 2})
            refused = await found.until(
                lambda: [item for item in found.status["conditions"] if item["reason"] == "IncompatibleRun"],
                "the model to be refused",
            )
            events = await found.until(
                lambda: [item for item in found.server.of_kind("events") if item["reason"] == "IncompatibleRun"],
                "an Event",
            )

            for text in (refused[0]["message"], found.status["message"], events[0]["message"]):
                assert "open a new generation with spec.resume: Restart" in text
                assert "--restart" not in text

    asyncio.run(scenario())


def label(pod: Object) -> str:
    """The capacity that a pod was started on."""
    return str(pod["metadata"]["labels"].get(names.LABEL_CAPACITY))


def test_spot_capacity_that_does_not_come_and_then_does(tmp_path: Path) -> None:
    """A pod that waits too long makes way for one on demand; that one, after its time, for spot again."""
    capacity = {
        "provider": "gke",
        "prefer": "spot",
        "onDemandAfterPendingSeconds": 60,
        "returnToSpotAfterSeconds": 600,
    }

    async def scenario() -> None:
        async with bench(tmp_path, {"workers": {"count": 1, "capacity": capacity}}) as found:
            first = await found.until(lambda: found.pods and found.pods[0], "a pod")
            found.change(f"{PODS}/run-0-0", metadata={**first["metadata"], "creationTimestamp": "2026-01-01T12:00:00Z"})
            found.sleep(61)
            await found.until(lambda: found.pod("run-0-0")["metadata"].get("deletionTimestamp"), "it to be stopped")
            found.server.remove(f"{PODS}/run-0-0")
            await found.until(lambda: found.server.objects.get(f"{PODS}/run-0-1"), "another")
            second = found.pod("run-0-1")
            found.run_pod("run-0-1")
            found.sleep(601)
            await found.until(lambda: found.pod("run-0-1")["metadata"].get("deletionTimestamp"), "spot to be tried")
            intent = found.pod("run-0-1")["metadata"]["annotations"][names.ANNOTATION_INTENT]
            found.end_pod("run-0-1", exitCode=143)
            await found.until(lambda: found.server.objects.get(f"{PODS}/run-0-2"), "a third")

            assert [label(first), label(second), label(found.pod("run-0-2"))] == ["spot", "onDemand", "spot"]
            assert intent == "changesCapacity"
            assert found.status["restarts"]["counted"] == 0
            assert found.status["checkpoint"] == {
                "everySeconds": "27",
                "evictionsPerHour": "0.5",
                "costSeconds": "0.05",
            }

    asyncio.run(scenario())


def test_a_storm_of_evictions_is_told(tmp_path: Path) -> None:
    """Workers start on demand, an Event says until when, and their settings carry the shorter interval."""
    capacity = {"provider": "gke", "prefer": "spot", "onDemandAboveEvictionsPerHour": 1}

    async def scenario() -> None:
        async with bench(tmp_path, {"workers": {"count": 1, "capacity": capacity}}) as found:
            for number in range(3):
                name = f"run-0-{number}"
                await found.until(lambda name=name: found.server.objects.get(f"{PODS}/{name}"), name)
                found.run_pod(name)
                found.end_pod(name, exitCode=143)
                await found.until(lambda name=name: f"{PODS}/{name}" not in found.server.objects, f"{name} to go")
                found.sleep(10)
            last = await found.until(lambda: found.server.objects.get(f"{PODS}/run-0-3"), "the fourth")
            reasons = await found.until(
                lambda: [item["reason"] for item in found.server.of_kind("events") if item["reason"] == "OffSpot"],
                "the Event",
            )
            text = next(
                item["value"] for item in last["spec"]["containers"][0]["env"] if item["name"] == names.ENV_SETTINGS
            )

            assert label(last) == "onDemand"
            assert reasons == ["OffSpot"]
            assert settings.from_json(text).checkpoint.every_seconds < 27

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


def test_a_pod_that_hangs_on_a_dead_node_is_removed_once_it_is_fenced(tmp_path: Path) -> None:
    """Its shard is released first: should it live on, it cannot commit. Then its object is deleted with no grace."""

    async def scenario() -> None:
        async with bench(tmp_path, {"workers": {"count": 1}}) as found:
            await found.until(lambda: found.pods, "a pod")
            found.run_pod("run-0-0")
            uid = found.pod("run-0-0")["metadata"]["uid"]
            owner = Owner(pod="run-0-0", uid=uid, node="node-a")
            plan = found.reconciler._opener.opened.plan
            held = first_claim(plan.shards[0], generation=1, owner=owner, commit_id="claim", now=found.now)
            key = layout.build_shard_key(1, 0)
            found.store.put_create(key, manifest.to_json(held))
            was_released: list[bool] = []

            def watched(method: str, path: str) -> None:
                if method == "DELETE":
                    now = manifest.from_json(found.store.get(key).body, where=key)
                    was_released.append(now.owner is None and now.restarts.counted == 0)

            found.server.fault = watched
            cut_off = {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}
            found.change(core_path("", "nodes", "node-a"), **cut_off)
            metadata = {**found.pod("run-0-0")["metadata"], "deletionTimestamp": "2026-01-01T12:00:30Z"}
            found.change(f"{PODS}/run-0-0", metadata=metadata)
            await found.until(lambda: f"{PODS}/run-0-0" not in found.server.objects, "the pod to go")

            assert was_released == [True]

    asyncio.run(scenario())


def crash(found: Bench, name: str) -> str:
    """Its worker crashes; returns the key that its log is kept under."""
    found.run_pod(name)
    key = layout.build_log_key(1, name, found.pod(name)["metadata"]["uid"])
    found.end_pod(name, exitCode=1, reason="Error")
    return key


def test_the_end_of_a_failed_workers_log_is_kept(tmp_path: Path) -> None:
    """Its last 64 KiB are in the store before the pod goes."""

    async def scenario() -> None:
        async with bench(tmp_path, {"workers": {"count": 1}}) as found:
            await found.until(lambda: found.pods, "a pod")
            found.server.logs["run-0-0"] = "x" * 100_000 + "the end"
            key = crash(found, "run-0-0")
            await found.until(lambda: f"{PODS}/run-0-0" not in found.server.objects, "the pod to go")

            kept = found.store.get(key).body
            assert len(kept) == names.MAX_LOG_BYTES
            assert kept.endswith(b"x" * 10 + b"the end")

    asyncio.run(scenario())


@pytest.mark.parametrize("status", [404, 500])
def test_a_log_that_is_gone_keeps_nobody_waiting(tmp_path: Path, status: int) -> None:
    """The kubelet has dropped it, or does not answer: the pod goes all the same."""

    async def scenario() -> None:
        async with bench(tmp_path, {"workers": {"count": 1}}) as found:
            await found.until(lambda: found.pods, "a pod")
            found.server.fault = lambda _method, path: refusal(status, "Gone") if path.endswith("/log") else None
            key = crash(found, "run-0-0")
            await found.until(lambda: f"{PODS}/run-0-0" not in found.server.objects, "the pod to go")

            assert [method for method, path in found.server.requests if path.endswith("/log")] == ["GET"]
            assert [item.key for item in found.store.list(key)] == []

    asyncio.run(scenario())


def logs_asked_for(found: Bench) -> list[str]:
    """Names of the pods whose logs have been asked for, in that order."""
    return [path.split("/")[-2] for _, path in found.server.requests if path.endswith("/log")]


def test_a_log_that_is_slow_to_come_delays_no_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended pods wait for their logs, each is asked for once; meanwhile their places have new workers."""
    monkeypatch.setattr(cluster, "TAIL_TIMEOUT_S", PATIENCE_S)

    async def scenario() -> None:
        async with bench(tmp_path) as found:
            await found.until(lambda: len(found.pods) == 2, "two pods")
            found.server.logs.update({"run-0-0": "its last words", "run-1-0": "others"})
            found.server.log_gate = asyncio.Event()
            key = crash(found, "run-0-0")
            await found.until(lambda: "run-0-0" in logs_asked_for(found), "a log to be asked for")
            crash(found, "run-1-0")
            await found.until(lambda: "run-1-0" in logs_asked_for(found), "the other log to be asked for")
            found.sleep(60)
            for name in ("run-0-1", "run-1-1"):
                await found.until(lambda name=name: f"{PODS}/{name}" in found.server.objects, name)
            names_meanwhile = [pod["metadata"]["name"] for pod in found.pods]
            found.server.log_gate.set()
            await found.until(lambda: len(found.pods) == 2, "the ended pods to go")

            assert names_meanwhile == ["run-0-0", "run-0-1", "run-1-0", "run-1-1"]
            assert found.store.get(key).body == b"its last words"
            assert logs_asked_for(found) == ["run-0-0", "run-1-0"]

    asyncio.run(scenario())


def test_a_farewell_that_fails_is_tried_again(tmp_path: Path) -> None:
    """The log is kept before its pod goes, however often the store has to be asked."""

    async def scenario() -> None:
        async with bench(tmp_path, {"workers": {"count": 1}}) as found:
            await found.until(lambda: found.pods, "a pod")
            store = found.reconciler._opener.store
            keep_log, tries = store.keep_log, itertools.count()

            def failing_once(*arguments: Any, **options: Any) -> None:
                if not next(tries):
                    raise Unavailable("log", "away")
                keep_log(*arguments, **options)

            store.keep_log = failing_once  # type: ignore[method-assign]
            found.server.logs["run-0-0"] = "its last words"
            key = crash(found, "run-0-0")
            await found.until(lambda: f"{PODS}/run-0-0" not in found.server.objects, "the pod to go")

            assert next(tries) == 2
            assert found.store.get(key).body == b"its last words"

    asyncio.run(scenario())


def hold(found: Bench, name: str) -> None:
    """The worker claims the first shard."""
    owner = Owner(pod=name, uid=found.pod(name)["metadata"]["uid"], node="node-a")
    key = layout.build_shard_key(1, 0)
    shard = found.reconciler._opener.opened.plan.shards[0]
    if not list(found.store.list(key)):
        new = first_claim(shard, generation=1, owner=owner, commit_id=name, now=found.now)
        found.store.put_create(key, manifest.to_json(new))
        return
    stored = found.store.get(key)
    current = manifest.from_json(stored.body, where=key)
    new = claimed(current, owner=owner, commit_id=name, now=found.now)
    found.store.put_update(key, manifest.to_json(new), stored.etag)


def test_a_shard_that_smaller_batches_do_not_help_gets_a_larger_worker(tmp_path: Path) -> None:
    """The third pod has twice the memory, and its worker knows; the limit of the first two is the template's."""
    container = {"name": "worker", "resources": {"limits": {"memory": "4Gi"}}}
    changes = {
        "workers": {"count": 1, "template": {"spec": {"containers": [container]}}},
        "failurePolicy": {"maxMemory": "16Gi"},
    }

    async def scenario() -> None:
        async with bench(tmp_path, changes) as found:
            for number in range(2):
                name = f"run-0-{number}"
                await found.until(lambda name=name: found.server.objects.get(f"{PODS}/{name}"), name)
                found.run_pod(name)
                hold(found, name)
                found.end_pod(name, exitCode=137, reason="OOMKilled")
                await found.until(lambda name=name: f"{PODS}/{name}" not in found.server.objects, f"{name} to go")
                found.sleep(60)
            third = await found.until(lambda: found.server.objects.get(f"{PODS}/run-0-2"), "the third")
            worker = third["spec"]["containers"][0]
            text = next(item["value"] for item in worker["env"] if item["name"] == names.ENV_SETTINGS)

            assert worker["resources"]["limits"]["memory"] == str(8 * 2**30)
            assert settings.from_json(text).memory_bytes == 8 * 2**30
            assert found.status["restarts"]["byClass"] == {"OutOfMemory": 2}

    asyncio.run(scenario())


def restart(found: Bench) -> None:
    """A user asks for a new generation."""
    resource = found.server.objects[RUN]
    metadata, spec = {**resource["metadata"], "generation": 2}, {**resource["spec"], "resume": "Restart"}
    found.change(RUN, metadata=metadata, spec=spec)


def generation_in_store(found: Bench) -> int:
    """What run.json says."""
    return run_record.from_json(found.store.get(layout.RUN_KEY).body, where=layout.RUN_KEY).generation


async def end_first_pods(found: Bench) -> None:
    """The pods of the first generation have been told to stop, and go."""
    for name in ("run-0-0", "run-1-0"):
        await found.until(
            lambda name=name: found.pod(name)["metadata"].get("deletionTimestamp"), f"{name} to be stopped"
        )
        found.server.remove(f"{PODS}/{name}")


def test_a_restart_whose_note_was_lost_is_noted_by_the_next_look(tmp_path: Path) -> None:
    """The status could not be written once the generation was open: it is later, and the new workers are left alone."""

    async def scenario() -> None:
        async with bench(tmp_path) as found:
            await found.until(lambda: len(found.pods) == 2, "two pods")
            refused: list[str] = []

            def refuse_once(method: str, path: str) -> web.Response | None:
                if method == "PATCH" and path == f"{RUN}/status" and not refused and generation_in_store(found) == 2:
                    refused.append(path)
                    return refusal(409, "Conflict")
                return None

            found.server.fault = refuse_once
            restart(found)
            await end_first_pods(found)
            await found.until(lambda: '"restartedFor":2' in found.status["memory"], "the restart to be noted")
            await found.until(lambda: len(found.pods) == 2, "two new pods")

            assert refused
            assert generation_in_store(found) == 2
            assert ledger.from_status(found.status).store_generation == 2
            assert not any(pod["metadata"].get("deletionTimestamp") for pod in found.pods)

    asyncio.run(scenario())


def test_a_decision_is_not_written_over_a_version_that_came_meanwhile(tmp_path: Path) -> None:
    """A second controller has written while this one was looking, and the watch shows it: this one begins anew."""

    async def scenario() -> None:
        async with bench(tmp_path, is_working=False) as found:
            observation = found.reconciler._tools.observation
            confirm = observation.confirm

            async def overtaken(*arguments: Any) -> None:
                await confirm(*arguments)
                found.change(RUN, status={"memory": ledger.to_text(Ledger(retried_for="theirs"))})

            observation.confirm = overtaken  # type: ignore[method-assign]
            with pytest.raises(ObjectChanged):
                await found.reconciler._turn()

            assert found.pods == []
            assert ledger.from_status(found.status).retried_for == "theirs"

    asyncio.run(scenario())


def test_a_run_that_is_over_is_let_go_of_and_can_be_taken_up_again(tmp_path: Path) -> None:
    """Thousands of manifests are not kept for as long as its resource is; a retry reads them anew."""

    async def scenario() -> None:
        async with bench(tmp_path, {"activeDeadlineSeconds": 100}) as found:
            await found.until(lambda: len(found.pods) == 2, "two pods")
            found.sleep(101)
            await found.until(lambda: found.status["phase"] == "Failed", "the deadline")
            for pod in found.pods:
                found.server.remove(f"{PODS}/{pod['metadata']['name']}")
            await found.until(lambda: found.reconciler._opener._store is None, "it to be let go of")
            metadata = found.server.objects[RUN]["metadata"]
            found.change(RUN, metadata={**metadata, "annotations": {names.ANNOTATION_RETRY: "once"}})
            await found.until(lambda: len(found.pods) == 2, "the run to go on")

            assert found.reconciler._opener.opened.record.generation == 1

    asyncio.run(scenario())
