"""A run that knows no store but Google's: input, output, a worker that is killed, replies that are lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from contract import process_identity
from contract.store.gcs import GcsStore
from tests.cli.local_run import LocalRun, wait_until
from tests.faults import Fault, FaultProxy
from tests.gated_model import Gated
from tests.gcs_server import FakeGcs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SEQUENCES = ["MKVA" * (1 + number % 6) + "ACDEFGHIKLMNPQRSTVWY"[number % 20] for number in range(40)]


def test_a_worker_is_killed_and_every_row_is_there(gcs_uri: str, tmp_path: Path) -> None:
    """SIGKILL of a worker in the middle of a shard: replaced, nothing lost or doubled, verified, exported in order."""
    sequences = ["GATE" + item if number in {9, 39} else item for number, item in enumerate(SEQUENCES)]
    run = LocalRun(
        directory=tmp_path,
        sequences=sequences,
        store_uri=gcs_uri,
        model={
            "name": "torch",
            "source": "tests.gated_model:build",
            "parameters": {"gate": str(tmp_path / "gate")},
            "maxTokensPerBatch": 40,
        },
    )
    run.write()
    root = gcs_uri.removesuffix("/runs/one")
    body = (tmp_path / "in.fasta").read_bytes()
    GcsStore(root.removeprefix("gs://"), "in").put_create("proteins.fasta", body)
    run.spec = {"input": {"uris": [f"{root}/in/"], "shardBytes": -(-len(body) // 4)}}
    process = run.start()
    owner = wait_until(lambda: next((found.owner for found in run.manifests() if found.owner and found.done), None))

    os.kill(process_identity.parse(owner.uid).pid, signal.SIGKILL)
    wait_until(lambda: sum(found.restarts.total for found in run.manifests()))
    (tmp_path / "gate").touch()
    ended = run.finish(process)
    verified = run.call("verify", gcs_uri, "--json")
    exported = run.call("export", gcs_uri, str(tmp_path / "rows.npy"), "--json")

    assert (ended.code, ended.fields["records"], ended.fields["restarts"]["total"]) == (0, 40, 1), ended.errors
    assert verified.code == 0, verified.output
    assert exported.code == 0, exported.output
    assert np.array_equal(
        np.load(tmp_path / "rows.npy"), np.stack([Gated()([sequence])[0].numpy() for sequence in sequences])
    )


def test_lost_replies_and_refusals_on_every_kind_of_put_change_nothing(
    gcs_server: FakeGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies lost after the put was applied, 409 and 503 on claims, data and commits: exactly once all the same."""
    bucket = gcs_server.new_bucket()
    with FaultProxy(gcs_server.port) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.endpoint_url)
        for nth, fault in enumerate(
            (Fault.DROP_REPLY, Fault.ERROR_AFTER, Fault.CONFLICT, Fault.SLOW_DOWN, Fault.DROP_BEFORE, Fault.DROP_REPLY)
        ):
            for path in ("/shards/", "/data/"):
                proxy.inject(fault, method="PUT", path=path, nth=1 + 2 * nth)
        for path in ("run.json", "plan.json", "index.json", "_SUCCESS", "coordinator.json"):
            proxy.inject(Fault.DROP_REPLY, method="PUT", path=path)
        run = LocalRun(directory=tmp_path, sequences=SEQUENCES, store_uri=f"gs://{bucket}/runs/faulty")
        ended = run.run()
        verified = run.call("verify", run.output, "--json")

    assert (ended.code, ended.fields["records"], ended.fields["quarantined"]) == (0, 40, 0), ended.errors
    assert ended.fields["restarts"]["total"] == 0
    assert verified.code == 0, verified.output
