"""ESM-2 on one GPU beside the large matrix product of the same run, with and without checkpoints.

    python benchmarks/gpu_esm2.py                               650M and 3B in bf16: under 8 minutes on an H100 or H200
    python benchmarks/gpu_esm2.py --device cpu --sizes 8M --seconds 3     shows on any machine that the script works

Where the project is not installed, run it with PYTHONPATH set to the repository's root. Weights are random, proteins
synthetic with metagenome lengths: the work is that of the real ones. Three parts, each for every size:

    product    the rate of an 8192 x 8192 x 8192 product: what this card gives at best, in this hour, at this clock
    encoder    tokens per second through the model process's encoder: packing, forward, pooling, rows back on the CPU
    worker     tokens per second of `inferencerun run` on a FASTA file, a checkpoint each 30 s against none on the way,
               from the commit of a first small object, which takes in start, weights and warm-up, to the last
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import torch
import yaml
from proteins import DISTRIBUTIONS, packs, proteins

from contract import layout, manifest
from contract.settings import ModelSettings
from contract.store.local import LocalStore
from worker.batching import Batch
from worker.models.esm2_tokens import NUM_SPECIAL_TOKENS
from worker.models.esm2_weights import PUBLISHED_SIZES
from worker.models.protocol import Encoder
from worker.models.registry import load_encoder, load_preparer

ROOT = Path(__file__).parent.parent
NUM_WARM_UP_PROTEINS = 50
"""In the worker's first object."""
CHECKPOINTS = {
    "each 30 s": {"everySeconds": 30, "emergencySeconds": 120, "everyRecords": 10**9, "everyBytes": "64Mi"},
    "none on the way": {"everySeconds": 10**6, "emergencySeconds": 10**7, "everyRecords": 10**9, "everyBytes": "1Ti"},
}


@dataclass(frozen=True, slots=True)
class Setup:
    """What differs between a GPU and a machine that only shows that the script works."""

    device: str
    precision: str
    token_budget: int
    product_width: int
    num_proteins: int
    """Distinct ones in the encoder's part; its packs are used in turn."""


GPU = Setup(device="cuda:0", precision="bf16", token_budget=65536, product_width=8192, num_proteins=4000)
CPU = Setup(device="cpu", precision="fp32", token_budget=2048, product_width=1024, num_proteins=60)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument("--sizes", nargs="+", choices=sorted(PUBLISHED_SIZES), default=["650M", "3B"])
    options.add_argument("--seconds", type=float, default=45.0, help="length of each worker run")
    options.add_argument("--compile", action="store_true", help="also measure with parameters {compile: true}")
    options.add_argument("--no-worker", action="store_true", help="leave out the worker's part")
    options.add_argument("--json", action="store_true", help="one JSON line instead of tables")
    chosen = options.parse_args()
    setup = GPU if chosen.device == "cuda" else CPU
    if setup is GPU and not torch.cuda.is_available():
        print("no CUDA device here; --device cpu --sizes 8M shows that the script works", file=sys.stderr)
        return 2
    started = time.monotonic()
    product = product_rate(setup)
    encoders, workers = [], []
    for size in chosen.sizes:
        plain = encoder_rate(setup, size, is_compiled=False, product=product)
        encoders.append(plain)
        if chosen.compile:
            encoders.append(encoder_rate(setup, size, is_compiled=True, product=product))
        if not chosen.no_worker:
            rate = plain["tokens_per_s"]
            workers += [worker_rate(setup, size, name, chosen.seconds, rate) for name in CHECKPOINTS]
    result = {
        "machine": torch.cuda.get_device_name() if setup is GPU else platform.machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "setup": {"precision": setup.precision, "token_budget": setup.token_budget, "width": setup.product_width},
        "product_flops": product,
        "encoder": encoders,
        "worker": workers,
        "elapsed_s": time.monotonic() - started,
    }
    if chosen.json:
        print(json.dumps(result))
    else:
        show(result)
    return 0


def timed(setup: Setup, work: Callable[[], object], *, num_times: int) -> float:
    """Seconds for `num_times` calls, device work included."""
    synchronise = torch.cuda.synchronize if setup is GPU else lambda: None
    synchronise()
    started = time.perf_counter()
    for _ in range(num_times):
        work()
    synchronise()
    return time.perf_counter() - started


def product_rate(setup: Setup) -> float:
    """FLOP/s of a large square product of random numbers, best of three runs of ten."""
    dtype = torch.bfloat16 if setup is GPU else torch.float32
    left, right = torch.randn(2, setup.product_width, setup.product_width, device=setup.device).to(dtype)
    timed(setup, lambda: left @ right, num_times=3)
    best_s = min(timed(setup, lambda: left @ right, num_times=10) for _ in range(3)) / 10
    return 2 * setup.product_width**3 / best_s


def settings(setup: Setup, size: str, *, is_compiled: bool) -> ModelSettings:
    return ModelSettings(
        name="esm2",
        source="random:0",
        parameters={"size": size, "compile": is_compiled},
        precision=setup.precision,
        dtype="float16",
        max_tokens_per_batch=setup.token_budget,
    )


def encoder_rate(setup: Setup, size: str, *, is_compiled: bool, product: float) -> dict:
    """Tokens per second, and the share of the product's rate, over at least five seconds of full packs."""
    chosen = settings(setup, size, is_compiled=is_compiled)
    preparer = load_preparer(chosen)
    prepared = [preparer.prepare(sequence) for sequence in proteins("metagenome", setup.num_proteins)]
    full = list(packs(prepared, setup.token_budget))[:-1]
    if setup is GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    encoder = load_encoder(chosen, device=setup.device)
    encoder.warm_up()
    encoder.encode(full[0].payloads)
    num_tokens, elapsed_s = encode_for(setup, encoder, full, at_least_s=5.0 if setup is GPU else 1.0)
    tokens_per_s = num_tokens / elapsed_s
    flops = flops_per_token(size, full)
    return {
        "size": size,
        "compiled": is_compiled,
        "tokens_per_s": tokens_per_s,
        "flops": tokens_per_s * flops,
        "share": tokens_per_s * flops / product,
        "peak_bytes": torch.cuda.max_memory_allocated() if setup is GPU else None,
    }


def encode_for(setup: Setup, encoder: Encoder, full: list[Batch], *, at_least_s: float) -> tuple[int, float]:
    """(tokens, seconds) of encoding the packs in turn."""
    num_tokens, elapsed_s = 0, 0.0
    for pack in cycle(full):
        elapsed_s += timed(setup, lambda pack=pack: encoder.encode(pack.payloads), num_times=1)
        num_tokens += pack.num_tokens
        if elapsed_s >= at_least_s:
            break
    return num_tokens, elapsed_s


def flops_per_token(size: str, full: list[Batch]) -> float:
    """Products of the layers (two per weight), and attention over each token's own protein."""
    config = PUBLISHED_SIZES[size]
    lengths = [item.num_tokens for pack in full for item in pack.items]
    attended = sum(length**2 for length in lengths) / sum(lengths)
    weights = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
    return config.num_layers * (2 * weights + 4 * config.hidden_size * attended)


def worker_rate(setup: Setup, size: str, checkpoints: str, seconds: float, tokens_per_s: float) -> dict:
    """Tokens per second of a whole run with one worker, over about `seconds`."""
    num_proteins = max(NUM_WARM_UP_PROTEINS, int(seconds * tokens_per_s / DISTRIBUTIONS["metagenome"].mean))
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        write_fasta(work / "in" / "0-warm-up.fasta", NUM_WARM_UP_PROTEINS, seed=1)
        num_tokens = write_fasta(work / "in" / "1-measured.fasta", num_proteins, seed=2)
        run_worker(work, setup, size, checkpoints)
        warm_up, measured = read_checkpoints(work / "out")
    started_at, ended_at = warm_up[-1].created_at, measured[-1].created_at
    if started_at > measured[0].created_at:
        raise RuntimeError("the worker did not begin with the warm-up object, so its start cannot be told apart")
    elapsed_s = (ended_at - started_at).total_seconds()
    return {
        "size": size,
        "checkpoints": checkpoints,
        "num_checkpoints": len(measured),
        "seconds": elapsed_s,
        "tokens_per_s": num_tokens / elapsed_s,
        "share": num_tokens / elapsed_s / tokens_per_s,
    }


def write_fasta(path: Path, num_proteins: int, *, seed: int) -> int:
    """Write proteins of metagenome lengths; returns the tokens they make."""
    path.parent.mkdir(exist_ok=True)
    drawn = proteins("metagenome", num_proteins, seed=seed)
    with path.open("w") as file:
        file.writelines(f">p{number}\n{sequence}\n" for number, sequence in enumerate(drawn))
    return sum(len(sequence) + NUM_SPECIAL_TOKENS for sequence in drawn)


def run_worker(work: Path, setup: Setup, size: str, checkpoints: str) -> None:
    """`inferencerun run` with one worker, as a user runs it; raises CalledProcessError with its output when it fails."""
    spec = {
        "apiVersion": "inferencerun.dev/v1alpha1",
        "kind": "InferenceRun",
        "metadata": {"name": "benchmark"},
        "spec": {
            "input": {"uris": [f"{work}/in/*.fasta"], "format": "fasta", "shardBytes": "1Ti"},
            "output": {"uri": str(work / "out"), "dtype": "float16", "kind": "pooled"},
            "model": {
                "name": "esm2",
                "source": "random:0",
                "parameters": {"size": size},
                "precision": setup.precision,
                "maxTokensPerBatch": setup.token_budget,
            },
            "workers": {"count": 1},
            "checkpoint": CHECKPOINTS[checkpoints],
        },
    }
    (work / "run.yaml").write_text(yaml.safe_dump(spec))
    hidden = {} if setup is GPU else {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "cli", "run", str(work / "run.yaml"), "--json"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **hidden}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")


def read_checkpoints(output: Path) -> list[tuple[manifest.Checkpoint, ...]]:
    """The checkpoints of each shard, by shard."""
    store = LocalStore(str(output))
    keys = [item.key for item in store.list(layout.build_shards_prefix(1))]
    return [manifest.from_json(store.get(key).body, where=key).checkpoints for key in keys]


def show(result: dict) -> None:
    setup, versions = result["setup"], ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    print(
        f"{result['machine']}; {versions}; {setup['precision']}, packs of {setup['token_budget']:,} tokens, metagenome"
    )
    print(f"product of width {setup['width']:,}: {result['product_flops'] / 1e12:.2f} TFLOP/s\n")
    print("| ESM-2 | compiled | tokens/s | TFLOP/s | of the product | peak memory |\n|---|---|---|---|---|---|")
    for row in result["encoder"]:
        memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.1f} GiB"
        print(
            f"| {row['size']} | {'yes' if row['compiled'] else 'no'} | {row['tokens_per_s']:,.0f} | "
            f"{row['flops'] / 1e12:.2f} | {row['share']:.0%} | {memory} |"
        )
    if result["worker"]:
        print("\n| ESM-2 | checkpoints | number | seconds | tokens/s | of the encoder |\n|---|---|---|---|---|---|")
    for row in result["worker"]:
        print(
            f"| {row['size']} | {row['checkpoints']} | {row['num_checkpoints']} | {row['seconds']:.1f} | "
            f"{row['tokens_per_s']:,.0f} | {row['share']:.1%} |"
        )
    print(f"\n{result['elapsed_s']:.0f} s in all")


if __name__ == "__main__":
    sys.exit(main())
