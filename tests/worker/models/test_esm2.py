"""The packed forward against transformers, and what makes it safe to run unattended."""

import json
import shutil
from itertools import pairwise

import pytest
import torch

from contract.errors import ModelError, SpecError
from contract.settings import ModelSettings, RowKind
from tests.worker.models.checkpoints import (
    SIZE_8M,
    TINY,
    edit_config,
    edit_tensors,
    proteins,
    randomised,
    reference_rows,
    saved,
)
from worker.models import esm2, esm2_pack
from worker.models.esm2_tokens import token_ids
from worker.models.esm2_weights import PUBLISHED_SIZES
from worker.models.registry import load_encoder

FP32_TOLERANCE = 1e-5
"""Largest difference to transformers, and between packs: a few float32 roundings of values up to 4."""
BF16_TOLERANCE = 5e-2
"""Same in bf16, with its 8 bits of precision through all layers."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(directory, EsmModel) of a model small enough for hundreds of passes."""
    directory = tmp_path_factory.mktemp("tiny")
    return directory, saved(directory, **TINY)


@pytest.fixture(scope="module")
def model_8m(tmp_path_factory):
    """(directory, EsmModel) of the smallest published size."""
    directory = tmp_path_factory.mktemp("8m")
    return directory, saved(directory, **SIZE_8M)


@pytest.fixture
def copy_of_tiny(tiny, tmp_path):
    """A directory that a test may damage."""
    return shutil.copytree(tiny[0], tmp_path / "model")


def encoder(source, **options):
    """An encoder on the CPU."""
    return load_encoder(ModelSettings(name="esm2", source=str(source), **options), device="cpu")


def payloads(sequences):
    """What the preparer would send."""
    return [token_ids(sequence) for sequence in sequences]


def largest_difference(left, right):
    """Over all numbers of two tensors."""
    return (left.float() - right.float()).abs().max().item()


# Equal to transformers


@pytest.mark.parametrize(
    "lengths",
    [(1,), (2,), (1022,), (7, 7, 7), (1, 50, 3, 50, 1, 1022, 17, 200, 3), tuple(range(1, 40))],
    ids=["one-residue", "two", "longest", "equal", "mixed", "many"],
)
@pytest.mark.parametrize("size", ["tiny", "model_8m"])
def test_rows_equal_transformers(size, lengths, request):
    """Per residue and pooled, each sequence of a pack has the rows transformers computes for it alone."""
    directory, model = request.getfixturevalue(size)
    sequences = proteins(*lengths)
    expected = [reference_rows(model, sequence) for sequence in sequences]

    per_token = encoder(directory, kind=RowKind.PER_TOKEN).encode(payloads(sequences))
    pooled = encoder(directory).encode(payloads(sequences))

    assert per_token.splits == lengths
    assert largest_difference(per_token.values, torch.cat(expected)) < FP32_TOLERANCE
    assert pooled.splits is None
    assert largest_difference(pooled.values, torch.stack([rows.mean(0) for rows in expected])) < FP32_TOLERANCE


def test_rows_equal_transformers_padded_batch(tiny):
    """A padded batch of transformers, masks and all, gives the same rows as the pack without padding."""
    directory, model = tiny
    sequences = proteins(5, 40, 12)
    ids = torch.ones((3, 42), dtype=torch.long)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence) + 2] = torch.tensor([0, *token_ids(sequence), 2])
    with torch.inference_mode():
        hidden = model(input_ids=ids, attention_mask=(ids != 1).long()).last_hidden_state

    rows = encoder(directory, kind=RowKind.PER_TOKEN).encode(payloads(sequences)).values

    assert largest_difference(rows, torch.cat([hidden[0, 1:6], hidden[1, 1:41], hidden[2, 1:13]])) < FP32_TOLERANCE


@pytest.mark.parametrize(
    "options",
    [{"is_masked_lm": True}, {"shard_size": "20KB"}, {"is_masked_lm": True, "shard_size": "20KB"}],
    ids=["masked-lm", "sharded", "both"],
)
def test_both_key_layouts_and_shards_are_read(options, tmp_path):
    """EsmForMaskedLM's `esm.` prefix and a sharded index change nothing."""
    model = saved(tmp_path, **TINY, **options)
    sequence = proteins(30)[0]

    rows = encoder(tmp_path, kind=RowKind.PER_TOKEN).encode([token_ids(sequence)]).values

    assert largest_difference(rows, reference_rows(model, sequence)) < FP32_TOLERANCE


def test_the_names_of_published_files_are_read(copy_of_tiny):
    """Published checkpoints call the norms `weight` and `bias`, not `gamma` and `beta`."""
    before = encoder(copy_of_tiny).encode(payloads(proteins(20))).values
    path = "encoder__layer__0__LayerNorm__"
    edit_tensors(copy_of_tiny, **{f"{path}gamma": None, f"{path}beta": None, f"{path}weight": torch.ones(32) * 2})
    with pytest.raises(ModelError, match=r"encoder\.layer\.0\.LayerNorm\.bias is missing"):
        encoder(copy_of_tiny)
    edit_tensors(copy_of_tiny, **{f"{path}bias": torch.zeros(32)})

    after = encoder(copy_of_tiny).encode(payloads(proteins(20))).values

    assert torch.isfinite(after).all()
    assert largest_difference(before, after) > 0.01


@pytest.mark.parametrize("place", ["rotary_embeddings", "encoder__layer__0__attention__self__rotary_embeddings"])
def test_rotary_frequencies_of_the_checkpoint_are_kept(place, copy_of_tiny):
    """Frequencies that an old checkpoint rounded to fp16 are used as they are, not computed anew."""
    before = encoder(copy_of_tiny).encode(payloads(proteins(60))).values
    edit_tensors(copy_of_tiny, **{f"{place}__inv_freq": torch.tensor([0.5, 0.25, 0.125, 0.0625], dtype=torch.float16)})

    after = encoder(copy_of_tiny).encode(payloads(proteins(60))).values

    assert largest_difference(before, after) > 1e-3


def test_lower_case_is_upper_case(tiny):
    """`mkt` and `MKT` are the same protein."""
    sequence = proteins(40)[0]
    rows = encoder(tiny[0]).encode(payloads([sequence, sequence.lower()])).values

    assert torch.equal(rows[0], rows[1])


# Bits and tolerances


def test_the_same_pack_gives_the_same_bits(model_8m):
    """A resume at a pack boundary reproduces its rows exactly, also in another process's encoder."""
    pack = payloads(proteins(80, 3, 200, 80, 45))
    first = encoder(model_8m[0])

    assert torch.equal(first.encode(pack).values, first.encode(pack).values)
    assert torch.equal(first.encode(pack).values, encoder(model_8m[0]).encode(pack).values)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", FP32_TOLERANCE), ("bf16", BF16_TOLERANCE)])
def test_rows_do_not_depend_on_the_rest_of_the_pack(model_8m, precision, tolerance):
    """A record alone and among others has the same row, up to rounding."""
    pack = payloads(proteins(80, 3, 200, 80, 45))
    model = encoder(model_8m[0], precision=precision)
    alone = torch.cat([model.encode([payload]).values for payload in pack])

    assert largest_difference(model.encode(pack).values, alone) < tolerance


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_is_near_fp32(model_8m, precision):
    """Half precision keeps the direction of every row: cosine above 0.999, as for the system this descends from."""
    pack = payloads(proteins(80, 3, 200))
    exact = encoder(model_8m[0]).encode(pack).values
    reduced = encoder(model_8m[0], precision=precision).encode(pack).values

    assert torch.cosine_similarity(exact, reduced).min() > 0.999
    assert not torch.equal(exact, reduced)


@pytest.mark.parametrize("kind", list(RowKind))
def test_rows_come_in_the_stored_dtype_and_the_second_look_in_fp32(tiny, kind):
    """`dtype` decides what is stored; encode_in_fp32 computes and returns float32 from the loaded weights."""
    pack = payloads(proteins(30, 4))
    model = encoder(tiny[0], precision="fp16", dtype="bfloat16", kind=kind)
    exact = encoder(tiny[0], kind=kind).encode(pack)

    second_look = model.encode_in_fp32(pack)

    assert model.encode(pack).values.dtype == torch.bfloat16
    assert second_look.values.dtype == torch.float32
    assert second_look.splits == exact.splits
    assert largest_difference(second_look.values, exact.values) < 5e-3  # the weights were rounded to fp16


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_model_gives_the_same_rows(tiny):
    """`compile: true` changes speed, not rows; a third pack size compiles nothing new."""
    plain, compiled = encoder(tiny[0]), encoder(tiny[0], parameters={"compile": True})
    compiled.warm_up()
    num_graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]

    for pack in (payloads(proteins(30, 4)), payloads(proteins(7, 7, 90))):
        assert largest_difference(compiled.encode(pack).values, plain.encode(pack).values) < FP32_TOLERANCE
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == num_graphs > 0


# Attention kernels


@pytest.mark.parametrize("has_splits", [True, False], ids=["torch-2.13", "torch-2.11"])
def test_the_varlen_kernel_is_given_the_bounds_of_the_sequences(monkeypatch, has_splits):
    """With a stand-in for the GPU kernel, both signatures, attention equals the grouped one of the CPU."""
    calls = []

    def over_bounds(query, key, value, cu_q, cu_k, max_q, max_k, num_splits=None):
        calls.append((cu_q.dtype, cu_q.tolist(), cu_k.tolist(), max_q, max_k, num_splits))
        parts = [
            torch.nn.functional.scaled_dot_product_attention(
                *(x[start:end].transpose(0, 1) for x in (query, key, value))
            ).transpose(0, 1)
            for start, end in pairwise(cu_q.tolist())
        ]
        return torch.cat(parts)

    def old_signature(query, key, value, cu_q, cu_k, max_q, max_k):
        return over_bounds(query, key, value, cu_q, cu_k, max_q, max_k)

    monkeypatch.setattr(esm2_pack, "varlen_attn", over_bounds if has_splits else old_signature)
    lengths, cpu = (3, 5, 3), torch.device("cpu")
    query, key, value = torch.randn(3, 11, 2, 8)

    mixed = esm2_pack._varlen_attention(lengths, cpu)(query, key, value)

    assert calls == [(torch.int32, [0, 3, 8, 11], [0, 3, 8, 11], 5, 5, 1 if has_splits else None)]
    assert largest_difference(mixed, esm2_pack._grouped_attention(lengths, cpu)(query, key, value)) < 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_gpu_agrees_with_the_cpu(model_8m, precision):
    """On a GPU, by whichever kernel: rows near the CPU's, and the same bits when asked twice."""
    pack = payloads(proteins(80, 3, 200, 1022, 80))
    exact = encoder(model_8m[0]).encode(pack).values
    settings = ModelSettings(name="esm2", source=str(model_8m[0]), precision=precision)
    model = load_encoder(settings, device="cuda:0")
    model.warm_up()

    rows = model.encode(pack).values

    assert torch.equal(rows, model.encode(pack).values)
    assert largest_difference(rows, exact) < (1e-4 if precision == "fp32" else BF16_TOLERANCE)


# Random weights


def test_random_weights_follow_from_the_seed():
    """The same seed gives the same model to the last bit, another seed another one."""
    pack, size = payloads(proteins(60, 20)), {"size": "8M"}
    rows = [encoder(f"random:{seed}", parameters=size).encode(pack).values for seed in (7, 7, 8)]

    assert torch.equal(rows[0], rows[1])
    assert largest_difference(rows[0], rows[2]) > 0.1


def test_random_rows_are_finite_and_tell_records_apart():
    """A random model is no constant: its rows are finite and differ between proteins as much as within a row."""
    rows = encoder("random:0", parameters={"size": "8M"}).encode(payloads(proteins(60, 20, 300, 60))).values

    assert torch.isfinite(rows).all()
    assert rows.std() > 0.1
    assert torch.pdist(rows).min() > 0.1


def test_published_sizes_have_their_parameters():
    """The configurations add up to the models' names (in millions, embeddings apart)."""
    num_parameters = {
        name: config.num_layers
        * (4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size + 13 * config.hidden_size)
        for name, config in PUBLISHED_SIZES.items()
    }
    millions = {name: round(number / 1e6) for name, number in num_parameters.items()}

    assert millions == {"8M": 7, "35M": 33, "150M": 148, "650M": 649, "3B": 2832, "15B": 15103}


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": ""}, r"model\.source: esm2 needs weights"),
        ({"source": "random:x"}, "whole number"),
        ({"source": "random:1"}, "size: None is unknown; choose one of 8M, 35M, 150M, 650M, 3B, 15B"),
        ({"source": "random:1", "parameters": {"size": "9M"}}, "size: '9M' is unknown"),
        ({"source": "somewhere", "parameters": {"size": "8M"}}, "only random:<seed> takes a size"),
        ({"source": "somewhere", "parameters": {"speed": 1}}, "no parameter speed; it takes compile, size"),
        ({"source": "somewhere", "parameters": {"compile": "yes"}}, "compile: 'yes' is neither true nor false"),
    ],
)
def test_a_wrong_spec_is_named_before_any_file_is_touched(options, message):
    """Source and parameters are checked against what esm2 can do; the message says what to write."""
    with pytest.raises(SpecError, match=message):
        load_encoder(ModelSettings(name="esm2", **options), device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_embedding_type": "absolute"}, "position_embedding_type is 'absolute', not 'rotary'"),
        ({"model_type": "bert"}, "model_type is 'bert', not 'esm'"),
        ({"emb_layer_norm_before": True}, "emb_layer_norm_before is set"),
        ({"num_attention_heads": 5}, "hidden_size 32 does not split into 5 even heads"),
        ({"vocab_size": 64}, "vocab_size is 64, not 33"),
        ({"hidden_size": None}, "not the configuration of an ESM-2 model"),
        ({"intermediate_size": 128}, r"intermediate\.dense\.weight is \(64, 32\) where config\.json says \(128, 32\)"),
        ({"num_hidden_layers": 3}, r"encoder\.layer\.2\.\S+ is missing"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(copy_of_tiny, changes, message):
    """A config.json of another architecture, or of other weights, is named with what is off."""
    edit_config(copy_of_tiny, **changes)

    with pytest.raises(ModelError, match=message) as caught:
        encoder(copy_of_tiny)
    assert str(copy_of_tiny) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("config.json", lambda path: path.unlink(), r"config\.json is missing"),
        ("config.json", lambda path: path.write_text("{"), "not the configuration of an ESM-2 model"),
        (
            "model.safetensors",
            lambda path: path.write_bytes(path.read_bytes()[:-9]),
            r"model\.safetensors: not a readable safetensors file",
        ),
        (
            "model.safetensors",
            lambda path: path.rename(path.with_name("pytorch_model.bin")),
            "only safetensors are read",
        ),
        ("vocab.txt", lambda path: path.write_text("A\nC\n"), r"vocab\.txt: not the vocabulary of ESM-2"),
    ],
    ids=["no-config", "broken-config", "truncated", "pickle", "vocabulary"],
)
def test_a_damaged_or_foreign_checkpoint_is_named_with_a_remedy(copy_of_tiny, name, damage, message):
    """Missing, truncated, pickled or foreign files: an error that names the file, never a wrong row."""
    damage(copy_of_tiny / name)

    with pytest.raises(ModelError, match=message):
        encoder(copy_of_tiny)


@pytest.mark.parametrize("weight_map", [{"x": "../elsewhere.safetensors"}, {"x": "gone.safetensors"}, None])
def test_an_index_that_points_nowhere_is_refused(copy_of_tiny, weight_map):
    """A sharded index names files beside it that exist, or the model is not loaded."""
    (copy_of_tiny / "model.safetensors").unlink()
    (copy_of_tiny / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    with pytest.raises(ModelError, match=r"outside its directory|not a readable safetensors|no weight_map"):
        encoder(copy_of_tiny)


def test_weights_beyond_fp16_are_refused_at_load(copy_of_tiny):
    """A weight that becomes infinite in fp16 would spoil every record; the message names it and the remedy."""
    edit_tensors(copy_of_tiny, encoder__layer__1__output__dense__bias=torch.full((32,), 1e6))

    assert encoder(copy_of_tiny, precision="bf16")
    with pytest.raises(
        ModelError, match=r"encoder\.layer\.1\.output\.dense\.bias does not fit fp16: set model\.precision"
    ):
        encoder(copy_of_tiny, precision="fp16")


def test_warm_up_refuses_a_model_without_finite_rows(copy_of_tiny):
    """A model that gives NaN for ordinary proteins fails before any record is touched."""
    edit_tensors(copy_of_tiny, encoder__emb_layer_norm_after__bias=torch.full((32,), torch.nan))
    model = encoder(copy_of_tiny)

    with pytest.raises(ModelError, match="not finite for ordinary proteins"):
        model.warm_up()


def test_warm_up_passes_a_sound_model(tiny):
    """Random and saved models warm up."""
    encoder(tiny[0]).warm_up()


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
        (MemoryError("host"), MemoryError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), MemoryError),
        (RuntimeError("shapes differ"), RuntimeError),
    ],
    ids=["cuda", "host", "cpu-allocator", "cublas", "other"],
)
def test_out_of_memory_is_told_from_other_errors(tiny, monkeypatch, raised, expected):
    """A batch that does not fit raises OutOfMemoryError or MemoryError, so that the caller halves it; others pass."""

    def fail(*_args, **_options):
        raise raised

    monkeypatch.setattr(esm2, "embedding", fail)

    with pytest.raises(expected) as caught:
        encoder(tiny[0]).encode(payloads(proteins(5)))
    assert type(caught.value) is expected


def test_a_real_failed_allocation_on_the_cpu_is_a_memory_error():
    """The allocator's own message is recognised."""
    with pytest.raises(MemoryError), esm2.memory_errors():
        torch.empty(2**50)


def test_the_comparison_could_fail():
    """Guard: transformers' model really has every tensor random, so that a forgotten bias would show."""
    model = randomised(torch.nn.Linear(3, 3))

    assert (model.bias != 0).all()
