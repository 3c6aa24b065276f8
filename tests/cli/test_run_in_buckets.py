"""`inferencerun run` in buckets over HTTP, undisturbed and behind a proxy that loses replies."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.names import ExitCode
from contract.store.open import open_store
from contract.store.s3 import S3Store
from tests.cli.local_run import LocalRun
from tests.faults import Fault, FaultProxy
from tests.servers import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SEQUENCES = ["MKVA" * (1 + number % 6) + "ACDEFGHIKLMNPQRSTVWY"[number % 20] for number in range(40)]


def test_input_and_output_in_a_bucket(bucket_uri: str, tmp_path: Path) -> None:
    """A FASTA is read from a bucket, rows are written to it, and `verify` reads both back."""
    run = LocalRun(directory=tmp_path, sequences=SEQUENCES, store_uri=bucket_uri)
    run.write()
    root = bucket_uri.removesuffix("/runs/one")
    open_store(f"{root}/in").put_create("proteins.fasta", (tmp_path / "in.fasta").read_bytes())
    run.spec = {"input": {"uris": [f"{root}/in/*.fasta"], "shardBytes": 200}}

    ended = run.run()
    verified = run.call("verify", bucket_uri, "--json")

    assert (ended.code, ended.fields["phase"], ended.fields["records"]) == (0, "Succeeded", 40), ended.errors
    assert verified.code == 0, verified.output


def test_lost_replies_conflicts_and_errors_on_every_kind_of_put_change_nothing(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies lost after the put was applied, 409, 412 and 503 on claims, data and commits: exactly once all the same."""
    s3_server.use(monkeypatch)
    uri = f"s3://{s3_server.new_bucket()}/runs/faulty"
    with FaultProxy(s3_server.port) as proxy:
        for nth, fault in enumerate(
            (Fault.DROP_REPLY, Fault.ERROR_AFTER, Fault.CONFLICT, Fault.SLOW_DOWN, Fault.DROP_BEFORE, Fault.DROP_REPLY)
        ):
            for path in ("/shards/", "/data/"):
                proxy.inject(fault, method="PUT", path=path, nth=1 + 2 * nth)
        for path in ("run.json", "plan.json", "index.json", "_SUCCESS", "coordinator.json"):
            proxy.inject(Fault.DROP_REPLY, method="PUT", path=path)
        run = LocalRun(
            directory=tmp_path,
            sequences=SEQUENCES,
            store_uri=uri,
            environment={"AWS_ENDPOINT_URL_S3": proxy.endpoint_url},
        )
        ended = run.run()
        num_calls = proxy.num_calls
    run.environment = {}
    verified = run.call("verify", uri, "--json")

    assert (ended.code, ended.fields["records"], ended.fields["quarantined"]) == (0, 40, 0), ended.errors
    assert ended.fields["restarts"]["total"] == 0
    assert verified.code == 0, verified.output
    assert num_calls > 40


def test_a_store_that_ignores_conditions_is_refused_before_anything_is_written(
    ignoring_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe's error names what the store does wrong; exit 69; no run.json, no plan."""
    ignoring_server.use(monkeypatch)
    bucket = ignoring_server.new_bucket()
    run = LocalRun(directory=tmp_path, sequences=SEQUENCES, store_uri=f"s3://{bucket}/out")

    ended = run.run()

    assert ended.code == ExitCode.STORE_REFUSED
    assert "condition" in ended.errors
    assert [item.key for item in S3Store(bucket).list("out/")] == []


def test_a_missing_bucket_is_named_with_the_remedy(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typing error in the bucket's name ends at once with exit 69 and the name."""
    s3_server.use(monkeypatch)
    run = LocalRun(directory=tmp_path, sequences=SEQUENCES, store_uri="s3://no-such-bucket/out")

    ended = run.run()

    assert ended.code == ExitCode.STORE_REFUSED
    assert "no-such-bucket" in ended.errors
