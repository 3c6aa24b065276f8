"""Bringing one's own model: module:callable."""

import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch
import yaml

from contract.errors import ModelError, SpecError
from contract.settings import ModelSettings, RowKind, TooLong
from worker.models.protocol import RecordTooLong, Unusable
from worker.models.registry import load_encoder, load_preparer

MODULE = '''
import numpy
import torch

calls = []

class Lengths(torch.nn.Module):
    """Row: [length * gain, is_training, is_grad_enabled]."""

    def __init__(self, gain=1.0):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(float(gain)))

    def forward(self, values):
        calls.append(values)
        row = lambda value: torch.stack([self.gain * len(value), torch.tensor(float(self.training)),
                                         torch.tensor(float(torch.is_grad_enabled()))])
        return torch.stack([row(value) for value in values])

    @staticmethod
    def num_tokens(value):
        return 2 * len(value)

    def sample(self):
        return ["warm", "up"]

def plain():
    return lambda values: torch.ones(len(values), 2)

def per_token():
    return lambda values: [torch.full((len(value), 3), float(len(value))) for value in values]

def multiply():
    weight = torch.eye(4)
    return lambda values: torch.ones(len(values), 4) @ weight

def short():
    return lambda values: torch.ones(len(values) - 1, 2)

def short_per_token():
    return lambda values: [torch.ones(1, 2)]

def flat():
    return lambda values: torch.ones(len(values))

def no_tensor():
    return lambda values: "rows"

def broken():
    raise OSError("no such file")

def too_big():
    raise torch.OutOfMemoryError("CUDA out of memory")

def fails_on_batch():
    def model(values):
        raise ZeroDivisionError("on this batch")
    return model

def no_model():
    return 7

def in_one_buffer():
    buffer = torch.zeros(10, 1)
    def model(values):
        rows = buffer[:len(values)]
        rows[:] = torch.tensor([[float(value)] for value in values])
        return rows
    return model

def counted():
    return lambda values: torch.ones(len(values), 2)

counted.num_tokens = lambda value: numpy.int64(len(value["text"]))

text = "not callable"
'''


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    """`user_model` in the working directory, as a user has it; imported modules and sys.path as before afterwards."""
    (tmp_path / "user_model.py").write_text(dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "user_model", raising=False)
    yield
    sys.modules.pop("user_model", None)


def settings(name, **options):
    """A spec that names a callable of the module above."""
    return ModelSettings(name="torch", source=f"user_model:{name}", **options)


def encoder(name, **options):
    """Its encoder on the CPU."""
    return load_encoder(settings(name, **options), device="cpu")


def test_a_module_is_built_from_the_parameters_and_run_for_inference():
    """`parameters` go to the callable; the module is in eval mode and no gradient is kept."""
    rows = encoder("Lengths", parameters={"gain": 3}).encode(["AB", "ABCD"])

    assert rows.values.tolist() == [[6, 0, 0], [12, 0, 0]]
    assert rows.splits is None
    assert not rows.values.requires_grad


def test_any_callable_is_a_model():
    """What the factory returns need not be a Module."""
    assert encoder("plain").encode([{"a": 1}, 2]).values.tolist() == [[1, 1], [1, 1]]


def test_per_token_rows_are_joined_and_counted():
    """A list of [tokens, width] becomes one tensor and the number of rows of each record."""
    rows = encoder("per_token", kind=RowKind.PER_TOKEN).encode(["AB", "A"])

    assert rows.values.tolist() == [[2] * 3, [2] * 3, [1] * 3]
    assert rows.splits == (2, 1)


@pytest.mark.parametrize("look", ["encode", "encode_in_fp32"])
def test_rows_outlive_the_next_batch(look):
    """A model that writes each batch into one buffer of its own does not change rows that are still on their way."""
    model = encoder("in_one_buffer")

    first = getattr(model, look)([1, 2]).values
    second = getattr(model, look)([3, 4]).values

    assert (first.tolist(), second.tolist()) == ([[1], [2]], [[3], [4]])


def test_precision_is_autocast_and_dtype_is_what_is_stored():
    """bf16 runs under autocast, the second look does not; rows come in the stored dtype."""
    model = encoder("multiply", precision="bf16", dtype="float16")
    seen = []
    inner = model._model
    model._model = lambda values: seen.append(inner(values).dtype) or inner(values)

    stored, second_look = model.encode(["A"]).values.dtype, model.encode_in_fp32(["A"]).values.dtype

    assert (seen, stored, second_look) == ([torch.bfloat16, torch.float32], torch.float16, torch.float32)


def test_the_parent_never_builds_the_model():
    """The preparer of a factory that raises still prepares: it only imports."""
    assert load_preparer(settings("broken")).prepare("ABC").payload == "ABC"


@pytest.mark.parametrize(
    ("name", "value", "num_tokens"),
    [
        ("plain", "ABC", 3),
        ("plain", [1, 2], 2),
        ("plain", "", 1),
        ("plain", {"a": 1, "b": 2}, 1),
        ("Lengths", "ABC", 6),
    ],
    ids=["text", "list", "empty", "object", "own-num-tokens"],
)
def test_cost_is_the_factorys_own_or_the_number_of_items(name, value, num_tokens):
    """`num_tokens` of the callable decides; without it text and lists count their items, anything else one."""
    assert load_preparer(settings(name)).prepare(value).num_tokens == num_tokens


def test_a_number_of_numpy_is_a_number():
    """What `num_tokens` gives becomes an int: budgets made of it go into manifests."""
    assert type(load_preparer(settings("counted")).prepare({"text": "AB"}).num_tokens) is int


def test_a_record_on_which_num_tokens_fails_is_unusable():
    """One record of another shape is quarantined by its own fault; it does not end the worker, time and again."""
    with pytest.raises(Unusable, match="num_tokens of the model raised KeyError: 'text'"):
        load_preparer(settings("counted")).prepare({"title": "AB"})


def test_max_length_cuts_or_refuses_text_and_lists():
    """The limit counts items of text and lists; other values have no length."""
    cut = load_preparer(settings("plain", max_length=2))
    strict = load_preparer(settings("plain", max_length=2, on_too_long=TooLong.QUARANTINE))

    assert [cut.prepare(value).payload for value in ("ABC", [1, 2, 3], {"a": 1, "b": 2, "c": 3})] == [
        "AB",
        [1, 2],
        {"a": 1, "b": 2, "c": 3},
    ]
    assert cut.prepare("ABC").is_truncated
    with pytest.raises(RecordTooLong):
        strict.prepare("ABC")


def test_warm_up_runs_the_models_own_sample():
    """`sample()` is encoded before any record; a model without one warms up at its first batch."""
    encoder("Lengths").warm_up()
    encoder("plain").warm_up()

    assert sys.modules["user_model"].calls == [["warm", "up"]]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("short", RowKind.POOLED, r"user_model:short returned 2 rows for 3 records"),
        ("short_per_token", RowKind.PER_TOKEN, "rows of 1 records for 3 records"),
        ("flat", RowKind.POOLED, r"must return a tensor \[records, width\], not a tensor \(3,\)"),
        ("no_tensor", RowKind.POOLED, "not str"),
        ("plain", RowKind.PER_TOKEN, r"must return a list of tensors .* not a tensor \(3, 2\)"),
    ],
)
def test_rows_that_do_not_match_the_batch_are_refused(name, kind, message):
    """A row too few would give every later record the wrong embedding: an error naming both numbers instead."""
    with pytest.raises(ModelError, match=message):
        encoder(name, kind=kind).encode(["A", "B", "C"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("broken", {}, "no such file"),
        ("Lengths", {"parameters": {"speed": 1}}, "speed"),
        ("no_model", {}, "returned int; it must return a callable model"),
        ("text", {}, "is str, not callable"),
        ("absent", {}, "user_model:absent cannot be imported"),
    ],
)
def test_a_model_that_cannot_be_built_says_why(name, options, message):
    """Import, parameters or the factory itself: one error with the user's own message in it."""
    with pytest.raises(ModelError, match=message):
        encoder(name, **options)


def test_a_misspelt_module_fails_in_the_parent_too():
    """The preparer imports the module, so that no model process is started for nothing."""
    with pytest.raises(ModelError, match="must be in the working directory, on PYTHONPATH or installed"):
        load_preparer(ModelSettings(name="torch", source="no_such_module:build"))


@pytest.mark.parametrize("source", ["", "user_model", "user_model:", ":build", "user-model:build", "a:b:c"])
def test_a_source_that_is_no_module_and_callable_is_an_error_of_the_spec(source):
    """The form is checked before anything is imported."""
    with pytest.raises(SpecError, match="is not module:callable"):
        load_preparer(ModelSettings(name="torch", source=source))


def test_out_of_memory_while_building_passes_unchanged():
    """The caller tells a model that does not fit the device from a broken one."""
    with pytest.raises(torch.OutOfMemoryError):
        encoder("too_big")


def test_what_the_model_raises_on_a_batch_passes_unchanged():
    """An exception on a batch is for the caller to isolate, not a broken model."""
    with pytest.raises(ZeroDivisionError):
        encoder("fails_on_batch").encode(["A"])


def test_the_example_of_the_manual_works(tmp_path):
    """The module in docs/bring-your-own-model.md runs as it stands there, with the parameters shown."""
    page = (Path(__file__).parents[3] / "docs" / "bring-your-own-model.md").read_text()
    (tmp_path / "my_model.py").write_text(page.split("```python\n")[1].split("```")[0])
    shown = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])["model"]
    model = ModelSettings(name=shown["name"], source=shown["source"], parameters=shown["parameters"])

    rows = load_encoder(model, device="cpu").encode([load_preparer(model).prepare("ABBA").payload])

    assert rows.values[0, :3].tolist() == [1.0, 1.0, 0.0]
