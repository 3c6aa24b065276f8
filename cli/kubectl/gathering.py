"""Everything that `doctor` looks at, fetched: the API, then the store. What may not be looked at is noted, no error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from cli.kubectl import facts
from cli.kubectl.api import (
    CRD_NAME,
    Api,
    ApiRefused,
    ApiUnreachable,
    Forbidden,
    Object,
    ObjectMissing,
    core_path,
    group_path,
)
from cli.kubectl.facts import (
    ControllerPod,
    Definition,
    Deployment,
    Event,
    Facts,
    HeldShard,
    Lease,
    Node,
    Pod,
    Silence,
    Store,
)
from cli.kubectl.options import Access
from cli.kubectl.runs import find_run, output_uri, pods_of, written_output
from cli.output import current_time, new_commit_id, open_output, read_manifests
from cli.status import is_stale, last_commit_at
from contract.errors import InferenceRunError, SpecError
from contract.layout import PROBE_PREFIX, RUN_KEY
from contract.manifest import ShardManifest, ShardStatus
from contract.names import API_GROUP, API_VERSION, CONTAINER_WORKER
from contract.store.errors import StoreError, UnsuitableStore
from contract.store.inputs import list_inputs
from contract.store.open import is_path, is_relative, open_store
from contract.store.probe import probe
from contract.store.protocol import ObjectStore

STORE_PATIENCE_S = 20.0
"""A store that has not answered by then is not looked at."""
OPERATOR = "inferencerun"
"""In the name of each Lease of the operator, unless the chart's fullnameOverride says otherwise."""
LOGS_READ = 3
"""Workers whose logs are looked at."""
LOG_LINES = 200
"""Of each."""
_CONTROLLERS = "app.kubernetes.io/part-of=inferencerun-operator,app.kubernetes.io/component=controller"
OPERATOR_NAMESPACES = ("inferencerun", "inferencerun-operator", "default")
"""Where to look when the whole cluster may not be looked at."""
_RIGHTS = (
    ("patch", API_GROUP, "inferenceruns", ""),
    ("patch", API_GROUP, "inferenceruns", "scale"),
    ("list", "", "pods", ""),
    ("get", "", "pods", "log"),
    ("list", "", "events", ""),
)
"""(verb, group, resource, subresource) that the plug-in's commands need."""

T = TypeVar("T")


def gather(access: Access, run_name: str | None, *, operator_namespace: str | None, with_store: bool) -> Facts:
    """All facts about a run (None: about the installation alone).

    Args:
        access: the cluster, and the run's namespace.
        run_name: of the run.
        operator_namespace: where the controllers are; None = look for them.
        with_store: look at the store, too. Writes scratch objects under the output's `.probe/` and removes them.

    Raises:
        SpecError: no such run.
    """
    look = _Looks(access, operator_namespace)
    definition = look.definition()
    if definition is not None and not definition.is_served:
        return Facts(now=current_time(), definition=definition)
    run = None if run_name is None else find_run(access, run_name)
    deployments = look.deployments()
    common: dict[str, Any] = {
        "definition": definition,
        "deployments": deployments,
        "leases": look.leases(deployments or ()),
        "controller_pods": look.controller_pods(deployments or ()),
        "denied": look.denied(),
    }
    if run is None:
        return Facts(now=current_time(), **common, unseen=tuple(look.unseen))
    parsed = facts.read_run(run)
    pods = look.pods(run)
    silences = look.silences(facts.without_shard(parsed, pods or (), current_time()))
    events = look.events(run, pods)
    store = _within(STORE_PATIENCE_S, lambda: look_at_store(run)) if with_store and not parsed.is_over else None
    return Facts(
        now=current_time(),
        **common,
        run=parsed,
        pods=pods,
        nodes=look.nodes(),
        events=events,
        store=store,
        silences=silences,
        unseen=tuple(look.unseen),
    )


class _Looks:
    """Looks at the API, each with leave to fail."""

    def __init__(self, access: Access, operator_namespace: str | None) -> None:
        self._access = access
        self._api: Api = access.api
        self._operator_namespace = operator_namespace
        self.unseen: list[str] = []

    def definition(self) -> Definition | None:
        """The definition; who may not read it still sees whether the kind is served."""
        try:
            return facts.read_definition(
                self._api.get(group_path("apiextensions.k8s.io/v1", "", "customresourcedefinitions", CRD_NAME))
            )
        except ObjectMissing:
            return Definition(is_served=False)
        except Forbidden:
            pass
        try:
            self._api.get(f"/apis/{API_GROUP}/{API_VERSION}")
        except ObjectMissing:
            return Definition(is_served=False)
        except ApiRefused as error:
            self._note("the definition", error)
            return None
        return Definition()

    def deployments(self) -> tuple[Deployment, ...] | None:
        """Deployments of controllers, by the chart's labels."""
        found = self._operators("the controllers' Deployment", "apps/v1", "deployments", labelSelector=_CONTROLLERS)
        return None if found is None else tuple(map(facts.read_deployment, found))

    def leases(self, deployments: Sequence[Deployment]) -> tuple[Lease, ...] | None:
        """Leases of controllers: of that name where their Deployments are, if these may be seen."""
        places = [self._operator_namespace] if self._operator_namespace else [item.namespace for item in deployments]
        found = self._operators("the controllers' Lease", "coordination.k8s.io/v1", "leases", places=places)
        if found is None:
            return None
        names = {item.name for item in deployments}
        is_named = self._operator_namespace is not None
        return tuple(
            facts.read_lease(item)
            for item in found
            if is_named or OPERATOR in item["metadata"]["name"] or item["metadata"]["name"] in names
        )

    def controller_pods(self, deployments: Sequence[Deployment]) -> tuple[ControllerPod, ...]:
        """Pods of controllers that are not ready, where their Deployments have too few."""
        places = dict.fromkeys(item.namespace for item in deployments if item.ready < item.wanted)
        if not places:
            return ()
        found = self._operators("the controllers' pods", "", "pods", places=[*places], labelSelector=_CONTROLLERS)
        return tuple(pod for pod in map(facts.read_controller_pod, found or ()) if pod is not None)

    def silences(self, idle: Iterable[Pod]) -> tuple[Silence, ...]:
        """What workers without a shard say of a store that is silent; some say as much as all."""
        found: list[Silence] = []
        for pod in sorted(idle, key=lambda item: item.name)[:LOGS_READ]:
            path = core_path(self._access.namespace, "pods", pod.name, "log")
            try:
                lines = self._api.lines(path, container=CONTAINER_WORKER, tailLines=str(LOG_LINES))
                said = facts.read_silence(pod.name, lines)
            except ObjectMissing:
                continue  # gone meanwhile
            except (ApiRefused, ApiUnreachable) as error:  # the API server asks the node, which may not answer
                self.unseen.append(f"the log of {pod.name}: {error}")
                break
            if said is not None:
                found.append(said)
        return tuple(found)

    def _operators(
        self, what: str, group: str, kind: str, *, places: Sequence[str] = (), **query: str
    ) -> list[Object] | None:
        """Objects in `places`; without these in the whole cluster or, if that is refused, where the operator usually is."""
        problem: ApiRefused | None = None
        found: list[Object] = []
        for namespace in places or ("", *dict.fromkeys((*OPERATOR_NAMESPACES, self._access.namespace))):
            try:
                path = group_path(group, namespace, kind) if group else core_path(namespace, kind)
                found += self._api.list_all(path, **query)
            except ApiRefused as error:
                problem = problem or error
                continue
            if not namespace:
                return found
        if problem is not None and not found:  # what there is may be where it could not be looked for
            self._note(what, problem)
            return None
        return found

    def denied(self) -> tuple[str, ...]:
        """What the user may not do."""
        refused = []
        for verb, group, resource, subresource in _RIGHTS:
            attributes = {"namespace": self._access.namespace, "verb": verb, "group": group, "resource": resource}
            if subresource:
                attributes["subresource"] = subresource
            review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
            body = {**review, "spec": {"resourceAttributes": attributes}}
            try:
                answer = self._api.create(group_path("authorization.k8s.io/v1", "", "selfsubjectaccessreviews"), body)
            except ApiRefused as error:
                self._note("your rights", error)
                break
            if not (answer.get("status") or {}).get("allowed"):
                refused.append(f"{verb} {resource}{'/' if subresource else ''}{subresource}")
        return tuple(refused)

    def pods(self, run: Object) -> tuple[Pod, ...] | None:
        """The run's worker pods."""
        found = self._try("pods", lambda: pods_of(self._access, run))
        return None if found is None else tuple(map(facts.read_pod, found))

    def nodes(self) -> tuple[Node, ...] | None:
        """All nodes."""
        found = self._try("nodes", lambda: self._api.list_all(core_path("", "nodes")))
        return None if found is None else tuple(map(facts.read_node, found))

    def events(self, run: Object, pods: tuple[Pod, ...] | None) -> tuple[Event, ...] | None:
        """Events of the run and of its pods."""
        path = core_path(self._access.namespace, "events")
        name = run["metadata"]["name"]
        of_run = self._try("events", lambda: self._api.list_all(path, fieldSelector=f"involvedObject.name={name}"))
        if of_run is None:
            return None
        of_pods = self._try("events", lambda: self._api.list_all(path, fieldSelector="involvedObject.kind=Pod")) or []
        names = {name, *(pod.name for pod in pods or ())}
        return tuple(item for item in map(facts.read_event, (*of_run, *of_pods)) if item.of in names)

    def _try(self, what: str, look: Callable[[], T]) -> T | None:
        try:
            return look()
        except ApiRefused as error:
            self._note(what, error)
            return None

    def _note(self, what: str, error: ApiRefused) -> None:
        self.unseen.append(f"{what}: {error}")


def look_at_store(run: Object) -> Store:
    """The output's store, and the input, with the user's own credentials."""
    try:
        written, uri = written_output(run), output_uri(run)
        if is_relative(written) or (is_path(uri) and not Path(uri.removeprefix("file://")).is_dir()):
            # As it is written: what it would be in our own working directory is no place of the run's.
            return Store(problem=f"{written} is a path in the worker pods", is_in_pods=True)
        store = open_store(uri)
        has_begun = any(item.key == RUN_KEY for item in store.list(RUN_KEY))
        skew_s = None
        if not uri.startswith("file:"):
            nonce = new_commit_id()
            probe(store, nonce=nonce)
            skew_s = clock_skew_s(store, nonce)
        if not has_begun:
            return Store(skew_s=skew_s, input_problem=_input_problem(run))
        output = open_output(uri)
        manifests = read_manifests(output).readable if output.stored_plan is not None else ()
    except UnsuitableStore as error:
        return Store(problem=str(error), is_unsuitable=True)
    except InferenceRunError as error:
        return Store(problem=str(error))
    now = current_time()
    waits = [
        item.not_before for item in manifests if item.status is ShardStatus.PENDING and item.not_before is not None
    ]
    waits = [at for at in waits if at > now]
    return Store(
        skew_s=skew_s,
        held=tuple(_held(item, now) for item in manifests if item.owner is not None),
        num_waiting_shards=len(waits),
        next_claim_at=min(waits, default=None),
    )


def clock_skew_s(store: ObjectStore, nonce: str) -> float | None:
    """By how much the store's clock is ahead of this machine's; None when it does not list what was just put."""
    key = f"{PROBE_PREFIX}{nonce}/clock"
    store.put_overwrite(key, b"what time is it?")
    now = current_time()
    try:
        listed = next((item for item in store.list(key) if item.key == key), None)
    finally:
        store.delete(key)
    return None if listed is None else (listed.modified_at - now).total_seconds()


def _input_problem(run: Object) -> str:
    uris = ((run.get("spec") or {}).get("input") or {}).get("uris") or []
    if any(map(is_path, uris)) and not is_path(written_output(run)):
        return ""  # files of the pods, which this machine has not
    try:
        list_inputs(uris, shard_bytes=1 << 62)  # no object is so large that it would have to be looked into
    except SpecError as error:
        return str(error)
    except StoreError:
        return ""  # with the user's own credentials: that says nothing of the controller's
    return ""


def _held(manifest: ShardManifest, now: datetime) -> HeldShard:
    assert manifest.owner is not None, "asked for before"
    seen_at = last_commit_at(manifest)
    return HeldShard(
        shard=manifest.shard,
        pod=manifest.owner.pod,
        node=manifest.owner.node,
        silent_s=0.0 if seen_at is None else (now - seen_at).total_seconds(),
        is_stale=is_stale(manifest, now),
    )


def _within(seconds: float, look: Callable[[], Store]) -> Store:
    """What `look` gives, or that it took too long: a store behind a firewall answers nothing for minutes."""
    found: list[Store] = []

    def seen() -> None:
        try:
            found.append(look())
        except Exception as error:  # noqa: BLE001  (whatever keeps a look from its end is a fact, not our end)
            found.append(Store(problem=f"{type(error).__name__}: {error}"))

    thread = threading.Thread(target=seen, name="store", daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else Store(problem=f"it has not answered within {seconds:g} s")
