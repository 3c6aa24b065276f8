"""The demo: embed real proteins with four workers, kill one, drain one, and show that it adds up all the same.

    make demo              kmer over all proteins
    make demo MODEL=esm2   ESM-2 8M with random weights over 500 of them

Input: the 20,000 UniProt proteins of Debian's package mmseqs2-examples when it is there or can be installed, else the
200 that lie beside this file. Output: demo-output/ in the current directory, begun anew each time.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from contract import layout, manifest, process_identity
from contract.manifest import ShardManifest
from contract.store.local import LocalStore

PACKAGED = Path("/usr/share/doc/mmseqs2/example-data/DB.fasta.gz")
SHIPPED = Path(__file__).parent / "data" / "proteins.fasta"
DIRECTORY = Path("demo-output")
NUM_WORKERS = 4
NUM_ESM2_PROTEINS = 500
KILL_AT = 0.3
DRAIN_AT = 0.5
TIMEOUT_S = 600.0


def main() -> int:
    """Run the demo; exit code 0 when everything added up."""
    parser = argparse.ArgumentParser(
        description="Embed real proteins, killing workers half-way, and verify the result."
    )
    parser.add_argument("--model", choices=("kmer", "esm2"), default="kmer")
    model = parser.parse_args().model
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir()
    source, num_records = write_input(limit=NUM_ESM2_PROTEINS if model == "esm2" else None)
    spec = write_spec(model, num_bytes=(DIRECTORY / "proteins.fasta").stat().st_size)
    print(f"{num_records} proteins from {source}, model {model}, {NUM_WORKERS} workers; this takes a minute at most")
    summary, killed, drained = run(spec, num_records)
    verified = subprocess.run(
        [inferencerun(), "verify", str(DIRECTORY / "out"), "--json"], stdout=subprocess.PIPE, text=True, check=False
    )
    report(summary, json.loads(verified.stdout), killed=killed, drained=drained)
    is_fine = summary["phase"] == "Succeeded" and verified.returncode == 0 and killed and drained
    return 0 if is_fine else 1


def write_input(*, limit: int | None) -> tuple[str, int]:
    """Write the FASTA file; returns where it comes from and its number of records."""
    if not PACKAGED.exists():
        install_proteins()
    is_packaged = PACKAGED.exists()
    num_records = 0
    with (
        gzip.open(PACKAGED, "rt") if is_packaged else SHIPPED.open() as lines,
        (DIRECTORY / "proteins.fasta").open("w") as target,
    ):
        for line in lines:
            num_records += line.startswith(">")
            if limit is not None and num_records > limit:
                num_records -= 1
                break
            target.write(line)
    return "Debian's mmseqs2-examples (UniProt)" if is_packaged else "examples/data", num_records


def install_proteins() -> None:
    """Try to install the package with the proteins; it is fine when that cannot be done here."""
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        return
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-qq", "-y", "mmseqs2-examples"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode != 0:
            print(f"{' '.join(command)} failed, so the proteins that ship with the demo are used", file=sys.stderr)
            return


def write_spec(model: str, *, num_bytes: int) -> Path:
    """The resource, as a user would write it."""
    spec = {
        "apiVersion": "inferencerun.dev/v1alpha1",
        "kind": "InferenceRun",
        "metadata": {"name": f"demo-{model}"},
        "spec": {
            "input": {"uris": [str(DIRECTORY / "proteins.fasta")], "shardBytes": max(1, num_bytes // 16)},
            "output": {"uri": str(DIRECTORY / "out")},
            "model": {"name": "kmer", "maxTokensPerBatch": 8192}
            if model == "kmer"
            else {"name": "esm2", "source": "random:1", "parameters": {"size": "8M"}, "maxTokensPerBatch": 2048},
            "workers": {"count": NUM_WORKERS},
            "checkpoint": {"everyRecords": 100 if model == "kmer" else 5},
        },
    }
    path = DIRECTORY / "run.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path


def run(spec: Path, num_records: int) -> tuple[dict, str, str]:
    """Run it, kill one worker and drain another on the way; returns the summary and the names of the two."""
    victims = iter(((KILL_AT, signal.SIGKILL), (DRAIN_AT, signal.SIGTERM)))
    struck: list[str] = []
    due = next(victims)
    with (DIRECTORY / "run.log").open("w") as log:
        process = subprocess.Popen(
            [inferencerun(), "run", str(spec), "--json"], stdout=subprocess.PIPE, stderr=log, text=True
        )
        deadline = time.monotonic() + TIMEOUT_S
        while process.poll() is None and due is not None and time.monotonic() < deadline:
            share, number = due
            found = list(manifests())
            if sum(sum(b - a for a, b in item.done) for item in found) >= share * num_records:
                name = strike(found, number, struck)
                if name is not None:
                    struck.append(name)
                    due = next(victims, None)
            time.sleep(0.002)
        output, _ = process.communicate()
    if not output:
        sys.exit(f"the run did not start:\n{(DIRECTORY / 'run.log').read_text()}")
    killed, drained = [*struck, "", ""][:2]
    return json.loads(output), killed, drained


def manifests() -> Iterator[ShardManifest]:
    """The shard manifests as they are now."""
    store = LocalStore(DIRECTORY / "out")
    for entry in store.list(layout.build_shards_prefix(1)):
        yield manifest.from_json(store.get(entry.key).body, where=entry.key)


def strike(found: list[ShardManifest], number: signal.Signals, struck: list[str]) -> str | None:
    """Send the signal to a worker in the middle of a shard; None when there is none at this moment."""
    for item in found:
        if item.owner is None or item.owner.pod in struck or not item.done:
            continue
        identity = process_identity.parse(item.owner.uid)
        if identity is not None and process_identity.is_alive(identity):
            os.kill(identity.pid, number)
            return item.owner.pod
    return None


def report(summary: dict, verified: dict, *, killed: str, drained: str) -> None:
    """Ten lines that say what happened."""
    restarts = ", ".join(f"{name} {count}" for name, count in sorted(summary["restarts"]["byClass"].items()))
    elapsed = summary["elapsedSeconds"]
    lines = (
        ("phase", summary["phase"]),
        ("records", summary["records"]),
        ("quarantined", summary["quarantined"]),
        ("shards", f"{summary['shards']['complete']} complete, {summary['shards']['failed']} failed"),
        ("killed (SIGKILL)", killed or "nobody: the run was over too soon"),
        ("drained (SIGTERM)", drained or "nobody: the run was over too soon"),
        ("restarts by class", restarts or "none"),
        ("work lost", f"{summary['workLostSeconds']} worker seconds"),
        ("rate", f"{summary['records'] / elapsed:.0f} records/s over {elapsed} s, start of the workers included"),
        ("verify", "every record exactly once" if not verified.get("problems") else f"{verified['problems']}"),
    )
    for name, value in lines:
        print(f"{name:<18} {value}")


def inferencerun() -> str:
    """The command, as installed beside this interpreter."""
    return str(Path(sys.executable).parent / "inferencerun")


if __name__ == "__main__":
    sys.exit(main())
