"""The part of docs/failure-modes.md that says how each fault shows on the Kubernetes API, made from the corpus.

python -m tests.corpus.page        writes it into the page, between two marks
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from contract.names import CONTAINER_WORKER, FailureClass
from controller.failure_policy import CHARGES, Charge
from tests.corpus.corpus import Case, cases, seen, verdict

PAGE = Path(__file__).parents[2] / "docs/failure-modes.md"
BEGIN = "<!-- made from tests/corpus by `make verify`: change the files there -->"
END = "<!-- end of what is made from tests/corpus -->"

CHARGED = {
    Charge.NOBODY: "charged to nobody",
    Charge.NODE: "points against the node",
    Charge.RECORDS: "a strike against the records in flight",
    Charge.SHARD: "charged to the shard",
    Charge.RUN: "charged to the run",
}
FOLLOWS = {
    FailureClass.DONE: "The pod is deleted.",
    FailureClass.INTENDED: "The slot stays empty or is filled again, as the run wants it.",
    FailureClass.SPOT_EVICTION: "Another worker within 5 s, however often it happens.",
    FailureClass.NODE_LOST: "Another worker within 5 s. A node with 3 points in 30 minutes is avoided for an hour.",
    FailureClass.NODE_REJECTED: "Another worker after 1 to 60 s. A node with 3 points in 30 minutes is avoided for an hour.",
    FailureClass.GPU_HARDWARE: "Another worker within 5 s, on another node: one such death gives 3 points.",
    FailureClass.OUT_OF_MEMORY: "Again with half the token budget, after 2, 4, 8 … 60 s; the shard fails when its budget of "
    "failures is spent.",
    FailureClass.POISON_INPUT: "Again after 1 s; records that are struck twice run one by one, and the one to blame is "
    "quarantined.",
    FailureClass.DISK_PRESSURE: "Again after 2, 4, 8 … 60 s; the shard fails when its budget is spent.",
    FailureClass.CONFIGURATION: "No more pods: the run's breaker opens and says what to mend. Charged to a shard, it "
    "fails that shard, and the others go on.",
    FailureClass.IMAGE_PULL: "Again after 10, 20, 40 … 300 s; five in ten minutes open the run's breaker.",
    FailureClass.CRASH_LOOP: "No more pods: the run's breaker opens.",
    FailureClass.TRANSIENT: "Again after 2, 4, 8 … 60 s; the same end three times before any commit is a `CrashLoop`.",
}


def rendered() -> str:
    """The generated part, both marks included."""
    by_class: dict[FailureClass | None, list[Case]] = {}
    for case in cases():
        found = case.expected.failure_class
        by_class.setdefault(None if found is None else FailureClass(found), []).append(case)
    lines = [BEGIN, ""]
    for failure_class in FailureClass:
        lines += [f"### {failure_class}", "", FOLLOWS[failure_class], ""]
        lines += ["| fault | what the API shows | what the run says of it | charge | test |", "|---|---|---|---|---|"]
        lines += [_row(case) for case in by_class[failure_class]]
        lines.append("")
    lines += ["### No end, and no failure", "", "Nothing is charged, however long it lasts.", ""]
    lines += ["| fault | what the API shows | the worker is | test |", "|---|---|---|---|"]
    lines += [f"| {_fault(c)} | {_shown(c)} | {c.expected.state} | {_tests(c)} |" for c in by_class[None]]
    return "\n".join([*lines, "", END])


def updated(page: str) -> str:
    """The page with its generated part as it must be."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return before + rendered() + after


def _row(case: Case) -> str:
    found = verdict(case, seen(case))
    assert found is not None, f"{case.name} has not ended"
    charge = CHARGED[found.charged_to]
    if found.charged_to is CHARGES[found.failure_class] is Charge.NODE:
        charge = f"{found.node_score} of 3 points against the node" if found.node_score else CHARGED[Charge.NOBODY]
    said = f"{found.evidence}; {found.advice}"
    return f"| {_fault(case)} | {_shown(case)} | {_cell(said)} | {charge} | {_tests(case)} |"


def _fault(case: Case) -> str:
    return f"[{_cell(case.what)}](../tests/corpus/{case.name}.yaml)"


def _shown(case: Case) -> str:
    return "; ".join(_cell(item) for item in (*_shown_of_pod(case), *_shown_of_node(case)))


def _tests(case: Case) -> str:
    return ", ".join(f"`{test}`" for test in case.tests) or "corpus"


def _shown_of_pod(case: Case) -> Iterator[str]:
    metadata, status = case.pod["metadata"], case.pod["status"]
    yield f"`{status.get('phase', '')}`" + (f" `{status['reason']}`" if "reason" in status else "")
    if message := status.get("message", ""):
        yield f'"{_cut(message)}"'
    for condition in status.get("conditions", []):
        is_telling = condition["type"] not in {"Initialized", "Ready", "ContainersReady", "PodReadyToStartContainers"}
        if is_telling and (condition["type"] != "PodScheduled" or condition["status"] == "False"):
            yield f"condition `{condition['type']}={condition['status']}` `{condition.get('reason', '')}`"
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind, []):
            yield from _shown_of_container(container, is_init=kind.startswith("init"))
    if "deletionTimestamp" in metadata:
        yield "`deletionTimestamp`"
    if case.is_gone:
        yield "the object is gone"


def _shown_of_container(container: Mapping[str, Any], *, is_init: bool) -> Iterator[str]:
    who = "" if container["name"] == CONTAINER_WORKER else f"{'init ' if is_init else ''}container {container['name']} "
    state = container["state"]
    if "terminated" in state:
        ended = state["terminated"]
        yield f"{who}`{ended.get('reason', '')}` {ended['exitCode']}"
        if (message := ended.get("message", "")) and '"inferencerun-flight"' not in message:
            yield f'"{_cut(message)}"'
    elif "waiting" in state:
        yield f"{who}waits: `{state['waiting'].get('reason', '')}`"
        if message := state["waiting"].get("message", ""):
            yield f'"{_cut(message)}"'
    else:
        yield f"{who}runs"
    if "allocatedResourcesStatus" in container:
        yield "a device `Unhealthy`"


def _shown_of_node(case: Case) -> Iterator[str]:
    if case.node is None:
        return
    ready = next((item["status"] for item in case.node["status"]["conditions"] if item["type"] == "Ready"), "")
    is_spot = any(str(value).lower() in {"spot", "true"} for value in case.node["metadata"]["labels"].values())
    taints = sorted({taint["key"] for taint in case.node["spec"].get("taints", [])})
    told = [f"`Ready={ready}`"] if ready != "True" else []
    told += [f"`{taint}`" for taint in taints]
    told += ["`AcceleratedHardwareReady=False`"] if "AcceleratedHardwareReady" in str(case.node) else []
    told += ["cordoned"] if case.node["spec"].get("unschedulable") and not taints else []
    told += ["gone"] if case.is_node_gone else []
    if told:
        yield f"{'spot ' if is_spot else ''}node: {', '.join(told)}"


def _cut(text: str) -> str:
    return textwrap.shorten(text, 80, placeholder=" ...")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
