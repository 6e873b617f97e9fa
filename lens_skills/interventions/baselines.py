"""What an edit puts in place of an activation, and the means, stds and donors it needs."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import Position
from lens_skills.activations.activation_reader import read_batches
from lens_skills.activations.components import site_width
from lens_skills.activations.forward import encode_examples, with_answers
from lens_skills.activations.locations import _plain, edited_positions, position_labels
from lens_skills.checkpoints import part
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import ModelAdapter
from lens_skills.models.identity import check_reading
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
    read = partial(_read, adapter, over, sites, position=position, answers=answers)
    mean, std = part("baseline", read)
    return Baseline(mean, std, describe_source(over))


def _read(
    adapter: ModelAdapter,
    over: Any,
    sites: Sites,
    *,
    position: Position,
    answers: bool | None,
) -> tuple[dict[LayerSite, Tensor], dict[LayerSite, Tensor]]:
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
    return mean, std


def describe_source(over: Any) -> str:
    """A split in words: ``"agreement, explore split, 384 examples"``."""
    if isinstance(over, Baseline):
        return over.split_name
    about = getattr(over, "provenance", None)
    if isinstance(about, Mapping):
        about = about.get("explore", about)
        name, split = about.get("task"), about.get("split", "all")
        n = getattr(over, "n_examples", None)
    elif hasattr(over, "split_name"):
        name, split, n = over.name, over.split_name, len(over)
    else:
        return f"{len(over):,} examples"
    size = "" if n is None else f"{n:,} examples"
    parts = [name or "examples", "" if split == "all" else split, "" if size in split else size]
    return ", ".join(part for part in parts if part)


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
    check_reading(about, adapter, f"over= is a {kind}, which")
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
        for layer in layers:
            width = site_width(adapter, site, layer)
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

    def __getstate__(self) -> dict[str, Any]:
        """All but the model: a change that is sent elsewhere has read what it needs."""
        return {**vars(self), "adapter": None}

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
    orders: dict[str, np.ndarray] = {}

    def others(key: str) -> np.ndarray:
        """Every donor but the example itself, in an order drawn for it."""
        if key in orders:
            return orders[key]
        found = [place for place, donor in enumerate(donors) if donor != key]
        if not found:
            raise LensSkillsError(
                f"over= holds no example but {key!r} itself to resample it from. Give more."
            )
        orders[key] = generator_of(reader.seed, "donor", key).permutation(found)
        return orders[key]

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
