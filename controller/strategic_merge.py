"""Strategic merge of the user's partial PodTemplateSpec over the operator's own. Pure.

What `kubectl patch` users expect: mappings merge, null removes, named items of lists meet by their key and any other list
replaces. Where plain strategic merge would make a pod that the API server refuses, or silently drop what keeps a run
going, this one differs, and the tables below say so. `mistakes` finds what a template may not say, before any pod is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from contract import names

Mistake = tuple[str, Any, str]
"""Path within the template, value, remedy."""

_MERGED_BY_KEY = {"containers": "name", "initContainers": "name"}
"""Lists whose items with an equal key are merged, field by field."""

_REPLACED_BY_KEY = {
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "schedulingGates": "name",
    "resourceClaims": "name",
    "topologySpreadConstraints": "topologyKey",
}
"""Lists whose items with an equal key are replaced as a whole. Merging them would leave `value` beside `valueFrom`, or two
sources in one volume (`emptyDir` beside a claim), which the API server refuses."""

_TOLERATIONS = "tolerations"
"""A list without a key, which Kubernetes would replace: then one toleration of the user's would remove the 30 s after which
a pod on a lost node is given up. Here it grows, and an item for the same taint (key and effect) replaces ours."""

_KEYS = _MERGED_BY_KEY | _REPLACED_BY_KEY
_DIRECTIVE = "$patch"
_DELETE = "delete"

_RESERVED_ENV = frozenset({names.ENV_SETTINGS, names.ENV_POD_NAME, names.ENV_POD_UID, names.ENV_NODE_NAME})
_OWN_PREFIX = f"{names.API_GROUP}/"

_SHAPES: tuple[tuple[tuple[str, ...], type], ...] = (
    (("metadata",), dict),
    (("metadata", "labels"), dict),
    (("metadata", "annotations"), dict),
    (("spec",), dict),
    (("spec", "tolerations"), list),
    (("spec", "affinity"), dict),
    (("spec", "affinity", "nodeAffinity"), dict),
    (("spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"), dict),
    (("spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"), list),
    (("spec", "affinity", "nodeAffinity", "preferredDuringSchedulingIgnoredDuringExecution"), list),
)
"""What the operator itself looks into, so must be able to."""


def merged(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `patch` merged over it; neither is changed, nor shared with the result.

    In `patch`, null removes a field, and an item `{<key>: ..., $patch: delete}` removes the item of that key.
    """
    result: dict[str, Any] = deepcopy(dict(base))
    for name, value in patch.items():
        found = result.get(name)
        if value is None:
            result.pop(name, None)
        elif isinstance(value, Mapping):
            result[name] = merged(found if isinstance(found, Mapping) else {}, value)
        elif isinstance(value, list) and name in _KEYS:
            result[name] = _by_key(found or [], value, key=_KEYS[name], is_merged=name in _MERGED_BY_KEY)
        elif isinstance(value, list) and name == _TOLERATIONS:
            result[name] = _tolerations(found or [], value)
        else:
            result[name] = deepcopy(value)
    return result


def _by_key(base: list[Any], patch: list[Any], *, key: str, is_merged: bool) -> list[Any]:
    """Items of `base` in their order, then those that only `patch` has."""
    items = {item[key]: item for item in base}
    for item in patch:
        if item.get(_DIRECTIVE) == _DELETE:
            items.pop(item[key], None)
        else:
            items[item[key]] = merged(items.get(item[key], {}) if is_merged else {}, item)
    return list(items.values())


def _tolerations(base: list[Any], patch: list[Any]) -> list[Any]:
    named = {(item.get("key"), item.get("effect")) for item in patch}
    kept = [item for item in base if (item.get("key"), item.get("effect")) not in named]
    return [*kept, *deepcopy(patch)]


def mistakes(template: Mapping[str, Any]) -> list[Mistake]:
    """What `template` may not say; empty when it can be merged. All else is for the API server to judge."""
    misshapen = [
        (".".join(path), found, "use a mapping" if shape is dict else "use a list")
        for path, shape in _SHAPES
        if (found := _at(template, path)) is not None and not isinstance(found, shape)
    ]
    if misshapen:
        return misshapen
    return [
        *_unknown(template, "", ("metadata", "spec"), "a template has metadata and spec"),
        *_unknown(
            template.get("metadata") or {},
            "metadata.",
            ("labels", "annotations"),
            "only labels and annotations are used",
        ),
        *_reserved_metadata(template.get("metadata") or {}),
        *_forbidden(template.get("spec") or {}),
        *_lists(template.get("spec") or {}, "spec"),
    ]


def _unknown(found: Mapping[str, Any], prefix: str, known: tuple[str, ...], reason: str) -> Iterator[Mistake]:
    for name, value in found.items():
        if name not in known:
            yield f"{prefix}{name}", value, f"remove it: {reason}"


def _reserved_metadata(metadata: Mapping[str, Any]) -> Iterator[Mistake]:
    for part in ("labels", "annotations"):
        for name, value in (metadata.get(part) or {}).items():
            if str(name).startswith(_OWN_PREFIX) or (part, name) == ("labels", names.LABEL_MANAGED_BY):
                yield f"metadata.{part}.{name}", value, "remove it: the operator finds its pods by it"
            elif value is not None and not isinstance(value, str):
                yield f"metadata.{part}.{name}", value, "use a text (quote it)"


def _forbidden(spec: Mapping[str, Any]) -> Iterator[Mistake]:
    if spec.get("restartPolicy", "Never") != "Never":
        remedy = "remove it: a worker that ends is judged, then replaced; the kubelet must not restart it"
        yield "spec.restartPolicy", spec["restartPolicy"], remedy
    grace = spec.get("terminationGracePeriodSeconds")
    if grace is not None and (type(grace) is not int or grace < 1):
        yield "spec.terminationGracePeriodSeconds", grace, "use a whole number of at least 1"
    containers = spec.get("containers", ())
    if containers is None:
        yield "spec.containers", None, "remove it, or list containers: the worker is one"
    for item in containers if isinstance(containers, list) else ():
        if not isinstance(item, Mapping) or item.get("name") != names.CONTAINER_WORKER:
            continue
        if item.get(_DIRECTIVE) == _DELETE:
            yield f"spec.containers[{names.CONTAINER_WORKER}]", _DELETE, "keep it: it is the worker"
        env = item.get("env")
        for variable in env if isinstance(env, list) else ():
            if isinstance(variable, Mapping) and variable.get("name") in _RESERVED_ENV:
                path = f"spec.containers[{names.CONTAINER_WORKER}].env[{variable['name']}]"
                yield path, variable.get("value"), "remove it: the operator sets it"


def _lists(found: Mapping[str, Any], path: str, *, is_pod_or_container: bool = True) -> Iterator[Mistake]:
    """Items without the key they are merged by, and directives that are not understood.

    A name means a list only in a pod or a container: `env` in a node selector is a label.
    """
    for name, value in found.items():
        where = f"{path}.{name}"
        key = _KEYS.get(name)
        if str(name).startswith("$"):
            yield where, value, "only '$patch: delete' on an item of a list with a key is understood"
        elif is_pod_or_container and key is not None and value is not None and not isinstance(value, list):
            yield where, value, "use a list"
        elif isinstance(value, Mapping):
            yield from _lists(value, where, is_pod_or_container=False)
        elif isinstance(value, list):
            for position, item in enumerate(value):
                at = f"{where}[{position}]"
                if key is not None and (not isinstance(item, Mapping) or item.get(key) is None):
                    yield at, item, f"give it a '{key}', by which it is merged"
                elif name == _TOLERATIONS and not isinstance(item, Mapping):
                    yield at, item, "use a mapping"
                elif isinstance(item, Mapping):
                    is_deletion = key is not None and item.get(_DIRECTIVE) == _DELETE
                    fields = {
                        field: inner for field, inner in item.items() if not (is_deletion and field == _DIRECTIVE)
                    }
                    yield from _lists(fields, at, is_pod_or_container=name in _MERGED_BY_KEY)


def _at(found: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
