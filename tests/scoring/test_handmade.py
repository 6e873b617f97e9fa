"""Activations written by hand as a table, so that every number of a score can be recomputed.

The other tests of scoring import ``handmade`` and ``examples_with`` from here.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch

from lens_skills.activations import ActivationTable, Metric
from lens_skills.activations.table_rows import columns_of
from lens_skills.data import Example
from lens_skills.scoring import score
from lens_skills.settings import config


def examples_with(
    n: int,
    *,
    prefix: str = "e",
    groups: Sequence[Any] | None = None,
    kinds: Sequence[Any] | None = None,
    labels: Mapping[str, Sequence[Any]] | None = None,
    covariates: Mapping[str, Sequence[Any]] | None = None,
) -> list[Example]:
    """``n`` examples with the given columns; by default each is its own group."""

    def row(columns: Mapping[str, Sequence[Any]] | None, place: int) -> dict[str, Any]:
        found = {name: values[place] for name, values in (columns or {}).items()}
        return {k: v.item() if isinstance(v, np.generic) else v for k, v in found.items()}

    return [
        Example(
            id=f"{prefix}{place}",
            prompt=f"prompt {place}",
            group="" if groups is None else f"group {groups[place]}",
            kind="" if kinds is None else f"kind {kinds[place]}",
            labels=row(labels, place),
            covariates=row(covariates, place),
        )
        for place in range(n)
    ]


def handmade(
    folder: Path,
    activations: np.ndarray,
    examples: Sequence[Example],
    *,
    computed: Mapping[str, Sequence[float]] | None = None,
    fingerprint: str = "model",
) -> ActivationTable:
    """A table of ``example layer neuron`` or ``example pos layer neuron``, as capture writes it.

    ``computed`` are metrics that the model would have given: a pass learns them batch by batch.
    """
    folder.mkdir(parents=True)
    several = activations.ndim == 4
    np.save(folder / "activations.npy", activations.astype(np.float32))
    parquet.write_table(columns_of(examples, computed), folder / "rows.parquet")
    manifest = {
        "format": 2,
        "model": "handmade",
        "model_fingerprint": fingerprint,
        "site": "mlp.hook_post",
        "layers": list(range(activations.shape[-2])),
        "positions": [str(p) for p in range(activations.shape[1])] if several else ["last"],
        "width": activations.shape[-1],
        "dtype": "float32",
        "chat": False,
        "shards": [{"file": "activations.npy", "rows": len(examples), "table": "rows.parquet"}],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return ActivationTable.load(folder)


def from_the_pass(name: str) -> Metric:
    """A metric that only the pass itself knows (it reads the model's output)."""

    def compute(readout: Any, examples: Any) -> Any:
        raise AssertionError("a table has it stored")

    return Metric(name, compute, frozenset({"logits"}))


def factor_activations(
    random: np.random.Generator, n: int, n_layers: int, width: int, *, offset: float = 3.0
) -> np.ndarray:
    """Correlated, skewed activations, float32: as neurons are, not as textbooks are."""
    factors = random.normal(size=(n, 5))
    linear = factors @ random.normal(size=(5, n_layers * width))
    noise = random.normal(size=(n, n_layers * width))
    acts = linear + noise
    acts[:, ::3] = np.maximum(acts[:, ::3], 0)
    return (offset + acts).reshape(n, n_layers, width).astype(np.float32)


def test_a_handmade_table_is_scored_as_it_was_written(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    acts = factor_activations(random, 30, 2, 4)
    sure = random.normal(size=30)
    examples = examples_with(30, labels={"y": np.arange(30) % 2})
    table = handmade(tmp_path / "t", acts, examples, computed={"sure": sure})
    found = score(table, examples, metrics=["label:y", from_the_pass("sure")], n_permutations=19)
    assert found.metrics == ("label:y", "sure")
    assert found.provenance["exchange"] == {"label:y": "free", "sure": "signs"}
    np.testing.assert_array_equal(found.values["sure"], sure)
    np.testing.assert_allclose(found.mean[0], acts.reshape(30, -1).astype(float).mean(0))
    np.testing.assert_allclose(found.std[0], acts.reshape(30, -1).astype(float).std(0))
    pairs = torch.stack([found.layer, found.neuron], dim=1).tolist()
    assert pairs == [[layer, neuron] for layer in range(2) for neuron in range(4)]


@pytest.mark.parametrize("batch_size", [7, 256])
def test_a_table_may_hold_several_positions(tmp_path: Path, batch_size: int) -> None:
    acts = np.random.default_rng(1).normal(size=(12, 3, 2, 4)).astype(np.float32)
    examples = examples_with(12)
    table = handmade(tmp_path / "t", acts, examples)
    with config(batch_size=batch_size):
        batches = list(table.stream(examples))
    np.testing.assert_array_equal(torch.cat([b.activations for b in batches]), acts)
