"""`Baseline`: the mean and the standard deviation of every unit over a declared split."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.activations import Position, find_site, parse_position
from lens_skills.activations.encoding import Encoded, encode_examples
from lens_skills.activations.forward import forward_batch
from lens_skills.activations.gathering import Rows
from lens_skills.activations.plan import NOTHING
from lens_skills.activations.positions import Reading, token_places
from lens_skills.activations.stream import batches
from lens_skills.causal.units import site_width
from lens_skills.errors import LensSkillsError
from lens_skills.models import Lens
from lens_skills.stats.moments import RunningMoments

Key = tuple[int, str]  # layer and site
Sites = Mapping[str, Sequence[int]]  # the layers of each site


@dataclass(frozen=True, eq=False)
class Baseline:
    """What each feature is by default, per edited position; NaN where the source does not say.

    With position ``"all"`` there is one row, over all tokens of the prompts.

    Attributes:
        mean, std: Of each (layer, site); the population standard deviation.
        split_name: Where they were measured, in words.
    """

    mean: Mapping[Key, Float[Tensor, "pos width"]]
    std: Mapping[Key, Float[Tensor, "pos width"]]
    split_name: str


def edited_positions(position: Position) -> Reading:
    """A position that can be edited: single tokens, or ``"all"``.

    Raises:
        LensSkillsError: A pooled position: a mean over tokens is no place in the network.
    """
    reading = parse_position(position)
    if reading.pool:
        raise LensSkillsError(
            f"position {reading.labels[0]!r} pools tokens, and a pooled number cannot be edited. "
            "Choose 'last', an index, span('text'), a list of those, or 'all'."
        )
    return reading


def position_labels(position: Position) -> tuple[str, ...]:
    """The labels of the edited positions; ``-1`` is the last token like ``"last"``.

    >>> position_labels([-1, 0])
    ('last', '0')
    """
    return tuple(map(_plain, edited_positions(position).labels))


def measure_baseline(
    lens: Lens,
    over: Any,
    sites: Sites,
    *,
    position: Position,
    answers: bool | None = None,
    batch_size: int = 32,
) -> Baseline:
    """Mean and standard deviation of every feature of the sites, from a split or from results.

    Args:
        lens: The model.
        over: Examples (one pass over them), or what holds the numbers: `Scores`, a `Selection`, or
            a baseline, which is returned as it is.
        sites: The layers to know about, per site.
        position: The edited positions; the baseline is taken at the same ones.
        answers: Whether prompts are read as a metric with answers reads them (None: where every
            example has an answer); see `encode_examples` on spaces.
        batch_size: Examples per forward pass.

    Raises:
        LensSkillsError: Results of another model, site or position.
    """
    if isinstance(over, Baseline):
        return over
    if hasattr(over, "site") and hasattr(over, "provenance"):
        return _from_results(lens, over, sites, position_labels(position))
    mean, std = {}, {}
    for site, layers in sites.items():
        sums: RunningMoments | None = None
        for _, values, mask in read_batches(
            lens, over, site, layers, position=position, answers=answers, batch_size=batch_size
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


def read_batches(
    lens: Lens,
    examples: Sequence[Any],
    site: str,
    layers: Sequence[int],
    *,
    position: Position,
    answers: bool | None,
    batch_size: int,
) -> Iterator[
    tuple[list[Encoded], Float[Tensor, "batch pos layer width"], Bool[Tensor, "batch pos"] | None]
]:
    """Batches of one site's activations at the edited positions (layers in ascending order).

    The mask says for ``"all"`` which positions are tokens of the prompt; rows end in padding.
    """
    where, reading = find_site(lens, site, layers), edited_positions(position)
    # Unlike a stream without metrics: a prompt must end where it ends in the pass that measures
    # the effect, and that one may hand a trailing space to the answer.
    encoded = encode_examples(lens, examples, answers=with_answers(examples, answers))
    for batch in batches(encoded, NOTHING, batch_size, 0, False, "read"):
        places = [[token_places(lens, item, spot) for spot in reading.spots] for item in batch]
        rows = Rows(where, reading, places, batch, NOTHING)
        forward_batch(lens, batch, NOTHING, (), {}, rows.readers())
        values, mask = rows.result()
        if values.ndim == 3:
            values = rearrange(values, "batch layer width -> batch 1 layer width")
        yield batch, values.cpu(), None if mask is None else mask.cpu()


def with_answers(examples: Any, answers: bool | None) -> bool:
    """Whether prompts are read together with their answers; None: where all have one."""
    return all(example.answer is not None for example in examples) if answers is None else answers


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


def _from_results(lens: Lens, over: Any, sites: Sites, labels: tuple[str, ...]) -> Baseline:
    kind = type(over).__name__
    about = over.provenance.get("explore", over.provenance)
    made_with = about.get("model_fingerprint")
    if made_with is not None and made_with != lens.fingerprint():
        raise LensSkillsError(
            f"over= is a {kind} of another model (fingerprint {made_with[:8]}…) than {lens.name}. "
            "Give the split itself: over=task."
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
    mean: dict[Key, Tensor] = {}
    std: dict[Key, Tensor] = {}
    for site, layers in sites.items():
        width = site_width(lens, site)
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


def _plain(label: str) -> str:
    return "last" if label == "-1" else label
