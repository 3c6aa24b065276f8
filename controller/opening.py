"""A run opened in its store, once for each version of its spec: what must hold before any worker is started.

Whatever time alone does not mend (a mistake in the spec, another run on the same output, a bucket that refuses) is raised
as `Refused`, and becomes a condition.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from contract.errors import Corrupt, IncompatibleRun, NewerFormat, SpecError
from contract.names import ConditionType
from contract.store.commit import Committer
from contract.store.errors import AccessDenied, StoreError, UnsuitableStore
from contract.store.inputs import OpenStore, list_inputs
from contract.store.measured import MeasuredStore
from contract.store.open import is_path, is_relative, normalised_uri, open_store
from contract.store.protocol import ObjectStore
from controller import api
from controller.api import InferenceRun, Resume
from controller.ledger import Ledger
from controller.memory import RunMemory
from controller.run_resource import Refused, RunResource
from controller.run_store import OpenedRun, RunStore, wanted_record
from controller.tools import Tools

REFUSED_S = 60.0
"""Until an input or a bucket that stood in the way is looked at again; a changed spec is looked at once."""
RIVAL_S = 5.0
"""Until a run that waits for another to leave its output looks for that one again; no server is asked for that."""
STORE_BUDGET_S = 60.0
"""For one operation on an output. Shorter than a worker's: nothing is lost by looking again later, and whoever waits holds a
thread that runs on other stores may need (`Settings.store_threads`)."""
_BUCKETS = "use s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"
_OF_PATHS = (
    f"a path is one in the controller's pod: {_BUCKETS}, or mount one volume there in the controller "
    "(controller.extraVolumes of the chart) and in all workers (spec.workers.template)"
)
_PERMANENT = (SpecError, IncompatibleRun, Corrupt, NewerFormat, AccessDenied, UnsuitableStore)
"""What opening a run may meet that time alone does not mend."""

INPUT_AT_FIRST = "Correct spec.input in place, which is accepted while nothing is planned yet, or put the objects there"
INPUT_LATER = "Put the objects there: the input of a run that has begun stays what it is"
"""What mends an input that cannot be listed."""


class RunOpener:
    """Opens one run, again whenever its spec asks for another."""

    def __init__(self, resource: RunResource, tools: Tools) -> None:
        """Nothing is opened yet."""
        self._resource = resource
        self._tools = tools
        self._store: RunStore | None = None
        self._store_uri = ""
        """What `_store` was opened on; a spec that was refused before the run began may be given another output."""
        self._opened: OpenedRun | None = None
        self._opened_for: int | None = None
        """metadata.generation that `_opened` belongs to."""
        self._opened_as: object = None
        """What of the spec it depends on."""

    @property
    def store(self) -> RunStore:
        """The store of a run that is open."""
        assert self._store is not None, "opened before"
        return self._store

    @property
    def opened(self) -> OpenedRun:
        """Record and plan of a run that is open."""
        assert self._opened is not None, "opened before"
        return self._opened

    def close(self) -> None:
        """Let go of the plan and of all manifests: a controller keeps runs that are over for as long as their resources."""
        self._store, self._opened, self._opened_for = None, None, None

    def parsed(self, noted: Ledger) -> InferenceRun:
        """The run that the resource describes, its output normalised; raises Refused."""
        try:
            run = api.parse_run(self._resource.current)
            _refuse_relative_paths(run)
            uri = normalised_uri(run.spec.output.uri)
        except SpecError as error:
            raise Refused(ConditionType.ACCEPTED, "Invalid", str(error), retry_s=None) from error
        if noted.output_uri and noted.output_uri != uri:
            message = f"spec.output.uri: cannot change once the run has started on {noted.output_uri}; make another run"
            raise Refused(ConditionType.ACCEPTED, "Immutable", message, retry_s=None)
        return replace(run, spec=replace(run.spec, output=replace(run.spec.output, uri=uri)))

    def refuse_rival(self, run: InferenceRun) -> None:
        """Raise Refused when another run, that was there first, works on the same output."""
        rival = self._tools.rival_of(self._resource.key.uid, run)
        if rival is not None:
            raise Refused(ConditionType.ACCEPTED, "OutputInUse", rival, retry_s=RIVAL_S)

    async def must_restart(self, run: InferenceRun, noted: Ledger) -> bool:
        """Whether `resume: Restart` asks for a generation that is not open yet; raises Refused.

        run.json has the last word: `status.memory` may have been lost, and workers of the new generation be at work.
        """
        request = await self._restart_to_note(run, noted)
        if request is None:
            return False
        with _refusing(run):
            record = await self._tools.blocking(self._store_of(run).read_record)
        return record is None or record.opened_for != request

    async def open(self, run: InferenceRun, noted: Ledger) -> Ledger:
        """Open the run in its store, again when what it computes has changed in the spec; raises Refused."""
        request = await self._restart_to_note(run, noted)
        is_same = self._opened_as == _asked(run) and request is None
        if self._opened is None or not (is_same or self._opened_for == run.resource_generation):
            await self._open(run, request, has_begun=bool(noted.output_uri))
        # Said each time: what an earlier look found may not have reached the status.
        if request is not None:
            fresh = RunMemory(conditions=noted.memory.conditions)
            noted = replace(noted, memory=fresh)
        restarted_for = run.resource_generation if run.spec.resume is Resume.RESTART else None
        noted = replace(noted, restarted_for=restarted_for)
        return replace(noted, output_uri=run.spec.output.uri, store_generation=self.opened.record.generation)

    async def _restart_to_note(self, run: InferenceRun, noted: Ledger) -> str | None:
        """What asks for a new generation, as run.json keeps it; None = nothing does, or it is known to be open.

        `resume: Restart` stays in the spec once it has been carried out. To scale or suspend the run then must not begin it
        anew: only a spec that is another run's asks again, or one in which it was Auto meanwhile.
        """
        if run.spec.resume is not Resume.RESTART or noted.restarted_for == run.resource_generation:
            return None
        if noted.restarted_for is not None:
            with _refusing(run):
                if await self._tools.blocking(_holds, self._store_of(run), run):
                    return None
        return f"{self._resource.key.uid}/{run.resource_generation}"

    async def _open(self, run: InferenceRun, request: str | None, *, has_begun: bool) -> None:
        with _refusing(run):
            store, uid = self._store_of(run), self._resource.key.uid
            self._opened = await self._tools.blocking(
                lambda: _opened(
                    run, store, uid, request, has_begun=has_begun, open_input=lambda uri: self._measured(uri, "input")
                )
            )
        self._opened_for, self._opened_as = run.resource_generation, _asked(run)

    def _store_of(self, run: InferenceRun) -> RunStore:
        if self._store is None or self._store_uri != run.spec.output.uri:
            output = self._measured(run.spec.output.uri, "output")
            self._store_uri = run.spec.output.uri
            self._store = RunStore(Committer(output, budget_s=STORE_BUDGET_S), new_id=self._tools.new_id)
        return self._store

    def _measured(self, uri: str, which: str) -> ObjectStore:
        return MeasuredStore(open_store(uri), self._tools.metrics.store_observer(which))


@contextmanager
def _refusing(run: InferenceRun) -> Iterator[None]:
    """Turn what keeps a run from being opened into Refused."""
    try:
        yield
    except _PERMANENT as error:
        kind = ConditionType.ACCEPTED if isinstance(error, (SpecError, IncompatibleRun)) else ConditionType.PLANNED
        if isinstance(error.__cause__, OSError):
            message = _path_refusal(run, error, error.__cause__)
            raise Refused(ConditionType.ACCEPTED, "PathUnusable", message, retry_s=REFUSED_S) from error
        hint = f"; {_OF_PATHS}" if isinstance(error, SpecError) and any(map(is_path, run.spec.input.uris)) else ""
        raise Refused(kind, type(error).__name__, f"{error}{hint}", retry_s=REFUSED_S) from error
    except StoreError as error:
        raise Refused(ConditionType.PLANNED, "StoreUnavailable", str(error), retry_s=REFUSED_S / 6) from error


def _refuse_relative_paths(run: InferenceRun) -> None:
    """Raise SpecError for paths that would mean another place in each pod. An output is kept as an absolute one."""
    spec = run.spec
    named = {"spec.output.uri": spec.output.uri} | {
        f"spec.input.uris[{position}]": uri for position, uri in enumerate(spec.input.uris)
    }
    problems = [f"{name}: {uri!r} is a relative path; {_BUCKETS}" for name, uri in named.items() if is_relative(uri)]
    if problems:
        raise SpecError("\n".join(problems))


def _path_refusal(run: InferenceRun, error: Exception, cause: OSError) -> str:
    """What is said of a directory that the controller's pod cannot use: the field, the system's own words, the remedy."""
    output, where = run.spec.output.uri.removeprefix("file://"), str(cause.filename or "")
    is_output = is_path(run.spec.output.uri) and (output.startswith(where) or where.startswith(output))
    field = f"spec.output.uri: {output}" if is_output else "spec.input.uris: a path"
    return f"{field} cannot be used by the controller: {cause.strerror or error} ({where}); {_OF_PATHS}"


def _asked(run: InferenceRun) -> object:
    """What of the spec decides which run this is."""
    return run.spec.input, run.spec.output, run.spec.model


def _holds(store: RunStore, run: InferenceRun) -> bool:
    """Whether the output holds what the spec asks for, of the input as it was listed."""
    try:
        return store.resumed(run) is not None
    except IncompatibleRun:
        return False


def _opened(
    run: InferenceRun, store: RunStore, uid: str, request: str | None, *, has_begun: bool, open_input: OpenStore
) -> OpenedRun:
    """Open the run in its store: what blocks, and so runs in a thread.

    A resource that has begun goes on with its plan, and lists no input: an object that has come since would have the run
    refused in mid-work. Another resource on the same output may mean what is there now, and is told when that differs.

    Args:
        run: the spec.
        store: its output.
        uid: of the resource.
        request: asks for a new generation, as run.json keeps it; None = the one that is there will do.
        has_begun: whether this resource is known to have opened this output before.
        open_input: how a root URI of the input becomes a store.
    """
    found = store.read_record()
    if found is None:
        store.probe()
    restarts = found is not None and request is not None and found.opened_for != request
    if found is not None and not restarts and (has_begun or found.uid == uid):
        resumed = store.resumed(run)
        if resumed is not None:
            return resumed
    try:
        objects = list_inputs(run.spec.input.uris, shard_bytes=run.spec.input.shard_bytes, open_store=open_input)
    except SpecError as error:
        raise SpecError(f"{error}. {INPUT_AT_FIRST if found is None else INPUT_LATER}") from error
    return store.open_run(wanted_record(run, objects, uid=uid, opened_for=request), objects, restarts=restarts)
