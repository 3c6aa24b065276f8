"""Names, dtypes and devices."""

import pytest
import torch

from contract import models
from contract.errors import ModelError, SpecError
from contract.models import ESM2_SIZES
from contract.settings import ModelSettings
from worker.models.esm2_weights import PUBLISHED_SIZES
from worker.models.registry import FAMILIES, check_model, load_encoder, load_preparer, resolved_device

WRONG = [
    ({"name": "bert"}, r"model\.name: 'bert' is unknown; choose one of kmer, esm2, torch"),
    ({"precision": "fp8"}, r"model\.precision: 'fp8' is unknown; choose one of fp32, bf16, fp16"),
    ({"dtype": "fp16"}, r"output\.dtype: 'fp16' is unknown; choose one of float32, float16, bfloat16"),
    ({"max_length": 0}, r"model\.maxLength: 0 is not positive"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_both_halves_refuse_a_spec_that_no_model_can_honour(options, message):
    """An unknown name, precision or dtype is named with the known ones, by check_model and in both processes."""
    settings = ModelSettings(**{"name": "kmer", **options})

    for load in (check_model, load_preparer, lambda wrong: load_encoder(wrong, device="cpu")):
        with pytest.raises(SpecError, match=message):
            load(settings)


def test_auto_is_the_gpu_when_there_is_one(monkeypatch):
    """`auto` never fails: it takes what is there."""
    for is_there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda is_there=is_there: is_there)
        assert resolved_device("auto") == torch.device(expected)


def test_a_gpu_that_is_not_there_is_named_with_how_many_there_are(monkeypatch):
    """A missing device is found before weights are read."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    assert resolved_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ModelError, match=r"cuda:2 is not there \(torch \S+ sees 2 GPUs\)"):
        resolved_device("cuda:2")


def test_an_unknown_device_is_an_error_of_the_spec():
    """The message says what is possible."""
    with pytest.raises(SpecError, match="use auto, cpu or cuda:N"):
        resolved_device("gpu0")


def test_what_is_known_of_models_without_their_code_is_what_their_code_knows():
    """The controller, which has no torch, refuses and accepts the same names and sizes."""
    assert tuple(PUBLISHED_SIZES) == ESM2_SIZES
    with pytest.raises(SpecError, match=f"choose one of {', '.join(FAMILIES)}$"):
        models.check_model(ModelSettings(name="bert"))


def test_kmer_warms_up():
    """The cheapest model has nothing that could fail."""
    load_encoder(ModelSettings(name="kmer"), device="cpu").warm_up()
