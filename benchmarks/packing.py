"""What packing gains on one CPU core: ESM-2 8M packed against transformers padded, pack fill, and tokenising.

    python benchmarks/packing.py [--json] [--check]

Times are CPU time of one thread, best of three, the two sides in turn within one run: the ratio holds on a busy machine,
the rates are this machine's. `--check` ends with exit code 1 when a goal is missed. Takes about two minutes.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from proteins import lengths, packs, proteins
from transformers import EsmConfig, EsmModel, EsmTokenizer

from contract.settings import ModelSettings
from worker.models.esm2_pack import build_pack
from worker.models.esm2_tokens import CLS, EOS, VOCABULARY
from worker.models.esm2_weights import PUBLISHED_SIZES
from worker.models.protocol import Prepared
from worker.models.registry import load_encoder, load_preparer

TOKEN_BUDGET = 2048
"""A CPU is fastest while a pack's activations stay in its cache; a GPU wants 16,384 and more."""
PADDED_BATCH = 32
ROUNDS = 3
GOALS = {"metagenome": 3.0, "orf": 1.7}
"""Packed over padded, useful tokens per CPU second."""
TOKENISER_GOAL = 20e6
"""Tokens per CPU second from text to a pack: what several GPUs eat."""
SETTINGS = ModelSettings(name="esm2", source="random:0", parameters={"size": "8M"}, max_tokens_per_batch=TOKEN_BUDGET)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="one JSON line instead of tables")
    options.add_argument("--check", action="store_true", help="exit code 1 when a goal is missed")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    result = {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "machine": processor(),
        "forward": [forward("metagenome", 40), forward("orf", 160)],
        "fill": [fill(name, budget) for name in ("uniprot", "metagenome", "orf") for budget in (4096, 16384, 65536)],
        "tokenise": tokenise("metagenome"),
    }
    if chosen.json:
        print(json.dumps(result))
    else:
        show(result)
    is_good = all(row["ratio"] >= GOALS[row["lengths"]] for row in result["forward"])
    is_good = is_good and result["tokenise"]["table_tokens_per_s"] >= TOKENISER_GOAL
    return 1 if chosen.check and not is_good else 0


def processor() -> str:
    """The CPU's name as the kernel tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def forward(name: str, num_proteins: int) -> dict:
    """Useful tokens per CPU second, ESM-2 8M in fp32: packed, and padded in batches of 32 in file order."""
    preparer, encoder = load_preparer(SETTINGS), load_encoder(SETTINGS, device="cpu")
    prepared = [preparer.prepare(sequence) for sequence in proteins(name, num_proteins)]
    num_tokens = sum(record.num_tokens for record in prepared)
    model = padded_model()
    packed_s, padded_s = [], []
    for _ in range(ROUNDS):
        packed_s.append(cpu_seconds(lambda: [encoder.encode(pack.payloads) for pack in packs(prepared, TOKEN_BUDGET)]))
        padded_s.append(cpu_seconds(lambda: padded_rows(model, prepared)))
    return {
        "lengths": name,
        "tokens": num_tokens,
        "packed_tokens_per_s": num_tokens / min(packed_s),
        "padded_tokens_per_s": num_tokens / min(padded_s),
        "ratio": min(padded_s) / min(packed_s),
        "goal": GOALS[name],
    }


def padded_model() -> EsmModel:
    """The same architecture in transformers, at its defaults."""
    size = PUBLISHED_SIZES["8M"]
    config = EsmConfig(
        vocab_size=size.vocab_size,
        mask_token_id=VOCABULARY.index("<mask>"),
        pad_token_id=VOCABULARY.index("<pad>"),
        hidden_size=size.hidden_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        intermediate_size=size.intermediate_size,
        layer_norm_eps=size.layer_norm_eps,
        position_embedding_type="rotary",
        token_dropout=True,
    )
    return EsmModel(config, add_pooling_layer=False).eval()


@torch.inference_mode()
def padded_rows(model: EsmModel, prepared: list[Prepared]) -> list[torch.Tensor]:
    """Mean-pooled rows, padded to the longest of each 32."""
    rows = []
    for start in range(0, len(prepared), PADDED_BATCH):
        batch = [torch.tensor([CLS, *record.payload, EOS]) for record in prepared[start : start + PADDED_BATCH]]
        ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=VOCABULARY.index("<pad>"))
        mask = (ids != VOCABULARY.index("<pad>")).long()
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        rows += [hidden[row, 1 : len(tokens) - 1].mean(0) for row, tokens in enumerate(batch)]
    return rows


def fill(name: str, budget: int) -> dict:
    """How full next-fit in file order makes the packs of 100,000 proteins."""
    prepared = [Prepared(payload=None, num_tokens=int(length) + 2) for length in lengths(name, 100_000)]
    sizes = [pack.num_tokens for pack in packs(prepared, budget)][:-1]  # the last pack ends with the input
    return {"lengths": name, "budget": budget, "packs": len(sizes), "fill": sum(sizes) / len(sizes) / budget}


def tokenise(name: str) -> dict:
    """Tokens per CPU second from text to a pack on the CPU, and of transformers' tokeniser alone."""
    sequences = proteins(name, 2000)
    preparer, device = load_preparer(SETTINGS), torch.device("cpu")

    def by_table() -> None:
        prepared = [preparer.prepare(sequence) for sequence in sequences]
        for pack in packs(prepared, 65536):
            build_pack(pack.payloads, device)

    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(VOCABULARY))
        file.flush()
        tokenizer = EsmTokenizer(file.name)
    num_tokens = sum(len(sequence) + 2 for sequence in sequences)
    table_s = min(cpu_seconds(by_table) for _ in range(2 * ROUNDS))
    transformers_s = min(cpu_seconds(lambda: tokenizer(sequences)) for _ in range(ROUNDS))
    return {
        "tokens": num_tokens,
        "table_tokens_per_s": num_tokens / table_s,
        "transformers_tokens_per_s": num_tokens / transformers_s,
        "ratio": transformers_s / table_s,
        "goal": TOKENISER_GOAL,
    }


def show(result: dict) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    print(f"{result['machine']}, one core; {versions}\n")
    print(
        f"ESM-2 8M, fp32, useful tokens per CPU second (packs of {TOKEN_BUDGET:,}, padded batches of {PADDED_BATCH}):"
    )
    print("| lengths | tokens | packed | transformers padded | ratio | goal |\n|---|---|---|---|---|---|")
    for row in result["forward"]:
        print(
            f"| {row['lengths']} | {row['tokens']:,} | {row['packed_tokens_per_s']:,.0f} | "
            f"{row['padded_tokens_per_s']:,.0f} | {row['ratio']:.1f} | {row['goal']} |"
        )
    print("\nFill of next-fit packs in file order, 100,000 proteins, no padding in any:")
    print("| lengths | budget | packs | fill |\n|---|---|---|---|")
    for row in result["fill"]:
        print(f"| {row['lengths']} | {row['budget']:,} | {row['packs']:,} | {row['fill']:.3f} |")
    row = result["tokenise"]
    print(
        f"\nText to packs: {row['table_tokens_per_s'] / 1e6:.1f} M tokens per CPU second, goal {row['goal'] / 1e6:.0f} M; "
        f"transformers' tokeniser alone {row['transformers_tokens_per_s'] / 1e6:.2f} M ({row['ratio']:.0f} times slower)"
    )


if __name__ == "__main__":
    sys.exit(main())
