"""What the built-in models can be asked for, known without their code: parameters, sources, kinds of rows. Pure.

The controller refuses with it what every worker would refuse; both halves of a worker begin with the same check.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from contract.errors import SpecError
from contract.settings import ModelSettings, RowKind

ESM2_SIZES = ("8M", "35M", "150M", "650M", "3B", "15B")
"""Published sizes of ESM-2: what `random:<seed>` can be told to make."""


def check_model(settings: ModelSettings) -> None:
    """Raises SpecError on settings that no weights could mend; touches no file."""
    if settings.name not in _CHECKS:
        raise SpecError(f"model.name: {settings.name!r} is unknown; choose one of {', '.join(_CHECKS)}")
    _CHECKS[settings.name](settings)
    if settings.max_length is not None and settings.max_length < 1:
        raise SpecError(f"model.maxLength: {settings.max_length} is not positive")


def random_seed(source: str) -> int | None:
    """The seed of `random:<seed>`; None for any other source."""
    if not source.startswith("random:"):
        return None
    if not re.fullmatch(r"random:\d{1,18}", source):
        raise SpecError(f"model.source: {source!r} must be random:<seed> with a whole number, for example random:0")
    return int(source.removeprefix("random:"))


def _check_kmer(settings: ModelSettings) -> None:
    _check_names(settings, ())
    if settings.kind is not RowKind.POOLED:
        raise SpecError("output.kind: kmer gives one row per record; set it to pooled")


def _check_esm2(settings: ModelSettings) -> None:
    _check_names(settings, ("size", "compile"))
    size, is_compiled = settings.parameters.get("size"), settings.parameters.get("compile", False)
    if not settings.source:
        raise SpecError(
            "model.source: esm2 needs weights: a directory, a prefix (s3://... or gs://...) or random:<seed>"
        )
    if not isinstance(is_compiled, bool):
        raise SpecError(f"model.parameters.compile: {is_compiled!r} is neither true nor false")
    if random_seed(settings.source) is None:
        if size is not None:
            raise SpecError("model.parameters.size: only random:<seed> takes a size; real weights come with their own")
    elif size not in ESM2_SIZES:
        raise SpecError(f"model.parameters.size: {size!r} is unknown; choose one of {', '.join(ESM2_SIZES)}")


def _check_torch(settings: ModelSettings) -> None:
    """The source alone: parameters are the callable's business."""
    module, _, name = settings.source.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise SpecError(f"model.source: {settings.source!r} is not module:callable, for example my_models:build")


def _check_names(settings: ModelSettings, allowed: Collection[str]) -> None:
    """Raises SpecError naming the parameters that the model does not have, and those it has."""
    unknown = sorted(settings.parameters.keys() - set(allowed))
    if unknown:
        has = f"it takes {', '.join(sorted(allowed))}" if allowed else "it takes none"
        raise SpecError(f"model.parameters: {settings.name} has no parameter {', '.join(unknown)}; {has}")


_CHECKS: dict[str, Callable[[ModelSettings], None]] = {
    "kmer": _check_kmer,
    "esm2": _check_esm2,
    "torch": _check_torch,
}
