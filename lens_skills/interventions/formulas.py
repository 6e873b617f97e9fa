"""What each kind of edit puts in place of an activation.

`formula_of` reads an edit's source once; a `Change` is the edit bound to a model and its examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations.tokenization import encode_examples, with_answers
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.baselines import (
    Baseline,
    EditInput,
    Formula,
    SourceReader,
    generator_of,
)
from lens_skills.models.weights import LayerSite


@dataclass(frozen=True, eq=False)
class Change:
    """An edit bound to a model, its examples and their baselines: old activations to new ones.

    Attributes:
        name: In words, such as ``"mean ablation over agreement, 0.4 of all #1"``.
        n_draws: How many random draws the effect is averaged over; 1 where nothing is random.
    """

    name: str
    n_draws: int
    formula: Formula

    def new(
        self,
        layer: int,
        site: str,
        old: Float[Tensor, "row pos feature"],
        features: Int[Tensor, "row feature"],
        examples: Int[Tensor, " row"],
        draw: int = 0,
    ) -> Float[Tensor, "row pos feature"]:
        """What stands in place of ``old``, which is never changed itself.

        Row r of it holds the features ``features[r]`` of the example with place ``examples[r]`` in
        the examples that were bound.

        ``pos`` are the edited positions in the order they were asked for. With ``"all"`` it is the
        p-th token of the prompt (its beginning-of-sequence token left out); positions past a row's
        prompt are padding at the end, and what comes back there means nothing.
        """
        spot = EditInput(layer, site, old, features, examples, draw)
        return self.formula(spot).to(old)


def formula_of(kind: str, amount: float, over: Any, source: Any, reader: SourceReader) -> Formula:
    """What an edit computes, after its source was read once.

    Raises:
        LensSkillsError: A source that is missing, empty, or does not fit the examples.
    """
    if kind == "zero":
        return lambda spot: torch.zeros_like(spot.old)
    if kind == "clamp":
        return lambda spot: torch.full_like(spot.old, amount)
    if kind == "scale":
        return lambda spot: spot.old * amount
    if kind == "patch":
        return patch_formula(source, reader)
    if over is None:
        what = {"mean": "means", "resample": "donors"}.get(kind, "standard deviations")
        raise LensSkillsError(
            f"{kind!r} needs a split for its {what}, and none was declared. Say over=explore (a "
            "Task, or the Scores of one)."
        )
    if kind == "resample":
        return _resample(over, reader)
    baseline = reader.baseline(over)
    if kind == "mean":
        return lambda spot: _pick(baseline.mean, spot).expand_as(spot.old)
    if kind == "steer":
        return lambda spot: spot.old + amount * _pick(baseline.std, spot).to(spot.old)
    assert kind == "noise", kind
    return _noise(baseline, amount, reader)


def patch_formula(source: Any, reader: SourceReader) -> Formula:
    """What puts the source's own activation in place, after one pass over the source."""
    twins = _twins(source, reader.examples)
    if reader.everywhere:
        _refuse_unequal(reader, twins)
    values = reader.values(twins)
    fixed = len(twins) == 1

    def compute(spot: EditInput) -> Tensor:
        place = torch.zeros_like(spot.examples) if fixed else spot.examples
        if int(place.max()) >= len(twins):
            raise LensSkillsError(
                f"{len(twins)} examples to patch from, but a batch of {int(place.max()) + 1} rows."
            )
        n_pos = spot.old.shape[1]
        table = values[spot.layer, spot.site][place.cpu(), :n_pos]
        index = repeat(spot.features.cpu(), "row feature -> row pos feature", pos=n_pos)
        return table.gather(2, index)

    return compute


def _twins(source: Any, examples: Sequence[Any]) -> list[Any]:
    if hasattr(source, "prompt"):
        return [source]
    if source != "corrupted":
        twins = list(source)
        if examples and len(twins) != len(examples):
            raise LensSkillsError(
                f"{len(twins)} examples to patch from, but {len(examples)} to patch: they are "
                "paired one to one. Give as many, or a single example."
            )
        return twins
    if not examples:
        raise LensSkillsError(
            "'corrupted' means each example's twin, and plain hooks do not know the examples. Give "
            "the twins themselves: patch(examples)."
        )
    without = [example.id for example in examples if example.corrupted is None]
    if without:
        raise LensSkillsError(
            f"example {without[0]!r} has no corrupted twin to patch from ({len(without)} of "
            f"{len(examples)} lack one)."
        )
    return [
        Example(
            id=example.id,
            prompt=example.corrupted,
            answer=example.foil or example.answer,
            labels=example.labels,
            covariates=example.covariates,
        )
        for example in examples
    ]


def _refuse_unequal(reader: SourceReader, twins: Sequence[Any]) -> None:
    if not reader.examples:
        return
    answers = with_answers(reader.examples, reader.answers)
    here = encode_examples(reader.adapter, reader.examples, answers=answers)
    there = encode_examples(reader.adapter, twins, answers=answers)
    for item, twin in zip(here, there if len(there) > 1 else there * len(here), strict=True):
        if len(item.prompt_tokens) != len(twin.prompt_tokens):
            raise LensSkillsError(
                f"example {item.id!r} has {len(item.prompt_tokens)} tokens, but what it is patched "
                f"from has {len(twin.prompt_tokens)}: at position 'all' they must be as many. "
                "Choose single positions."
            )


def _pick(table: Mapping[LayerSite, Float[Tensor, "pos width"]], spot: EditInput) -> Tensor:
    """The table's numbers for the spot's features, ``row pos feature`` (pos may be 1)."""
    found = table[spot.layer, spot.site][:, spot.features.cpu()].transpose(0, 1)
    if found.isnan().any():
        lacks = int(spot.features[tuple(found.isnan().any(1).nonzero()[0])])
        raise LensSkillsError(
            f"over= holds no numbers for feature {lacks} of {spot.site} in layer {spot.layer}. "
            "Give the split itself: over=task."
        )
    return found.to(spot.old.device)


def _noise(baseline: Baseline, amount: float, reader: SourceReader) -> Formula:
    def compute(spot: EditInput) -> Tensor:
        n_pos, width = spot.old.shape[1], baseline.std[spot.layer, spot.site].shape[1]
        noise = torch.zeros(spot.old.shape, dtype=torch.float64)
        for example in spot.examples.unique().tolist():
            # A whole layer's noise is drawn each time, so that a unit's does not depend on which
            # units stand beside it; positions are drawn one after another for the same reason.
            words = ("noise", reader.key(example), spot.layer, spot.site, spot.draw)
            drawn = generator_of(reader.seed, *words).standard_normal((n_pos, width))
            for row in (spot.examples == example).nonzero()[:, 0].tolist():
                noise[row] = torch.from_numpy(drawn)[:, spot.features[row].cpu()]
        size = amount * _pick(baseline.std, spot)
        return spot.old + (size * noise.to(size)).to(spot.old)

    return compute


def _resample(over: Any, reader: SourceReader) -> Formula:
    if hasattr(over, "provenance") or isinstance(over, Baseline):
        raise LensSkillsError(
            "'resample' puts in place what other examples did, which results do not hold. Give the "
            "split itself: over=task."
        )
    donors = [example.id for example in over]
    values = reader.values(over, one_token=reader.everywhere)

    @cache
    def others(key: str) -> np.ndarray:
        """Every donor but the example itself, in an order drawn for it."""
        found = [place for place, donor in enumerate(donors) if donor != key]
        if not found:
            raise LensSkillsError(
                f"over= holds no example but {key!r} itself to resample it from. Give more."
            )
        return generator_of(reader.seed, "donor", key).permutation(found)

    for example in reader.examples:
        others(example.id)

    def chosen(place: int, draw: int, n_pos: int) -> np.ndarray:
        """One donor for all positions; with "all", one for each."""
        order = others(reader.key(place))
        if reader.everywhere:
            generator = generator_of(reader.seed, "donors", reader.key(place), draw)
            return order[generator.integers(len(order), size=n_pos)]
        return np.repeat(order[draw % len(order)], n_pos)

    def compute(spot: EditInput) -> Tensor:
        n_pos = spot.old.shape[1]
        rows = {place: chosen(place, spot.draw, n_pos) for place in spot.examples.unique().tolist()}
        donor = torch.from_numpy(np.stack([rows[place] for place in spot.examples.tolist()]))
        positions = torch.arange(n_pos) * (0 if reader.everywhere else 1)
        table = values[spot.layer, spot.site]
        return table[donor[:, :, None], positions[None, :, None], spot.features.cpu()[:, None]]

    return compute
