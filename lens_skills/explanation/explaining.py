"""`explain`: a bank of features held against the activations of some neurons."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.activations import BATCH_SIZE, DEFAULT_SITE, Position, soft_position
from lens_skills.activations.positions import parse_position
from lens_skills.causal import Unit, parse_units
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.explanation.association import associate
from lens_skills.explanation.bank import FeatureBank, feature_bank
from lens_skills.explanation.design import Design
from lens_skills.explanation.explanation import Explanation
from lens_skills.explanation.explanations import Explanations
from lens_skills.explanation.findings import feature_rows, feature_table
from lens_skills.explanation.fitting import halves
from lens_skills.explanation.reading import read_neurons, read_tokens
from lens_skills.explanation.usable import check_halves, remarks, usable
from lens_skills.explanation.vocabulary import logits_of
from lens_skills.models import SoftPrompt, prompted
from lens_skills.scoring.provenance import examples_hash, versions


def explain(
    model: Any,
    task: Sequence[Example],
    neurons: Any,
    *,
    features: FeatureBank | None = None,
    at: str | None = None,
    position: Position | None = None,
    prompt: SoftPrompt | None = None,
    k: int = 50,
    n_permutations: int = 999,
    n_examples: int = 5,
    n_tokens: int = 10,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: bool | None = None,
) -> Explanations:
    """What drives each neuron and what it writes: `Explanations`.

    The examples are split in two by group. On one half every feature is fitted and ranked, on the
    other it is measured: the variance it explains, its share among the neuron's top and bottom
    examples, its mutual information; each against exchanges of the feature that respect groups.

    Args:
        model: A HookedTransformer or TransformerBridge.
        task: A Task or examples: any that did not serve to choose the neurons are better.
        neurons: Names, (layer, index) rows, a `Selection`, or ``scores["metric"].top(20)``.
        features: From `feature_bank`; by default all that is found in the task.
        at: The site of neurons named by hand; default a selection's, else ``mlp.hook_post``.
        position: Where in the prompt; default where the selection was scored, else ``"last"``.
        prompt: A soft prompt to read every example with.
        k: Top and bottom examples for the overlap, at most a fifth of the held-out half.
        n_permutations: Exchanges of the features; 0 for none, and then there are no p.
        n_examples: Top and bottom examples to keep with their tokens, from all examples.
        n_tokens: Promoted and suppressed tokens to keep.
        seed: Of the halves and the exchanges.
        batch_size: Examples per forward pass.
        progress: Show progress (None: on a terminal only).

    Raises:
        LensSkillsError: No examples or neurons; a bank of which no feature varies here; fewer
            groups than a null can be drawn from.

    Does not show: that the feature is what the neuron reads, as features go together; nor that the
    neuron does anything with it. `shortcuts` and `verify` intervene.
    """
    if len(task) == 0:
        raise LensSkillsError("no examples to explain neurons on: the task is empty.")
    lens = prompted(model, prompt)
    site = at or getattr(neurons, "site", DEFAULT_SITE)
    units = _single(parse_units(lens, neurons, at=site))
    labels = getattr(neurons, "positions", ())
    where = soft_position(lens, labels[0] if position is None and len(labels) == 1 else position)
    if isinstance(where, list) and position is None:
        where = "last"  # of a soft prompt's vectors, the last
    bank = feature_bank(task) if features is None else features
    groups = [example.group for example in task]
    sides = check_halves(halves(groups, seed=seed), groups, n_permutations)
    how = {"batch_size": batch_size, "progress": progress}
    activations = read_neurons(lens, task, units, position=where, **how)
    values = bank.values(task)
    kept, left_out = usable(bank, values, sides)
    if not kept:
        raise LensSkillsError(
            f"none of the {len(bank)} features can be used on these {len(task)} examples: "
            + "; ".join(f"{name!r}: {why}" for name, why in list(left_out.items())[:3])
            + ". Give examples that differ, or features of your own (feature_bank(extra=…))."
        )
    active = _active(activations, sides)
    if not active.any():
        raise LensSkillsError(
            f"{units[0].name} and all others named here are never active on these examples: "
            f"{site} at {parse_position(where).labels[0]} does not vary. Choose another position, "
            "other neurons, or examples they fire on."
        )
    k = max(1, min(k, len(sides[1]) // 5))
    design = Design.of([bank[name] for name in kept], values)
    found = associate(
        activations[active], design, groups, sides, k=k, n_permutations=n_permutations, seed=seed
    )
    extremes = _extremes(activations, n_examples)
    tokens = read_tokens(lens, task, units, extremes, activations, **how)
    writes = logits_of(lens, units, k=n_tokens, over=task) if site == DEFAULT_SITE else None
    place = active.cumsum(0) - 1
    explained = []
    for number, unit in enumerate(units):
        is_active = bool(active[number])
        half = len(tokens[number]) // 2
        explained.append(
            Explanation(
                name=unit.name,
                rows=feature_rows(found, int(place[number]), bank, kept, gated=lens.gated)
                if is_active
                else (),
                top=tokens[number][:half],
                bottom=tokens[number][half:],
                writes=None if writes is None else writes[number],
                activation=activations[number],
                values=values,
                note="" if is_active else "never active on these examples: it does not vary",
            )
        )
    n_groups = len({groups[row] for row in sides[1].tolist()})
    return Explanations(
        neurons=tuple(explained),
        features=feature_table(bank, kept, found),
        site=site,
        position=parse_position(where).labels[0],
        n_fitted=len(sides[0]),
        n_held=len(sides[1]),
        n_groups=n_groups,
        k=k,
        n_permutations=n_permutations,
        left_out=left_out,
        notes=tuple(remarks(task, bank, values, left_out, active, n_groups, n_permutations, kept)),
        provenance={
            "model": lens.name,
            "model_fingerprint": lens.fingerprint(),
            "task": getattr(task, "name", "examples"),
            "split": getattr(task, "split_name", "all"),
            "examples": examples_hash(task),
            "example_ids": [example.id for example in task],
            "seed": seed,
            "versions": versions(),
        },
    )


def _single(units: Sequence[Unit]) -> tuple[Unit, ...]:
    if not units:
        raise LensSkillsError("no neurons to explain: none were named (an empty selection?).")
    wide = [unit.name for unit in units if unit.stop - unit.start > 1]
    if wide:
        raise LensSkillsError(
            f"{wide[0]} is more than one number per token. Name neurons, or single features of "
            "another site as (layer, index) with at=…."
        )
    return tuple(units)


def _active(
    activations: Float[Tensor, "neuron row"], sides: tuple[Tensor, Tensor]
) -> Bool[Tensor, " neuron"]:
    """Which neurons vary on both halves."""
    varies = [activations[:, side].amax(1) > activations[:, side].amin(1) for side in sides]
    return varies[0] & varies[1]


def _extremes(activations: Float[Tensor, "neuron row"], n: int) -> list[list[int]]:
    """The places of each neuron's n strongest examples, then of its n weakest, weakest first."""
    n = min(n, activations.shape[1] // 2)
    order = activations.argsort(dim=1, descending=True, stable=True)
    return torch.cat([order[:, :n], order.flip(1)[:, :n]], dim=1).tolist()
