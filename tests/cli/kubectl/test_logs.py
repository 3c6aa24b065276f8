"""Tests of `logs`: whose lines, in which words."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cli.kubectl.log_lines import readable
from cli.kubectl.logs import PREVIOUS_SHOWN, kept_tails
from contract.layout import build_log_key
from contract.store.local import LocalStore
from contract.store.protocol import Stored
from controller.ledger import Ledger, to_text
from tests.cli.kubectl.cluster import FakeCluster, resource
from tests.cli.kubectl.test_commands import STATUS
from tests.cli.outputs import make_output

LINE = json.dumps(
    {
        "time": "2026-03-01T12:00:01.250+00:00",
        "level": "warning",
        "message": "shard claimed",
        "pod": "swissprot-0-0",
        "shard": 3,
        "detail": "two words",
    }
)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (LINE, '12:00:01 warning shard claimed  shard=3 detail="two words"'),
        ("Traceback (most recent call last):", "Traceback (most recent call last):"),
        ("[1, 2]", "[1, 2]"),
        ('{"other": 1}', '{"other": 1}'),
        ('{"message": "x\\u001b[2J"}', "--:--:-- info    x\\x1b[2J"),
        ('{"message": "x", "traceback": "a\\nb"}', "--:--:-- info    x\n    a\n    b"),
    ],
    ids=["json", "text", "list", "no message", "control characters", "traceback"],
)
def test_json_becomes_readable(line: str, expected: str) -> None:
    """What is no line of the worker's log stays as it is; nothing acts on the terminal."""
    assert readable(line) == expected


def test_lines_of_several_workers_begin_with_their_slot(cluster: FakeCluster) -> None:
    """In the order of slots."""
    cluster.apply(**STATUS)
    for slot in (1, 0):
        cluster.add_pod(slot)
        cluster.server.logs[f"swissprot-{slot}-0"] = f"{LINE}\nplain {slot}\n"

    result = cluster.run("logs", "swissprot")

    assert [line[:4] for line in result.stdout.splitlines()] == ["[0] ", "[0] ", "[1] ", "[1] "]
    assert "[1] plain 1" in result.stdout.splitlines()


@pytest.mark.parametrize("choice", [("--slot", "1"), ("--worker", "swissprot-1-0")])
def test_one_worker_can_be_chosen(cluster: FakeCluster, choice: tuple[str, str]) -> None:
    """By slot or by pod; then without a prefix, and raw as it was written."""
    cluster.apply(**STATUS)
    for slot in (0, 1):
        cluster.add_pod(slot)
        cluster.server.logs[f"swissprot-{slot}-0"] = f"{LINE}\nplain {slot}"

    assert cluster.run("logs", "swissprot", *choice, "--raw").stdout == f"{LINE}\nplain 1\n"


def test_a_worker_that_has_not_started_has_no_lines(cluster: FakeCluster) -> None:
    """The error says where to look."""
    cluster.apply(**STATUS)
    cluster.add_pod(0, state="ContainerCreating")

    result = cluster.run("logs", "swissprot")

    assert result.exit_code == 64
    assert "no such worker has started" in result.stderr


@pytest.mark.parametrize("options", [(), ("-f",), ("--previous",)], ids=["logs", "follow", "previous"])
def test_a_run_whose_pods_are_gone_says_what_is_kept_and_where(
    cluster: FakeCluster, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """After a success nothing is left but the ends of the logs of workers that failed, if any did."""
    made = make_output(tmp_path)
    cluster.apply(output=made.uri, **{**STATUS, "phase": "Succeeded", "memory": to_text(Ledger(store_generation=1))})

    result = cluster.run("logs", "swissprot", *options)

    assert result.exit_code == 64
    assert (
        f"only of workers that fail the end is kept: 64 KiB in the store, below {made.uri}/g0001/logs/" in result.stderr
    )
    assert ("kubectl inferencerun logs swissprot --previous" in result.stderr) is (options != ("--previous",))


def test_following_ends_with_the_run(cluster: FakeCluster) -> None:
    """When it is over and all lines are read."""
    cluster.apply(**{**STATUS, "phase": "Succeeded"})
    cluster.add_pod(0, state="ended")
    cluster.server.logs["swissprot-0-0"] = f"{LINE}\n"

    result = cluster.run("logs", "swissprot", "-f", "--slot", "0")

    assert result.exit_code == 0, result.output
    assert result.stdout == '12:00:01 warning shard claimed  shard=3 detail="two words"\n'


def test_the_last_words_of_workers_that_are_gone(cluster: FakeCluster, tmp_path: Path) -> None:
    """From the store: which worker, then its lines; by name or by slot."""
    made = make_output(tmp_path)
    cluster.apply(output=made.uri, **STATUS)
    for slot in (0, 1):
        key = build_log_key(1, f"swissprot-{slot}-3", f"uid-{slot}")
        made.store.put_create(key, f"first {slot}\n{LINE}\nKilled\n".encode())

    everything = cluster.run("logs", "swissprot", "--previous", "--tail", "1")
    by_slot = cluster.run("logs", "swissprot", "--previous", "--slot", "1", "--raw")
    nobody = cluster.run("logs", "swissprot", "--previous", "--worker", "swissprot-0-0")

    assert sorted(everything.stdout.splitlines()) == ["== swissprot-0-3", "== swissprot-1-3", "Killed", "Killed"]
    assert by_slot.stdout.splitlines() == ["== swissprot-1-3", "first 1", LINE, "Killed"]
    assert nobody.exit_code == 64


def test_of_many_logs_only_those_that_are_shown_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest ten: thousands of 64 KiB would take minutes and the memory of this machine."""
    made = make_output(tmp_path)
    for number in range(PREVIOUS_SHOWN + 2):
        key = build_log_key(1, f"swissprot-0-{number}", f"uid-{number}")
        made.store.put_create(key, b"Killed\n")
        os.utime(tmp_path / "out" / key, (number, number))
    read: list[str] = []
    get = LocalStore.get

    def noted(store: LocalStore, key: str, **options: int | None) -> Stored:
        read.append(key)
        return get(store, key, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalStore, "get", noted)
    tails = kept_tails(resource(made.uri), pod_name=None, slot=None)

    assert [worker for worker, _ in tails] == [f"swissprot-0-{number}" for number in range(2, PREVIOUS_SHOWN + 2)]
    assert sum("/logs/" in key for key in read) == PREVIOUS_SHOWN


def test_what_is_gone_cannot_be_followed(cluster: FakeCluster) -> None:
    """Wrong usage."""
    assert cluster.run("logs", "swissprot", "-f", "--previous").exit_code == 2
