"""Where a result comes from: enough to repeat it and to refuse what does not fit."""

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import Tensor

from lens_skills.activations import Metric
from lens_skills.example import Example
from lens_skills.scoring.columns import Columns

_PACKAGES = ("lens-skills", "transformer-lens", "torch", "transformers", "numpy", "scipy")


def describe_pass(
    source: Mapping[str, Any],
    examples: Sequence[Example],
    metrics: Sequence[Metric],
    columns: Columns,
    *,
    n_rotations: int,
    seed: int,
    given: Sequence[str],
) -> dict[str, Any]:
    """The provenance of a scoring pass, as plain JSON values."""
    return {
        **source,
        "task": getattr(examples, "name", "examples"),
        "split": getattr(examples, "split_name", "all"),
        "examples": examples_hash(examples),
        "metrics": [metric.name for metric in metrics],
        "units": {metric.name: metric.unit for metric in metrics},
        "exchange": dict(columns.schemes),
        "given": list(given),
        "n_permutations": columns.layout.n_draws,
        "n_controls": columns.layout.n_controls,
        "n_rotations": n_rotations,
        "seed": seed,
        "versions": versions(),
    }


def examples_hash(examples: Sequence[Example]) -> str:
    """A hash of the examples' ids, prompts, groups and kinds, in order."""
    digest = hashlib.sha256()
    for example in examples:
        parts = (example.id, example.prompt, example.group, example.kind)
        digest.update("\0".join(parts).encode() + b"\0")
    return digest.hexdigest()[:16]


def numbers_hash(*tensors: Tensor) -> str:
    """A hash of the numbers in some tensors, in order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of the packages that make the numbers."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
