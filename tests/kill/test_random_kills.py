"""A hundred SIGKILLs at random moments of one run, at workers, model processes and the coordinator."""

from __future__ import annotations

import os
import random
import subprocess
import threading
from pathlib import Path

import psutil
import pytest

from tests.cli.local_run import LocalRun, wait_until
from tests.gated_model import Gated

NUM_KILLS = int(os.environ.get("NUM_KILLS", "100"))
NUM_RECORDS = 15_000
"""Five minutes of work for two workers as long as the kills go on, then seconds: what is left is not paced."""
LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def slow_run(tmp_path: Path) -> LocalRun:
    """Forty shards of a model that takes 40 ms for a record until the gate is there; a checkpoint every ten records.

    No record waits at the gate: with all others done, each kill would hit that one, and it would rightly be quarantined.
    """
    sequences = [LETTERS[n % 20] * (1 + n % 11) + "MKVA" * (n % 3) + LETTERS[n // 20 % 20] for n in range(NUM_RECORDS)]
    run = LocalRun(
        directory=tmp_path,
        sequences=sequences,
        model={
            "name": "torch",
            "source": "tests.gated_model:build",
            "parameters": {"record_seconds": 0.04, "gate": str(tmp_path / "gate")},
            "maxTokensPerBatch": 60,
        },
    )
    run.write()
    size = (tmp_path / "in.fasta").stat().st_size
    run.spec = {
        "input": {"uris": [str(tmp_path / "in.fasta")], "shardBytes": size // 40},
        "checkpoint": {"everyRecords": 10},
        "failurePolicy": {"maxUnexplainedKills": 1000, "backoff": {"replaceSeconds": 0}},
    }
    return run


def workers_of(coordinator: subprocess.Popen[str]) -> list[psutil.Process]:
    """The worker processes that the coordinator has started and that live."""
    try:
        children = psutil.Process(coordinator.pid).children()
        return [child for child in children if "worker" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE]
    except psutil.NoSuchProcess:
        return []


def model_of(worker: psutil.Process) -> psutil.Process | None:
    """The model process of a worker: the fork server's child."""
    try:
        for child in worker.children():
            models = [item for item in child.children() if item.status() != psutil.STATUS_ZOMBIE]
            if models:
                return models[0]
    except psutil.NoSuchProcess:
        pass
    return None


class Assailant:
    """Kills what belongs to a run, and starts the coordinator again when it was the victim."""

    def __init__(self, run: LocalRun, chance: random.Random) -> None:
        self.process = run.start()
        self.num_killed = 0
        self._run = run
        self._chance = chance

    def kill_coordinator(self) -> None:
        """SIGKILL the coordinator while it has workers, then start the same command again."""
        wait_until(lambda: workers_of(self.process))
        self.process.kill()
        self.process.communicate()
        self.num_killed += 1
        self.process = self._run.start()

    def kill_worker(self) -> None:
        """SIGKILL any worker."""
        self._kill(self._chance.choice(wait_until(lambda: workers_of(self.process))))

    def kill_model(self) -> None:
        """SIGKILL the model process of any worker that has one."""
        victim = wait_until(lambda: [model for worker in workers_of(self.process) if (model := model_of(worker))])
        self._kill(self._chance.choice(victim))

    def _kill(self, victim: psutil.Process) -> None:
        if victim.is_running():  # the very process, not one that has its id by now
            victim.kill()
            self.num_killed += 1


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_random_kills_of_everything_in_one_run_lose_and_double_nothing(tmp_path: Path) -> None:
    """After a hundred SIGKILLs the run succeeds, `verify` accepts it, and every row is the undisturbed one."""
    seed = int(os.environ.get("KILL_SEED", random.SystemRandom().randrange(10**6)))
    chance = random.Random(seed)
    kinds = ["model"] * (NUM_KILLS * 6 // 10) + ["worker"] * (NUM_KILLS * 3 // 10)
    kinds += ["coordinator"] * (NUM_KILLS - len(kinds))
    chance.shuffle(kinds)
    run = slow_run(tmp_path)
    assailant = Assailant(run, chance)
    moment = threading.Event()

    for kind in kinds:
        moment.wait(chance.uniform(0.0, 0.5))
        {
            "model": assailant.kill_model,
            "worker": assailant.kill_worker,
            "coordinator": assailant.kill_coordinator,
        }[kind]()
    (tmp_path / "gate").touch()
    ended = run.finish(assailant.process, timeout_s=600)
    verified = run.call("verify", run.output, "--json")

    hint = f"KILL_SEED={seed}"
    assert assailant.num_killed > NUM_KILLS * 0.9, hint
    assert ended.code == 0, (hint, ended.errors)
    assert ended.fields["quarantined"] == 0, hint
    assert verified.code == 0, (hint, verified.output)
    assert run.rows() == {f"r{n}": Gated()([item])[0].tolist() for n, item in enumerate(run.sequences)}, hint
