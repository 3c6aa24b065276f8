"""`inferencerun run FILE`: a run on this machine, without Kubernetes: one process per worker instead of one pod."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click
import yaml

from cli.coordinator import Coordinator, Turn, restored_memory, with_workers
from cli.coordinator_lock import CoordinatorLock
from cli.live import Panel, Plain, Silent
from cli.output import current_time, new_commit_id
from cli.present import duration_text, json_option, print_json, print_pairs
from cli.processes import ProcessTable
from contract import run_record
from contract.errors import SpecError
from contract.manifest import ShardManifest
from contract.names import ENV_VIRAL_MODE, Phase
from contract.plan import InputObject
from contract.run_record import RunRecord
from contract.store.commit import Committer
from contract.store.inputs import list_inputs
from contract.store.open import normalised_uri, open_store
from contract.store.probe import probe
from controller import api
from controller.api import InferenceRun, Resume
from controller.run_store import RunStore, wanted_record
from controller.status import status_fields

GRACE = timedelta(seconds=30)
"""From SIGTERM to SIGKILL, as on the system this descends from and as Kubernetes' own default."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, by the shells' convention."""


@click.command(name="run")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--workers", type=click.IntRange(min=1), default=None, help="Worker processes; workers.count if not given."
)
@click.option("--restart", is_flag=True, help="Open a new generation: everything is computed anew, the old rows stay.")
@json_option
def command(file: Path, *, workers: int | None, restart: bool, as_json: bool) -> None:
    """Run the InferenceRun in FILE on this machine.

    The same command resumes what it did not finish. Ctrl-C drains: workers commit what is finished, then end.
    Exit code 0: succeeded; 1: failed (the summary says why); 130: interrupted.
    """
    run = load_run(file)
    if workers is not None:
        run = with_workers(run, workers)
    started_at = current_time()
    stop = Interrupts()
    committer = Committer(open_store(run.spec.output.uri))
    objects = list_inputs(run.spec.input.uris, shard_bytes=run.spec.input.shard_bytes)
    probe(committer.store, nonce=new_commit_id())
    lock = CoordinatorLock(committer, new_id=new_commit_id)
    remembered = lock.acquire(started_at)
    try:
        turn = _coordinate(run, objects, committer, lock, remembered, stop, restart=restart, as_json=as_json)
    finally:
        lock.release(current_time())
    was_interrupted = stop.count > 0 and turn.status.phase not in {Phase.SUCCEEDED, Phase.FAILED}
    _report(run, turn, started_at, was_interrupted=was_interrupted, as_json=as_json)
    if turn.status.phase is not Phase.SUCCEEDED:
        sys.exit(INTERRUPTED if was_interrupted else 1)


def load_run(file: Path) -> InferenceRun:
    """The run in a YAML file, with its output as an absolute URI. Raises SpecError."""
    try:
        documents = [item for item in yaml.safe_load_all(file.read_text()) if item is not None]
    except yaml.YAMLError as error:
        raise SpecError(f"{file}: not YAML: {error}") from error
    if len(documents) != 1:
        raise SpecError(f"{file}: holds {len(documents)} documents; give one InferenceRun a file")
    run = api.parse_run(documents[0], viral_mode=os.environ.get(ENV_VIRAL_MODE, ""))
    output = replace(run.spec.output, uri=normalised_uri(run.spec.output.uri))
    return replace(run, spec=replace(run.spec, output=output))


def _coordinate(
    run: InferenceRun,
    objects: tuple[InputObject, ...],
    committer: Committer,
    lock: CoordinatorLock,
    remembered: dict[str, Any],
    stop: Interrupts,
    *,
    restart: bool,
    as_json: bool,
) -> Turn:
    store = RunStore(committer, new_id=new_commit_id)
    wanted = wanted_record(run, objects, uid=new_commit_id())
    restarts = restart or (run.spec.resume is Resume.RESTART and _must_restart(store, wanted))
    opened = store.open_run(wanted, objects, restarts=restarts)
    directory = work_directory(run.spec.output.uri, opened.record.generation)
    display = Silent() if as_json else Panel() if sys.stderr.isatty() else Plain()
    with display:
        coordinator = Coordinator(
            run=run,
            opened=opened,
            store=store,
            lock=lock,
            processes=ProcessTable(directory, node=platform.node(), grace=GRACE),
            memory=restored_memory({} if restarts else remembered),
            display=display,
            now=current_time,
            environment=lambda slot: _environment(slot, run.spec.workers.count),
            grace=GRACE,
            wake=stop.wake,
            interrupted=lambda: stop.count,
        )
        turn = coordinator.work()
    if turn.status.phase is Phase.SUCCEEDED:
        shutil.rmtree(directory, ignore_errors=True)
    elif not as_json:
        click.echo(f"logs of the workers: {directory}", err=True)
    return turn


def _must_restart(store: RunStore, wanted: RunRecord) -> bool:
    """`resume: Restart` in the file: anew when the generation there is finished or another run's.

    An unfinished one of this very run is what an earlier start of this file opened; it is resumed, or no restart that
    was interrupted could ever end.
    """
    found = store.read_record()
    return found is not None and (bool(run_record.differences(wanted, found)) or store.is_finalized(found.generation))


def work_directory(output_uri: str, generation: int) -> Path:
    """Where flight recorders and logs of a run's workers lie: the same for each coordinator of this user on this host."""
    digest = hashlib.sha256(output_uri.encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"inferencerun-{os.getuid()}" / f"{digest}-g{generation:04d}"


def _environment(slot: int, count: int) -> dict[str, str]:
    environment: dict[str, str] = {}
    if "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // max(1, count)))
    devices = _devices()
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return environment


def _devices() -> list[str]:
    """The GPUs this process may use; asked of the driver's own tool, since importing torch here would cost seconds."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [item for item in visible.split(",") if item]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return [str(number) for number, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


class Interrupts:
    """Counts Ctrl-C and SIGTERM, and wakes the coordinator for them and for each worker that ends."""

    def __init__(self) -> None:
        self.count = 0
        self.wake = threading.Event()
        signal.signal(signal.SIGINT, self._interrupt)
        signal.signal(signal.SIGTERM, self._interrupt)
        signal.signal(signal.SIGCHLD, lambda *_: self.wake.set())

    def _interrupt(self, *_: object) -> None:
        self.count += 1
        self.wake.set()


def summary(run: InferenceRun, turn: Turn, elapsed_s: float) -> dict[str, Any]:
    """What became of the run, JSON-able."""
    status = status_fields(turn.status)
    return {
        "run": run.name,
        "output": run.spec.output.uri,
        "phase": status["phase"],
        "message": status["message"],
        "records": sum(item.records for found in turn.manifests.values() for item in found.checkpoints),
        "quarantined": status["quarantined"],
        "shards": status["shards"],
        "restarts": status["restarts"],
        "goodput": status["goodput"],
        "workLostSeconds": round(work_lost_s(turn.manifests), 1),
        "elapsedSeconds": round(elapsed_s, 1),
        "lastFailures": status["lastFailures"],
    }


def work_lost_s(manifests: dict[int, ShardManifest]) -> float:
    """Worker seconds spent on shards that ended in no commit: held by ended attempts, less what they committed."""
    lost = 0.0
    for found in manifests.values():
        for attempt in found.attempts:
            committed = sum(item.seconds for item in found.checkpoints if item.epoch == attempt.epoch)
            lost += max(0.0, (attempt.held_seconds or 0.0) - committed)
    return lost


def _report(run: InferenceRun, turn: Turn, started_at: datetime, *, was_interrupted: bool, as_json: bool) -> None:
    elapsed_s = (current_time() - started_at).total_seconds()
    fields = summary(run, turn, elapsed_s)
    if as_json:
        print_json({**fields, "interrupted": was_interrupted})
        return
    by_class = ", ".join(f"{name} {count}" for name, count in sorted(fields["restarts"]["byClass"].items())) or "none"
    print_pairs(
        (
            ("phase", fields["phase"] + (" (interrupted; the same command resumes)" if was_interrupted else "")),
            *((("why", fields["message"]),) if fields["message"] else ()),
            ("records", fields["records"]),
            ("quarantined", fields["quarantined"]),
            ("shards", f"{fields['shards']['complete']} complete, {fields['shards']['failed']} failed"),
            ("restarts", by_class),
            ("work lost", duration_text(fields["workLostSeconds"])),
            ("elapsed", duration_text(elapsed_s)),
            ("output", fields["output"]),
        )
    )
