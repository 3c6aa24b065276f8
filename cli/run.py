"""`inferencerun run FILE`: a run on this machine, without Kubernetes: one process per worker instead of one pod."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click
import yaml

from cli.coordinator import Coordinator, Turn, restored_memory, with_workers
from cli.coordinator_lock import CoordinatorLock
from cli.interrupts import Interrupts
from cli.live import Panel, Plain, Silent
from cli.output import current_time, new_commit_id
from cli.present import json_option, print_json, print_pairs
from cli.processes import ProcessTable
from cli.texts import duration_text
from contract import run_record
from contract.errors import Fenced, GpuHardwareError, SpecError
from contract.manifest import ShardManifest
from contract.names import ENV_VIRAL_MODE, Phase
from contract.plan import InputObject
from contract.run_record import RunRecord
from contract.store.commit import Committer
from contract.store.errors import StoreError
from contract.store.inputs import list_inputs
from contract.store.open import normalised_uri, open_store
from contract.store.probe import probe
from controller import api
from controller.api import InferenceRun, ModelName, Resume
from controller.run_store import RunStore, wanted_record
from controller.status import status_fields

GRACE = timedelta(seconds=30)
"""From SIGTERM to SIGKILL, as on the system this descends from and as Kubernetes' own default."""

DRIVER_TIMEOUT_S = 60.0
"""Eight devices without persistence mode answer in about 20 s."""

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

    The same command resumes what it did not finish. Ctrl-C drains: workers commit what is finished, then end; a second one
    kills them. Exit code 0: succeeded; 1: failed, or no worker can load the model (the summary says why); 130: interrupted.
    """
    # Until workers run there is nothing to drain, and dying at any line is harmless: no start-up waits for a mute store.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    run = load_run(file)
    if workers is not None:
        run = with_workers(run, workers)
    _refuse_idle(run)
    started_at = current_time()
    committer = Committer(open_store(run.spec.output.uri))
    objects = list_inputs(run.spec.input.uris, shard_bytes=run.spec.input.shard_bytes)
    probe(committer.store, nonce=new_commit_id())
    lock = CoordinatorLock(committer, new_id=new_commit_id)
    remembered = lock.acquire(started_at)
    try:
        ended = _coordinate(run, objects, committer, lock, remembered, restart=restart, as_json=as_json)
    except (StoreError, Fenced):
        # The store does not answer, or the lock is another's by now. Our end frees it all the same.
        raise
    except Exception:
        _sign_off(lock)
        raise
    _sign_off(lock)
    _report(run, ended, started_at, as_json=as_json)
    if ended.turn.status.phase is not Phase.SUCCEEDED:
        sys.exit(INTERRUPTED if ended.was_interrupted else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How the coordinator's work ended."""

    turn: Turn
    was_interrupted: bool
    logs: Path | None
    """Where the workers' logs are; None once the run has succeeded."""


def load_run(file: Path) -> InferenceRun:
    """The run in a YAML file, with output and weights as absolute URIs. Raises SpecError."""
    try:
        documents = [item for item in yaml.safe_load_all(file.read_text()) if item is not None]
    except yaml.YAMLError as error:
        raise SpecError(f"{file}: not YAML: {error}") from error
    if len(documents) != 1:
        raise SpecError(f"{file}: holds {len(documents)} documents; give one InferenceRun a file")
    run = api.parse_run(documents[0], viral_mode=os.environ.get(ENV_VIRAL_MODE, ""))
    output = replace(run.spec.output, uri=normalised_uri(run.spec.output.uri))
    model = run.spec.model
    if model.name is ModelName.ESM2 and not model.source.startswith("random:"):
        model = replace(model, source=normalised_uri(model.source))
    return replace(run, spec=replace(run.spec, output=output, model=model))


def _refuse_idle(run: InferenceRun) -> None:
    """Raise SpecError for what makes sense on a cluster only, where somebody can change the resource while it waits."""
    if run.spec.is_suspended:
        raise SpecError("spec.suspend is true, so nothing would ever run here; remove it, then run this again")
    if run.spec.workers.count == 0:
        raise SpecError("spec.workers.count is 0, so nothing would ever run here; raise it, or give --workers N")


def _sign_off(lock: CoordinatorLock) -> None:
    """Release the lock. A failure changes nothing of what became of the run, and must not hide it."""
    try:
        lock.release(current_time())
    except (StoreError, Fenced) as error:
        click.echo(f"warning: could not sign off, so a start on another host has to wait a minute: {error}", err=True)


def _coordinate(
    run: InferenceRun,
    objects: tuple[InputObject, ...],
    committer: Committer,
    lock: CoordinatorLock,
    remembered: dict[str, Any],
    *,
    restart: bool,
    as_json: bool,
) -> Ended:
    store = RunStore(committer, new_id=new_commit_id)
    wanted = wanted_record(run, objects, uid=new_commit_id())
    restarts = restart or (run.spec.resume is Resume.RESTART and _must_restart(store, wanted))
    opened = store.open_run(wanted, objects, restarts=restarts)
    directory = work_directory(run.spec.output.uri, opened.record.generation)
    devices = _devices()
    display = Silent() if as_json else Panel() if sys.stderr.isatty() else Plain()
    is_success = False
    try:
        with Interrupts() as interrupts, display:
            coordinator = Coordinator(
                run=run,
                opened=opened,
                store=store,
                lock=lock,
                processes=ProcessTable(directory, node=platform.node(), grace=GRACE),
                memory=restored_memory({} if restarts else remembered),
                display=display,
                now=current_time,
                environment=lambda slot: _environment(slot, run.spec.workers.count, devices),
                grace=GRACE,
                interrupts=interrupts,
            )
            turn = coordinator.work()
        is_success = turn.status.phase is Phase.SUCCEEDED
    finally:
        if is_success:
            shutil.rmtree(directory.parent, ignore_errors=True)
        else:
            click.echo(f"logs of the workers: {directory}", err=True)
    return Ended(
        turn=turn,
        was_interrupted=interrupts.count > 0 and turn.status.phase not in {Phase.SUCCEEDED, Phase.FAILED},
        logs=None if is_success else directory,
    )


def _must_restart(store: RunStore, wanted: RunRecord) -> bool:
    """`resume: Restart` in the file: anew when the generation there has ended, well or badly, or is another run's.

    An unfinished one of this very run is what an earlier start of this file opened; it is resumed, or no restart that
    was interrupted could ever end.
    """
    found = store.read_record()
    return found is not None and (bool(run_record.differences(wanted, found)) or store.has_ended(found.generation))


def work_directory(output_uri: str, generation: int) -> Path:
    """Where flight recorders and logs of a run's workers lie: the same for each coordinator of this user on this host.

    Raises:
        SpecError: the user's directory is somebody else's, who could read logs there, or forge flight recorders.
    """
    private = Path(tempfile.gettempdir()) / f"inferencerun-{os.getuid()}"
    private.mkdir(mode=0o700, exist_ok=True)
    status = private.lstat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        raise SpecError(f"{private} is not a directory of this user: remove it, or set TMPDIR to a directory of yours")
    digest = hashlib.sha256(output_uri.encode()).hexdigest()[:12]
    return private / digest / f"g{generation:04d}"


def _environment(slot: int, count: int, devices: list[str]) -> dict[str, str]:
    environment: dict[str, str] = {}
    if "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // max(1, count)))
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
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False, timeout=DRIVER_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise GpuHardwareError(
            f"nvidia-smi says nothing for {DRIVER_TIMEOUT_S:g} s: the driver hangs; restart the machine, or set "
            "CUDA_VISIBLE_DEVICES to the devices to use (empty: none)"
        ) from error
    return [str(number) for number, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


def summary(run: InferenceRun, ended: Ended, elapsed_s: float) -> dict[str, Any]:
    """What became of the run, JSON-able."""
    turn = ended.turn
    status = status_fields(turn.status)
    return {
        "run": run.name,
        "output": run.spec.output.uri,
        "phase": status["phase"],
        "message": _why(ended),
        "records": sum(item.records for found in turn.manifests.values() for item in found.checkpoints),
        "quarantined": status["quarantined"],
        "shards": status["shards"],
        "restarts": status["restarts"],
        "goodput": status["goodput"],
        "workLostSeconds": round(work_lost_s(turn.manifests), 1),
        "elapsedSeconds": round(elapsed_s, 1),
        "lastFailures": status["lastFailures"],
        "interrupted": ended.was_interrupted,
        "logs": str(ended.logs) if ended.logs else None,
    }


def _why(ended: Ended) -> str:
    """Why it is not complete; empty = nothing to say. What a refused run says elsewhere speaks of a cluster."""
    status = ended.turn.status
    if status.phase is not Phase.CIRCUIT_OPEN or ended.was_interrupted or not status.last_failures:
        return status.message
    return (
        f"{status.last_failures[-1].evidence}; mend it, then run this again; with another model or other parameters it "
        "is another run, and needs --restart or another output.uri"
    )


def work_lost_s(manifests: dict[int, ShardManifest]) -> float:
    """Worker seconds spent on shards that ended in no commit: held by ended attempts, less what they committed."""
    lost = 0.0
    for found in manifests.values():
        for attempt in found.attempts:
            committed = sum(item.seconds for item in found.checkpoints if item.epoch == attempt.epoch)
            lost += max(0.0, (attempt.held_seconds or 0.0) - committed)
    return lost


def _report(run: InferenceRun, ended: Ended, started_at: datetime, *, as_json: bool) -> None:
    elapsed_s = (current_time() - started_at).total_seconds()
    fields = summary(run, ended, elapsed_s)
    if as_json:
        print_json(fields)
        return
    by_class = ", ".join(f"{name} {count}" for name, count in sorted(fields["restarts"]["byClass"].items())) or "none"
    print_pairs(
        (
            (
                "phase",
                fields["phase"]
                + (" (interrupted; run it again, without --restart, and it resumes)" if ended.was_interrupted else ""),
            ),
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
