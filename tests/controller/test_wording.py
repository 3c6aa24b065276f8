"""controller.wording: messages in the words of whoever has the run in a cluster."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.kubectl.main import COMMANDS
from controller.wording import PLUG_IN_COMMANDS, NamedRun, reworded

VERIFY, RETRY = (f"kubectl inferencerun {name} swissprot -n proteins" for name in ("verify", "retry"))
ROOT = Path(__file__).resolve().parents[2]
RUN = NamedRun(name="swissprot", namespace="proteins", output_uri="s3://bucket/out")
OWN_CLI = {"run", "coordinator", "repair", "archive", "cleanup", "snapshot", "status", "main", "live", "completion"}
"""Files of `cli` whose messages nobody sees who calls the plug-in."""
ELSEWHERE = re.compile(
    rf"(?<!kubectl )(?<![\w/.-])inferencerun ({'|'.join(PLUG_IN_COMMANDS)})\b"
    r"|--restart|OUTPUT_URI|the run's output\.uri|start the run again|stop the run"
)
"""What means nothing, or something else, to whoever has a run by its name in a cluster."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("then 'inferencerun retry'", "then 'kubectl inferencerun retry swissprot -n proteins'"),
        (
            "run 'inferencerun verify OUTPUT_URI --requeue', then start the run again: it",
            f"run '{VERIFY} --requeue', then '{RETRY} --only-wake': it",
        ),
        ("inferencerun retry s3://bucket/out", "kubectl inferencerun retry swissprot -n proteins"),
        ("run 'inferencerun repair OUTPUT_URI --shard N'", "run 'inferencerun repair s3://bucket/out --shard N'"),
        ("open a new generation with --restart", "open a new generation with spec.resume: Restart"),
        ("'kubectl inferencerun retry other'", "'kubectl inferencerun retry other'"),
        ("s3://bucket/inferencerun failures", "s3://bucket/inferencerun failures"),
    ],
)
def test_commands_and_options_become_those_of_a_cluster(text: str, expected: str) -> None:
    """By name and namespace, ready to be copied; twice is the same as once."""
    assert reworded(text, RUN) == expected
    assert reworded(expected, RUN) == expected


def test_the_plug_in_has_the_commands_that_are_named() -> None:
    """Or whoever copies one would be told that there is no such command."""
    assert set(PLUG_IN_COMMANDS) <= COMMANDS.keys()


def test_no_message_leaves_a_cluster_with_the_words_of_a_single_machine() -> None:
    """All texts that controllers write, and that the plug-in shows of the code it shares, turn into commands that work."""
    texts = list(_texts())
    left = [f"{path}: {text}" for path, text in texts if ELSEWHERE.search(reworded(text, RUN))]

    assert sum(bool(ELSEWHERE.search(text)) for _, text in texts) >= 10
    assert left == []


def _texts() -> Iterator[tuple[str, str]]:
    """Messages of all modules that a cluster's texts come from, an f-string with its fields left out."""
    files = [
        *(path for path in (ROOT / "cli").glob("*.py") if path.stem not in OWN_CLI),
        *(path for path in (ROOT / "controller").glob("*.py") if path.stem != "wording"),
        *(ROOT / "contract").rglob("*.py"),
    ]
    for path in files:
        tree = ast.parse(path.read_text())
        aside = {
            id(part)
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr | ast.Expr)
            for part in ast.walk(node)
            if isinstance(part, ast.Constant)
            and (isinstance(node, ast.JoinedStr) or getattr(node, "value", None) is part)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = (str(item.value) if isinstance(item, ast.Constant) else "…" for item in node.values)
                yield path.name, "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in aside:
                yield path.name, node.value
