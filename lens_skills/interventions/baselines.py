"""What a neuron is by default: means, standard deviations and donors of a declared split.

`measure_baseline` reads them in one pass, or takes them from results; `SourceReader` hands an edit
what it needs of its source.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import Position
from lens_skills.activations.activation_reader import read_batches
from lens_skills.activations.components import site_width
from lens_skills.activations.locations import _plain, edited_positions, position_labels
from lens_skills.errors import LensSkillsError
from lens_skills.models import ModelAdapter
from lens_skills.models.weights import LayerSite
from lens_skills.stats.moments import RunningMoments

Sites = Mapping[str, Sequence[int]]  # the layers of each site


@dataclass(frozen=True, eq=False)
class Baseline:
    """What each feature is by default, per edited position; NaN where the source does not say.

    With position ``"all"`` there is one row, over all tokens of the prompts.

    Attributes:
        mean, std: Of each (layer, site); the population standard deviation.
        split_name: Where they were measured, in words.
    """

    mean: Mapping[LayerSite, Float[Tensor, "pos width"]]
    std: Mapping[LayerSite, Float[Tensor, "pos width"]]
    split_name: str


def measure_baseline(
    adapter: ModelAdapter,
    over: Any,
    sites: Sites,
    *,
    position: Position,
    answers: bool | None = None,
) -> Baseline:
    """Mean and standard deviation of every feature of the sites, from a split or from results.

    Args:
        adapter: The model.
        over: Examples (one pass over them), or what holds the numbers: `Scores`, a `Selection`, or
            a baseline, which is returned as it is.
        sites: The layers to know about, per site.
        position: The edited positions; the baseline is taken at the same ones.
        answers: Whether prompts are read as a metric with answers reads them (None: where every
            example has an answer); see `encode_examples` on spaces.

    Raises:
        LensSkillsError: Results of another model, site or position.
    """
    if isinstance(over, Baseline):
        return over
    if hasattr(over, "site") and hasattr(over, "provenance"):
        return _from_results(adapter, over, sites, position_labels(position))
    mean, std = {}, {}
    for site, layers in sites.items():
        sums: RunningMoments | None = None
        for _, values, mask in read_batches(
            adapter, over, site, layers, position=position, answers=answers
        ):
            # "all" makes every token a row of its own; else a row is an example.
            rows = values[:, None] if mask is None else values[mask][:, None, None]
            flat = rearrange(rows, "row 1 pos layer width -> row (pos layer width)")
            sums = sums or RunningMoments(0, flat.shape[1])
            sums.absorb(flat.new_zeros(len(flat), 0), flat)
            n_pos, width = rows.shape[2], rows.shape[4]
        assert sums is not None, "read_batches refuses an empty split"
        names = {"pos": n_pos, "width": width}
        pattern = "(pos layer width) -> layer pos width"
        moments = sums.freeze()
        means = rearrange(moments.unit_mean, pattern, **names)
        stds = rearrange((moments.square / moments.weight).sqrt(), pattern, **names)
        for place, layer in enumerate(sorted(set(layers))):
            mean[layer, site], std[layer, site] = means[place], stds[place]
    return Baseline(mean, std, describe_source(over))


def describe_source(over: Any) -> str:
    """A split in words: ``"agreement, 0.4 of all #1, seed 0"``."""
    if isinstance(over, Baseline):
        return over.split_name
    about = getattr(over, "provenance", None)
    if isinstance(about, Mapping):
        about = about.get("explore", about)
        return f"{about.get('task', 'examples')}, {about.get('split', 'all')}"
    if hasattr(over, "split_name"):
        return f"{over.name}, {over.split_name}"
    return f"{len(over):,} examples"


def _from_results(
    adapter: ModelAdapter, over: Any, sites: Sites, labels: tuple[str, ...]
) -> Baseline:
    kind = type(over).__name__
    about = over.provenance.get("explore", over.provenance)
    made_with = about.get("model_fingerprint")
    if made_with is not None and made_with != adapter.fingerprint():
        raise LensSkillsError(
            f"over= is a {kind} of another model (fingerprint {made_with[:8]}…) than "
            f"{adapter.name}. Give the split itself: over=task."
        )
    if about.get("chat"):
        raise LensSkillsError(f"over= is a {kind} of chat prompts; interventions read plain ones.")
    rows, held, values = _held(over)
    for what, wanted, found in (("site", set(sites), {over.site}), ("position", set(labels), held)):
        if missing := sorted(set(wanted) - set(found)):
            raise LensSkillsError(
                f"over= is a {kind} at {what} {', '.join(sorted(set(found)))}, but the edit acts "
                f"at {missing[0]}. Give the split itself: over=task."
            )
    spots = [held.index(label) for label in labels]
    mean: dict[LayerSite, Tensor] = {}
    std: dict[LayerSite, Tensor] = {}
    for site, layers in sites.items():
        width = site_width(adapter, site)
        for layer in layers:
            here = rows[:, 0] == layer
            for table, numbers in zip((mean, std), values, strict=True):
                full = torch.full((len(labels), width), torch.nan, dtype=torch.float64)
                full[:, rows[here, 1]] = numbers.double().cpu()[spots][:, here]
                table[layer, site] = full
    return Baseline(mean, std, describe_source(over))


def _held(over: Any) -> tuple[Tensor, tuple[str, ...], tuple[Tensor, Tensor]]:
    """The (layer, feature) rows of a result, its positions, its means and stds, ``pos row``."""
    if not hasattr(over, "neurons"):
        labels = tuple(map(_plain, over.positions))
        return torch.stack([over.layer, over.neuron], dim=1), labels, (over.mean, over.std)
    # A selection knows each neuron at its own position only.
    own = [_plain(label) for label in over.position]
    labels = tuple(dict.fromkeys(own))
    here = torch.tensor([[label == mine for mine in own] for label in labels])
    mean, std = (
        numbers.expand(len(labels), -1).masked_fill(~here.reshape(len(labels), len(own)), torch.nan)
        for numbers in (over.mean, over.std)
    )
    return over.neurons, labels, (mean, std)


@dataclass(frozen=True, eq=False)
class EditInput:
    """Where an edit acts in one call: rows that may belong to different examples and units."""

    layer: int
    site: str
    old: Float[Tensor, "row pos feature"]
    features: Int[Tensor, "row feature"]
    examples: Int[Tensor, " row"]
    draw: int


Formula = Callable[[EditInput], Tensor]


@dataclass(frozen=True)
class SourceReader:
    """How an edit's source is to be read: by which model, where, for which examples."""

    adapter: ModelAdapter
    examples: Sequence[Any]
    sites: Sites
    position: Position
    seed: int
    answers: bool | None

    @property
    def everywhere(self) -> bool:
        return edited_positions(self.position).ragged

    def baseline(self, over: Any) -> Baseline:
        """Mean and std over a split, or as results hold them."""
        return measure_baseline(
            self.adapter,
            over,
            self.sites,
            position=self.position,
            answers=self.answers,
        )

    def values(
        self, examples: Sequence[Any], *, one_token: bool = False
    ) -> dict[LayerSite, Float[Tensor, "example pos width"]]:
        """Every example's own activations; with ``"all"``, padded at the end.

        With ``one_token`` a single token, drawn at random, stands for each example: all tokens of
        a split would fill the memory.
        """
        found: dict[LayerSite, Tensor] = {}
        for site, layers in self.sites.items():
            parts: list[tuple[list[int], Tensor]] = []
            for index, values, mask in read_batches(
                self.adapter,
                examples,
                site,
                layers,
                position=self.position,
                answers=self.answers,
            ):
                if one_token:
                    assert mask is not None, "one of several tokens: position 'all'"
                    lengths = zip(index, mask.sum(1).tolist(), strict=True)
                    drawn = [self._token(examples[place].id, length) for place, length in lengths]
                    values = values[torch.arange(len(index)), drawn][:, None]
                parts.append((index, values))
            n_pos = max(values.shape[1] for _, values in parts)
            for place, layer in enumerate(sorted(set(layers))):
                width = parts[0][1].shape[-1]
                table = torch.zeros(len(examples), n_pos, width)
                for index, values in parts:
                    table[index, : values.shape[1]] = values[:, :, place]
                found[layer, site] = table
        return found

    def _token(self, donor: str, n_tokens: int) -> int:
        return int(generator_of(self.seed, "token", donor).integers(n_tokens))

    def key(self, place: int) -> str:
        """What random draws for an example depend on; rows of unknown examples are counted."""
        return self.examples[place].id if self.examples else f"row {place}"


def generator_of(seed: int, *words: Any) -> np.random.Generator:
    """A generator that depends on the words alone, in every process and on every machine."""
    text = "\0".join(map(str, (seed, *words)))
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
