"""The examples that need neither a GPU nor a bucket are run, and give what they promise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.docs.documents import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


def rows_of(example: str, directory: Path) -> tuple[list[str], np.ndarray]:
    """Ids and rows of an example that was run in `directory`."""
    (directory / "examples").symlink_to(ROOT / "examples")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "examples"))),
        "HF_HUB_OFFLINE": "1",
    }
    for command in (
        ["run", f"examples/{example}.yaml"],
        ["verify", f"runs/{example}"],
        ["export", f"runs/{example}", "rows.npy"],
    ):
        ended = subprocess.run(
            [sys.executable, "-m", "cli", *command],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=360,
            check=False,
        )
        assert ended.returncode == 0, f"{command}\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
    lines = (directory / "rows.npy.ids.jsonl").read_text().splitlines()
    return [json.loads(line)["id"] for line in lines], np.load(directory / "rows.npy").astype(np.float32)


def test_each_sentence_is_nearest_to_its_paraphrase(tmp_path: Path) -> None:
    """A real sentence model (all-MiniLM-L6-v2) through `model.name: torch`."""
    ids, rows = rows_of("text-embeddings", tmp_path)

    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -1)
    nearest = [ids[at] for at in similarity.argmax(1)]

    assert rows.shape == (12, 384)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=0.01)
    assert [name.partition("-")[0] for name in nearest] == [name.partition("-")[0] for name in ids]
    assert all(a != b for a, b in zip(nearest, ids, strict=True))


def test_pictures_are_told_apart(tmp_path: Path) -> None:
    """A trained classifier; rows are probabilities, and the likeliest class is the drawn one."""
    ids, rows = rows_of("image-classifier", tmp_path)
    classes = ("circle", "square", "triangle")

    right = [classes[at] == name.partition("-")[0] for name, at in zip(ids, rows.argmax(1), strict=True)]

    assert rows.shape == (60, 3)
    assert np.allclose(rows.sum(1), 1, atol=1e-4)
    assert sum(right) >= 57


def test_the_pictures_and_weights_are_those_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ships is what the program draws, and weights that fit its layers."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import image_classifier  # noqa: PLC0415  # type: ignore[import-not-found]

    drawn, _ = image_classifier.pictures(60, seed=2)
    lines = [json.loads(line) for line in (ROOT / "examples/data/shapes.jsonl").read_text().splitlines()]

    assert [line["picture"] for line in lines] == drawn
    assert set(load_file(ROOT / "examples/data/shapes.safetensors")) == set(
        image_classifier.ShapeClassifier().state_dict()
    )
