"""The corpus of tests/corpus: every shape of a death gets its verdict, and no damage to it makes a success of a failure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.flight import from_text
from contract.names import FailureClass
from controller.failure_policy import FREE, Charge, classify
from controller.observed import Evidence, WorkerState
from controller.pods import read_node, read_pod, worker_view
from tests.corpus.corpus import RUN_UID, Case, cases, seen, shown, verdict
from tests.corpus.page import PAGE, updated
from tests.corpus.record import scenarios, scrubbed
from tests.make import NOW

ROOT = Path(__file__).parents[2]
CASES = cases()
ENDED = [case for case in CASES if case.expected.failure_class is not None]
FAILED = [case for case in ENDED if case.expected.failure_class != FailureClass.DONE]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_it_is_judged_as(case: Case) -> None:
    """Each file is judged as it says: state, class, who pays, whether for good, and the score of the node."""
    worker = seen(case)
    found = verdict(case, worker)

    assert worker.state == case.expected.state
    assert (found and found.failure_class) == case.expected.failure_class
    assert (found and found.charged_to) == case.expected.charged_to
    assert (found is not None and found.is_permanent) == case.expected.is_permanent
    assert (0 if found is None else found.node_score) == case.expected.node_score


@pytest.mark.parametrize("case", ENDED, ids=lambda case: case.name)
def test_every_verdict_is_one_sentence_with_advice(case: Case) -> None:
    """Status and events show a line each: what happened, and what to do."""
    found = verdict(case, seen(case))

    assert found is not None
    assert found.advice
    for text in (found.evidence, found.advice):
        assert text.splitlines() == [text.strip()]
        assert not text.endswith(".")


def test_the_corpus_is_broad() -> None:
    """Every class has cases, several ends are none, and no two files say that they are the same fault."""
    assert len(CASES) >= 60
    assert {case.expected.failure_class for case in ENDED} == set(FailureClass)
    assert {case.expected.state for case in CASES} == {"starting", "running", "draining", "ended"}
    assert len({case.what for case in CASES}) == len(CASES)
    assert all(case.source for case in CASES)


@pytest.mark.parametrize("case", [case for case in CASES if case.tests], ids=lambda case: case.name)
def test_the_tests_that_make_it_happen_exist(case: Case) -> None:
    """What the page names is there: the recorder, or a test by path and name."""
    for test in case.tests:
        path, _, function = test.partition("::")
        assert re.search(rf"^def {function}\b", (ROOT / path).read_text(), re.MULTILINE)


def test_what_is_recorded_can_be_recorded_again() -> None:
    """Each recorded file has its scenario in the recorder, with the verdict that is said there."""
    known = {one.name: one for one in scenarios("node1", "node2", "node3")}
    recorded = {case.name.removeprefix("recorded-"): case for case in CASES if case.name.startswith("recorded-")}

    assert set(recorded) <= set(known)
    assert all(case.expected.failure_class == known[name].expected.get("class") for name, case in recorded.items())


def test_what_is_recorded_holds_no_instant_of_its_recording() -> None:
    """Instants are steps from a fixed one, whichever way the client writes them."""
    found = scrubbed({"pod": "2031-05-06T07:08:09Z", "node": ["2031-05-06T07:08:09+00:00", "2031-05-06T07:08:10Z"]}, {})
    first, second = "2026-01-01T12:00:00Z", "2026-01-01T12:00:10Z"

    assert found == {"pod": first, "node": [first, second]}


def test_no_spot_eviction_is_ever_charged() -> None:
    """Whatever shape an eviction has, nobody pays."""
    evictions = [case for case in ENDED if case.expected.failure_class == FailureClass.SPOT_EVICTION]
    found = [verdict(case, seen(case)) for case in evictions]

    assert len(found) > 20
    assert all(item is not None and item.charged_to is Charge.NOBODY and not item.node_score for item in found)


def test_the_page_is_current() -> None:
    """docs/failure-modes.md says what the corpus says; `make verify` writes it."""
    page = PAGE.read_text()

    assert page == updated(page)


def without_one_field(found: Any) -> Iterator[tuple[str, Any]]:
    """(path, copy without what is there), for every field and item at any depth; last words are looked into as well."""
    entries = list(found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ())
    for key, value in entries:
        rest = dict(found) if isinstance(found, dict) else list(found)
        del rest[key]
        yield str(key), rest
        for path, smaller in without_one_field(value):
            changed = dict(found) if isinstance(found, dict) else list(found)
            changed[key] = smaller
            yield f"{key}.{path}", changed
        if key == "message" and from_text(value) is not None:
            for path, smaller in without_one_field(json.loads(value)):
                yield f"{key}.{path}", {**found, key: json.dumps(smaller)}


def is_success(case: Case, pod: Any, node: Any) -> bool:
    """Whether the case, with these objects instead of its own, counts as work that is done."""
    found = verdict(case, shown(case, pod, node))
    return found is not None and found.failure_class is FailureClass.DONE


@pytest.mark.parametrize("case", FAILED, ids=lambda case: case.name)
def test_removing_any_field_makes_no_success_of_a_failure(case: Case) -> None:
    """A field that a version, a provider or a broken node leaves out may make a verdict poorer, never a success."""
    objects = {"pod": case.pod, "node": case.node}
    found = [
        path for path, rest in without_one_field(objects) if is_success(case, rest.get("pod", {}), rest.get("node"))
    ]

    assert found == []


def test_removing_fields_is_thorough() -> None:
    """The test above is not vacuous: it takes out leaves, branches, items of lists, and fields of last words."""
    (case,) = (case for case in CASES if case.name == "completed")
    removed = {path for path, _ in without_one_field({"pod": case.pod})}

    assert {
        "pod",
        "pod.status.containerStatuses.0.state.terminated.exitCode",
        "pod.status.containerStatuses.0.state.terminated.message.exitCode",
        "pod.metadata.labels",
    } <= removed
    assert is_success(case, case.pod, case.node)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=True)
    | st.text(max_size=8)
    | st.sampled_from(["True", "worker", "2026-01-01T12:00:00Z", "9" * 5000, "[" * 3000, "0001-01-01T00:00:00+23:59"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["state", "terminated", "running", "waiting", "reason", "message", "exitCode", "type", "name"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


def places(found: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something else can stand: every path into the object."""
    yield path
    for key, value in found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ():
        yield from places(value, (*path, key))


def put(found: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with `value` at `path`."""
    changed = deepcopy(found)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


PLACES = [(case, path) for case in FAILED for path in places({"pod": case.pod, "node": case.node}) if len(path) > 1]


@given(place=st.sampled_from(PLACES), garbage=JSON)
def test_garbage_in_any_place_gets_a_verdict(place: tuple[Case, tuple[Any, ...]], garbage: Any) -> None:
    """JSON of any type in any place of pod and node is read, never raises, and never makes a success of a failure."""
    case, path = place
    changed = put({"pod": case.pod, "node": case.node}, path, garbage)

    worker = shown(case, changed["pod"], changed["node"])

    assert not is_success(case, changed["pod"], changed["node"])
    assert classify(worker.evidence or Evidence(), case.manifest).evidence


@given(
    pod=st.fixed_dictionaries({}, optional={"metadata": JSON, "spec": JSON, "status": JSON}),
    node=st.fixed_dictionaries({}, optional={"metadata": JSON, "spec": JSON, "status": JSON}),
)
def test_objects_of_nothing_but_garbage_are_read(pod: dict[str, Any], node: dict[str, Any]) -> None:
    """Nor does it matter that nothing is as it should be."""
    worker = worker_view(read_pod(pod), node=read_node(node), run_uid=RUN_UID, now=NOW)

    assert worker.state is not WorkerState.ENDED or worker.evidence is not None
    assert classify(worker.evidence or Evidence()).failure_class is not FailureClass.DONE


@given(reason=st.text(alphabet=st.characters(categories=["L", "N"]), min_size=20, max_size=40))
@pytest.mark.parametrize("field", ["pod_reason", "container_reason", "waiting_reason"])
def test_unknown_reasons_are_transient(field: str, reason: str) -> None:
    """What no version known here says is tried again, and counts."""
    found = classify(Evidence(**{"exit_code": 1, field: reason}))  # type: ignore[arg-type]

    assert found.failure_class is FailureClass.TRANSIENT
    assert found.failure_class not in FREE
