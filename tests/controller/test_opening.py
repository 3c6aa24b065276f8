"""controller.opening: which generation a controller works on, and by which plan, when it begins anew."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from contract import documents, layout, run_record
from contract.run_record import RunRecord
from contract.store.errors import Unavailable
from controller import ledger
from controller.reconciler import RunReconciler
from tests.controller.bench import PODS, RUN, Bench, bench


def begun_anew(found: Bench) -> RunReconciler:
    """The reconciler of a controller that has just been started: it knows what resource and store say."""
    return RunReconciler(found.server.objects[RUN], found.reconciler._tools)


def record(found: Bench) -> RunRecord:
    """run.json."""
    return run_record.from_json(found.store.get(layout.RUN_KEY).body, where=layout.RUN_KEY)


def change_spec(found: Bench, **parts: Any) -> None:
    """A user applies the run with other parts in its spec."""
    resource = found.server.objects[RUN]
    metadata = {**resource["metadata"], "generation": resource["metadata"]["generation"] + 1}
    found.change(RUN, spec={**resource["spec"], **parts}, metadata=metadata)


def refusal(found: Bench) -> str:
    """Why the run is refused, as its conditions say; empty when it is not."""
    conditions = found.status["conditions"]
    return next(
        (item["message"] for item in conditions if item["type"] == "Accepted" and item["status"] == "False"), ""
    )


def play(tmp_path: Path, scenario: Callable[[Bench], Awaitable[None]]) -> None:
    """Play a scenario on a run over all FASTA files of a directory, with one in it; then another one comes."""

    async def played() -> None:
        spec = {"input": {"uris": [str(tmp_path / "*.fasta")], "shardBytes": 8}, "workers": {"count": 1}}
        async with bench(tmp_path, spec, is_working=False) as found:
            await found.reconciler._turn()
            assert found.status["shards"]["total"] == 2
            (tmp_path / "later.fasta").write_text(">c\nMKV\n")
            await scenario(found)

    asyncio.run(played())


def forget_input_uris(found: Bench) -> None:
    """run.json as an older version wrote it."""
    fields = json.loads(found.store.get(layout.RUN_KEY).body)
    del fields["input"]["uris"], fields["openedFor"], fields["checksum"]
    found.store.put_overwrite(layout.RUN_KEY, documents.encode(run_record.KIND, run_record.FORMAT_VERSION, fields))


@pytest.mark.parametrize("is_status_lost", [False, True])
def test_a_new_controller_goes_on_with_the_plan_of_the_first(tmp_path: Path, *, is_status_lost: bool) -> None:
    """An object that has come meanwhile under a pattern of the input is not part of the run, and stops nobody."""

    async def scenario(found: Bench) -> None:
        if is_status_lost:
            found.change(RUN, status={})
        change_spec(found, workers={"count": 2})
        await begun_anew(found)._turn()

        assert refusal(found) == ""
        assert found.status["shards"]["total"] == 2
        assert len(found.pods) == 2

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({"input": {"uris": ["{}/later.fasta", "{}/in.fasta"], "shardBytes": 8}}, "input.num_objects"),
        ({"input": {"uris": ["{}/*.fasta"], "shardBytes": 9}}, "shardBytes"),
        ({"output": {"uri": "{}/out", "dtype": "float16"}}, "model.dtype"),
    ],
)
def test_a_spec_that_asks_for_another_run_is_refused(tmp_path: Path, parts: dict[str, Any], what: str) -> None:
    """Also when the change was made while no controller ran."""

    async def scenario(found: Bench) -> None:
        filled = json.loads(json.dumps(parts).replace("{}", str(tmp_path)))
        change_spec(found, **filled)
        await begun_anew(found)._turn()

        assert f"{what}: this spec has" in refusal(found)

    play(tmp_path, scenario)


def test_another_resource_is_told_of_other_input(tmp_path: Path) -> None:
    """Whoever applies the run anew may mean the new object: the old output is not passed off for its result."""

    async def scenario(found: Bench) -> None:
        metadata = found.server.objects[RUN]["metadata"]
        found.change(RUN, metadata={**metadata, "uid": "another"}, status={})
        await begun_anew(found)._turn()

        assert "input.num_objects: this spec has 2, the output has 1" in refusal(found)

    play(tmp_path, scenario)


def test_what_an_older_version_did_not_keep_is_kept_from_the_next_look_on(tmp_path: Path) -> None:
    """A run that was begun before an upgrade is compared once, and then goes on as those that are begun after it."""

    async def scenario(found: Bench) -> None:
        kept = record(found)
        forget_input_uris(found)
        (tmp_path / "later.fasta").unlink()
        await begun_anew(found)._turn()
        (tmp_path / "later.fasta").write_text(">c\nMKV\n")
        await begun_anew(found)._turn()

        assert refusal(found) == ""
        assert record(found).input_uris == kept.input_uris
        assert (record(found).generation, record(found).version) == (1, 2)

    play(tmp_path, scenario)


async def restart(found: Bench) -> None:
    """A user asks for a new generation; the workers of the old one end, it is opened, and gets workers."""
    change_spec(found, resume="Restart")
    await end_pods(found)
    controller = begun_anew(found)
    for _ in range(3):
        await controller._turn()
        found.sleep(60)
    assert record(found).generation == 2
    assert found.pods


async def end_pods(found: Bench) -> None:
    """All pods go."""
    for pod in found.pods:
        found.server.remove(f"{PODS}/{pod['metadata']['name']}")
    await found.until(lambda: all(pod.is_deleted for pod in found.pods_known), "the pods to go")


@pytest.mark.parametrize("parts", [{"workers": {"count": 2}}, {"suspend": True}], ids=["scaled", "suspended"])
def test_a_restart_is_done_once_whatever_else_changes(tmp_path: Path, parts: dict[str, Any]) -> None:
    """`resume: Restart` stays in the spec: who scales or suspends the run does not ask for all of its work again."""

    async def scenario(found: Bench) -> None:
        await restart(found)
        for change in (parts, {"activeDeadlineSeconds": 1000}):
            change_spec(found, **change)
            await begun_anew(found)._turn()

        assert refusal(found) == ""
        assert record(found).generation == 2
        assert ledger.from_status(found.status).restarted_for == 4

    play(tmp_path, scenario)


@pytest.mark.parametrize("is_asked_anew", [False, True], ids=["another model", "Auto in between"])
def test_a_restart_is_done_again_when_it_is_asked_for_again(tmp_path: Path, *, is_asked_anew: bool) -> None:
    """By a spec that is another run's, or by whoever has taken it back and asks anew."""

    async def scenario(found: Bench) -> None:
        await restart(found)
        if is_asked_anew:
            change_spec(found, resume="Auto")
            await begun_anew(found)._turn()
            assert record(found).generation == 2
            change_spec(found, resume="Restart")
        else:
            change_spec(found, model={"name": "torch", "source": "m:f"})
        await end_pods(found)
        await begun_anew(found)._turn()

        assert refusal(found) == ""
        assert record(found).generation == 3

    play(tmp_path, scenario)


def test_a_restart_takes_what_is_there_now(tmp_path: Path) -> None:
    """The new generation has a plan of its own."""

    async def scenario(found: Bench) -> None:
        await restart(found)

        assert refusal(found) == ""
        assert found.status["shards"]["total"] == 3

    play(tmp_path, scenario)


@pytest.mark.parametrize("is_restored", [False, True], ids=["lost", "of a backup"])
def test_a_restart_that_is_done_is_not_done_again_when_its_note_is_lost(tmp_path: Path, *, is_restored: bool) -> None:
    """run.json says for which request a generation was opened: workers of it go on, and none is opened beside it."""

    async def scenario(found: Bench) -> None:
        before = found.status
        await restart(found)
        found.change(RUN, status=before if is_restored else {})
        await begun_anew(found)._turn()

        assert record(found).generation == 2
        assert ledger.from_status(found.status).restarted_for == 2
        assert not any(pod["metadata"].get("deletionTimestamp") for pod in found.pods)

    play(tmp_path, scenario)


def test_a_restart_that_fails_on_its_way_opens_one_generation(tmp_path: Path) -> None:
    """The store takes run.json and then nothing more for a while: once it does, the plan of that generation is written."""

    async def scenario() -> None:
        async with bench(tmp_path, is_working=False) as found:
            await found.reconciler._turn()
            await end_pods(found)
            change_spec(found, resume="Restart")
            committer = found.reconciler._opener.store._committer
            create, tries = committer.create_immutable, iter(range(100))

            def failing_twice(key: str, body: bytes) -> Any:
                if next(tries) < 2:
                    raise Unavailable(key, "away")
                return create(key, body)

            committer.create_immutable = failing_twice  # type: ignore[method-assign]
            for _ in range(2):
                await found.reconciler._turn()
                assert "away" in found.status["message"]
            await found.reconciler._turn()

            assert record(found).generation == 2
            assert ledger.from_status(found.status).restarted_for == 2
            assert list(found.store.list(layout.build_plan_key(2)))

    asyncio.run(scenario())
