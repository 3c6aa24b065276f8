"""`inferencerun run` as a user starts it: a process of its own, a YAML file, an output directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from contract import layout, manifest
from contract.manifest import ShardManifest
from contract.store.open import open_store

REPOSITORY = Path(__file__).parents[2]
TIMEOUT_S = 90.0


def wait_until(condition: Callable[[], Any], *, timeout_s: float = TIMEOUT_S) -> Any:
    """The condition's first true value; fails the test when there is none in time."""
    deadline = time.monotonic() + timeout_s
    never = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s in vain for {condition}"
        never.wait(0.01)


def fasta(path: Path, sequences: list[str]) -> Path:
    """A FASTA file whose ids are r0, r1, ..."""
    content = "".join(f">r{number}\n{sequence}\n" for number, sequence in enumerate(sequences))
    if not path.exists() or path.read_text() != content:  # written again, it would be another input: the ETag moves
        path.write_text(content)
    return path


@dataclass
class LocalRun:
    """One spec, and the commands on it."""

    directory: Path
    sequences: list[str]
    model: dict[str, Any] = field(default_factory=lambda: {"name": "kmer", "maxTokensPerBatch": 200})
    spec: dict[str, Any] = field(default_factory=dict)
    """Merged over the defaults, section by section."""
    name: str = "test-run"
    store_uri: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def output(self) -> str:
        """The output URI."""
        return self.store_uri or str(self.directory / "out")

    def write(self) -> Path:
        """Input and resource on disk."""
        source = fasta(self.directory / "in.fasta", self.sequences)
        size = source.stat().st_size
        spec: dict[str, Any] = {
            "input": {"uris": [str(source)], "shardBytes": max(1, -(-size // 4))},
            "output": {"uri": self.output},
            "model": self.model,
            "workers": {"count": 2},
            "checkpoint": {"everyRecords": 5},
        }
        for name, section in self.spec.items():
            spec[name] = {**spec[name], **section} if isinstance(spec.get(name), dict) else section
        resource = {
            "apiVersion": "inferencerun.dev/v1alpha1",
            "kind": "InferenceRun",
            "metadata": {"name": self.name},
            "spec": spec,
        }
        path = self.directory / "run.yaml"
        path.write_text(yaml.safe_dump(resource))
        return path

    def command(self, *arguments: str) -> list[str]:
        """A command line of `inferencerun`."""
        return [sys.executable, "-m", "cli", *arguments]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """`inferencerun run run.yaml --json` in the background."""
        return subprocess.Popen(
            self.command("run", str(self.write()), "--json", *arguments),
            cwd=REPOSITORY,
            env={**os.environ, **self.environment, "TMPDIR": str(self.directory)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str], *, timeout_s: float = TIMEOUT_S) -> Result:
        """Wait for the end of a started run."""
        output, errors = process.communicate(timeout=timeout_s)
        return Result(process.returncode, output, errors)

    def run(self, *arguments: str) -> Result:
        """Run to the end."""
        return self.finish(self.start(*arguments))

    def call(self, *arguments: str) -> Result:
        """Any other command on the output."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=REPOSITORY,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def manifests(self, generation: int = 1) -> Iterator[ShardManifest]:
        """The shard manifests as they are now."""
        store = open_store(self.output)
        for entry in store.list(layout.build_shards_prefix(generation)):
            yield manifest.from_json(store.get(entry.key).body, where=entry.key)

    def num_done(self) -> int:
        """Records in committed checkpoints."""
        return sum(end - start for found in self.manifests() for start, end in found.done)

    def rows(self, generation: int = 1) -> dict[str, list[float]]:
        """Row of each record by id; a record met twice fails the test."""
        rows: dict[str, list[float]] = {}
        for found in self.manifests(generation):
            for item in found.checkpoints:
                content = torch.load(Path(self.output) / item.key, weights_only=True)
                for name, row in zip(content["sequence_ids"], content["embeddings"].tolist(), strict=True):
                    assert name not in rows, f"{name} is in two checkpoints"
                    rows[name] = row
        return rows


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    output: str
    errors: str

    @property
    def fields(self) -> dict[str, Any]:
        """Its one JSON line; anything else on standard output fails the test."""
        lines = self.output.splitlines()
        assert len(lines) == 1, (self.output, self.errors)
        fields: dict[str, Any] = json.loads(lines[0])
        return fields
