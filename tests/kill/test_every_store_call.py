"""A worker killed at every single store call of a run, then resumed: nothing lost, nothing doubled, the same rows."""

from __future__ import annotations

import signal
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from contract import layout, manifest
from contract.manifest import ShardStatus
from contract.names import ExitCode
from contract.store.commit import Committer
from contract.store.local import LocalStore
from controller.actions import ReleaseShard
from controller.memory import RunMemory
from controller.observed import Evidence, Observed, WorkerState, WorkerView
from controller.planner import plan
from controller.run_store import RunStore
from tests import make
from tests.kill.killing_store import KillingStore
from tests.kill.one_worker import build_worker, in_fork, rows_of, settings_for, write_plan

MAX_CALLS = 200
"""Far above the calls of the undisturbed run; reaching it means that the run does not come to an end."""


@pytest.fixture(scope="module")
def proteins(tmp_path_factory: pytest.TempPathFactory) -> str:
    """24 records, one of them empty, so that checkpoints and quarantine are both under fire."""
    path = tmp_path_factory.mktemp("input") / "proteins.fasta"
    records = [
        f">p{number} x\n{'ACDEFGHIKLMNPQRSTVWY'[number % 20] * 3}{'MKV' * (number % 9)}\n" for number in range(24)
    ]
    records[13] = ">empty\n"
    path.write_text("".join(records))
    return f"file://{path}"


def run_worker(root: Path, *, uid: str, kill_at: int | None = None, is_after: bool = False):
    """A worker's life, killed at a store call or not; returns how it ended and how many calls it made."""
    store = KillingStore(LocalStore(root), kill_at=kill_at, is_after=is_after)

    def work() -> bytes:
        worker = build_worker(store, settings_for(f"file://{root}"), uid=uid, flight=root.parent / f"{uid}.flight")
        assert worker.run() is ExitCode.NO_WORK_LEFT
        worker.model.close()
        return str(store.num_calls).encode()

    return in_fork(work)


def release_dead(root: Path, shards, *, uid: str) -> None:
    """What the coordinator does once it sees that the worker is dead: the planner's own releases, nothing else."""
    store = RunStore(Committer(LocalStore(root)), new_id=iter_ids(uid))
    observed = Observed(
        manifests=store.read_manifests(1),
        workers=(
            WorkerView(
                name=uid,
                uid=uid,
                slot=0,
                attempt=0,
                node="here",
                state=WorkerState.ENDED,
                evidence=Evidence(signal=signal.SIGKILL),
            ),
        ),
        is_complete=True,
    )
    decision = plan(
        run=make.run(), plan=shards, observed=observed, memory=RunMemory(), now=datetime(2026, 1, 1, tzinfo=UTC)
    )
    for action in decision.actions:
        if isinstance(action, ReleaseShard):
            assert store.release(replace(action, not_before=None), 1)


def iter_ids(prefix: str):
    """Ids that differ from call to call."""
    numbers = iter(range(10**6))
    return lambda: f"{prefix}-release-{next(numbers)}"


@pytest.fixture(scope="module")
def undisturbed(proteins: str, tmp_path_factory: pytest.TempPathFactory):
    """Rows and number of store calls of the run that nobody disturbs."""
    root = tmp_path_factory.mktemp("undisturbed") / "out"
    write_plan(LocalStore(root), proteins, shard_bytes=180)
    ended = run_worker(root, uid="only")
    assert ended.exit_code == 0
    return rows_of(root), int(ended.seen)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_worker_killed_at_any_store_call_loses_and_doubles_nothing(
    proteins: str, undisturbed, tmp_path: Path
) -> None:
    """For every store call k, a SIGKILL just before and just after k, then a resume, gives the undisturbed rows."""
    expected, num_calls = undisturbed
    assert 15 < num_calls < MAX_CALLS, num_calls
    assert len(expected) == 23

    num_killed = 0
    for kill_at in range(num_calls):
        for is_after in (False, True):
            root = tmp_path / f"{kill_at}-{is_after}"
            shards = write_plan(LocalStore(root), proteins, shard_bytes=180)
            ended = run_worker(root, uid="first", kill_at=kill_at, is_after=is_after)
            assert ended.signal == signal.SIGKILL, ended
            num_killed += 1
            release_dead(root, shards, uid="first")
            assert run_worker(root, uid="second").exit_code == 0

            assert rows_of(root) == expected, f"killed {'after' if is_after else 'before'} call {kill_at}"
            for shard in shards.shards:
                key = layout.build_shard_key(1, shard.shard)
                found = manifest.from_json(LocalStore(root).get(key).body, where=key)
                assert found.status is ShardStatus.COMPLETE
    assert num_killed == 2 * num_calls
