"""Model families by name: the one place that knows them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from contract import models
from contract.errors import ModelError, SpecError
from contract.settings import ModelSettings
from worker.models.custom import CustomEncoder, CustomPreparer
from worker.models.esm2 import load_esm2
from worker.models.esm2_tokens import Esm2Preparer
from worker.models.kmer import KmerEncoder, KmerPreparer
from worker.models.options import compute_dtype, stored_dtype
from worker.models.protocol import Encoder, Preparer


@dataclass(frozen=True, slots=True)
class Family:
    """How the two halves of one model are made."""

    preparer: Callable[[ModelSettings], Preparer]
    encoder: Callable[[ModelSettings, torch.device], Encoder]


FAMILIES = {
    "kmer": Family(KmerPreparer, lambda settings, _: KmerEncoder(settings)),
    "esm2": Family(Esm2Preparer, load_esm2),
    "torch": Family(CustomPreparer, CustomEncoder),
}


def check_model(settings: ModelSettings) -> None:
    """Raises SpecError on settings that no weights could mend; touches no file. Both halves begin with it."""
    models.check_model(settings)
    compute_dtype(settings)
    stored_dtype(settings)


def load_preparer(settings: ModelSettings) -> Preparer:
    """The parent's half. Cheap: loads no weight.

    Raises:
        SpecError: unknown model or parameter.
        ModelError: model `torch` whose module cannot be imported.
    """
    check_model(settings)
    return FAMILIES[settings.name].preparer(settings)


def load_encoder(settings: ModelSettings, *, device: str) -> Encoder:
    """The model process's half, its weights on the device (`auto`, `cpu` or `cuda:N`).

    Raises:
        SpecError: unknown model, parameter or device.
        ModelError: weights missing or misfit, or no such GPU.
        torch.OutOfMemoryError: the model does not fit the device.
    """
    check_model(settings)
    return FAMILIES[settings.name].encoder(settings, resolved_device(device))


def resolved_device(device: str) -> torch.device:
    """`auto` is the first GPU when there is one. Raises SpecError, or ModelError when the GPU is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise SpecError(f"device: {device!r} is unknown; use auto, cpu or cuda:N") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"device: {device} is not there (torch {torch.__version__} sees {torch.cuda.device_count()} GPUs); check "
            f"the driver, the GPU resource of the pod, and that torch is a CUDA build"
        )
    return chosen
