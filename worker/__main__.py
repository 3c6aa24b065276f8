"""Entry point of a worker: parse settings, install the signal handler, run, map the error to an exit code."""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":
    # The kernel drops signals that the first process of a container does not handle, so a SIGTERM that meets it while
    # torch is being imported would cost the whole grace period. Nothing has been claimed yet.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))

import logging
import platform
import sys
import threading
import traceback
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from contract import logs, names, settings
from contract.errors import InferenceRunError, SpecError
from contract.manifest import Owner, ShardManifest
from contract.names import ExitCode, FailureClass
from contract.plan import Plan
from contract.process_identity import own_identity
from contract.store.commit import Committer
from contract.store.measured import MeasuredStore, StoreCall, StoreObserver, StoreResult
from contract.store.open import endpoint_of, open_store
from contract.store.protocol import ObjectStore
from worker.flight_recorder import FlightRecorder
from worker.metrics import WorkerMetrics, serve
from worker.model_client import ModelProcess
from worker.models.registry import load_preparer
from worker.outages import OutageLog
from worker.records.open import read_records
from worker.records.record import Record
from worker.records.source import open_source
from worker.run import Worker
from worker.shards import Resume

logger = logging.getLogger("worker")

DEFAULT_TERMINATION_LOG = "/dev/termination-log"


def main() -> int:
    """Run one worker to its end; returns its exit code."""
    drain = threading.Event()

    def on_signal(*_: object) -> None:
        # Once only: a second signal inside set() would wait for ever for the lock that set() holds.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        drain.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    environment = os.environ
    path = Path(environment.get(names.ENV_TERMINATION_LOG) or DEFAULT_TERMINATION_LOG)
    with FlightRecorder(path) as recorder:
        try:
            code, detail = int(_run(environment, recorder, drain)), ""
        except InferenceRunError as error:
            logger.exception("worker ends with an error")
            code, detail = int(error.exit_code), f"{type(error).__name__}: {error}"
        except MemoryError:
            code, detail = int(ExitCode.MEMORY), "host memory exhausted in the worker's parent process"
        except Exception:
            logger.exception("worker ends with an unexpected error")
            code, detail = 1, traceback.format_exc(limit=-3)
        recorder.record(replace(recorder.flight, exit_code=code, detail=detail))
    logger.info("worker ends", extra={"exit_code": code, "detail": detail})
    return code


def _run(environment: os._Environ[str], recorder: FlightRecorder, drain: threading.Event) -> ExitCode:
    text = environment.get(names.ENV_SETTINGS)
    if not text:
        raise SpecError(f"{names.ENV_SETTINGS} is not set: a worker is started by the controller or `inferencerun run`")
    options = settings.from_json(text)
    owner = Owner(
        pod=environment.get(names.ENV_POD_NAME) or platform.node(),
        uid=environment.get(names.ENV_POD_UID) or str(own_identity()),
        node=environment.get(names.ENV_NODE_NAME) or platform.node(),
    )
    logs.configure(run=options.run, pod=owner.pod)
    torch.set_num_threads(1)  # the parent computes nothing: the cores belong to the model process
    lifeline = Lifeline(environment.get(names.ENV_LIFELINE_FD), drain)
    metrics = WorkerMetrics(run=options.run)
    serve(metrics, environment)
    output = _watched(options.output_uri, metrics.store_observer("output"))
    worker = Worker(
        settings=options,
        committer=Committer(output),
        owner=owner,
        preparer=load_preparer(options.model),
        model=ModelProcess(
            options.model,
            device=options.device,
            num_threads=_num_threads(environment),
            no_progress_seconds=options.no_progress_seconds,
        ),
        recorder=recorder,
        read_records=lambda plan, manifest, resume: _read(options, plan, manifest, resume, metrics),
        now=lambda: datetime.now(UTC),  # noqa: TID251  (the edge: the clock is read here)
        new_id=lambda: uuid.uuid4().hex,  # noqa: TID251  (the edge: ids are made here)
        versions={
            "inferencerun": version("inferencerun-operator"),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        metrics=metrics,
        drain=drain,
        drain_class=lambda: FailureClass.INTENDED if lifeline.is_intended else FailureClass.SPOT_EVICTION,
        keeps_shard=lambda: lifeline.keeps_shard,
    )
    try:
        return worker.run()
    finally:
        worker.model.close()


def _watched(uri: str, count: StoreObserver) -> ObjectStore:
    """The store at `uri`; its calls are counted, and its silence is told."""
    store = open_store(uri)
    log_outage = OutageLog(store.uri, endpoint=lambda: endpoint_of(store))

    def observe(call: StoreCall, result: StoreResult, seconds: float, error: Exception | None) -> None:
        count(call, result, seconds, error)
        log_outage(call, result, seconds, error)

    return MeasuredStore(store, observe)


def _read(
    options: settings.WorkerSettings, plan: Plan, manifest: ShardManifest, resume: Resume, metrics: WorkerMetrics
) -> Iterator[Record]:
    planned = next(item for item in plan.objects if item.uri == manifest.object)
    return read_records(
        open_source(planned, open_store=lambda uri: _watched(uri, metrics.store_observer("input"))),
        fmt=plan.format,
        compression=planned.compression,
        start=manifest.start,
        end=manifest.end,
        first_ordinal=resume.first_ordinal,
        resume_offset=resume.offset,
        id_field=options.id_field,
        value_field=options.value_field,
    )


def _num_threads(environment: os._Environ[str]) -> int | None:
    text = environment.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdigit() and int(text) > 0 else None


class Lifeline:
    """A pipe from the local coordinator: a byte says what the drain to come is; its end, that the coordinator is gone."""

    def __init__(self, descriptor: str | None, drain: threading.Event) -> None:
        self.is_intended = False
        self.keeps_shard = False
        self._drain = drain
        if descriptor is not None:
            threading.Thread(target=self._watch, args=(int(descriptor),), daemon=True, name="lifeline").start()

    def _watch(self, descriptor: int) -> None:
        self.keeps_shard = os.read(descriptor, 1) == names.LIFELINE_KEEP
        # Said or gone: either way nobody evicted this worker.
        self.is_intended = True
        self._drain.set()


if __name__ == "__main__":
    sys.exit(main())
