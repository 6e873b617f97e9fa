"""A verdict on halves of its groups, from the effects it holds: no model is read."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from lens_skills.errors import LensSkillsError
from lens_skills.interventions import Ruling, Verdict
from lens_skills.interventions.verdict import (
    ALPHA,
    CAUSAL,
    COMPENSATED,
    NO_EFFECT,
    UNDECIDED,
    signed_word,
)
from lens_skills.resampling.found import Found
from lens_skills.resampling.repeated_findings import Stability, compare_runs
from lens_skills.stats.effect_estimates import estimate
from lens_skills.stats.effect_tests import beyond, equivalent

_DRAWS = 1000  # bootstrap draws of an interval: of hundreds of halves


def resampled_verdict(
    verdict: Verdict, parts: Sequence[Collection[str]], *, disjoint: bool, seed: int
) -> Stability:
    """The words of a verdict on each part of its groups.

    A word is read from the interval of the mean effect beside δ, as `rule` reads it, with δ, the
    controls and q as they are in the whole verdict. A neuron whose word in the whole rests on more
    than that (classes, other controls) is left out, and counted in a note.
    """
    groups = verdict.effects.groups
    as_before = {"n_draws": 2000, "seed": 0} | {
        key: verdict.provenance[key] for key in ("n_draws", "seed") if key in verdict.provenance
    }
    everything = words_on(verdict, set(groups), **as_before)
    kept = {r.name: r.word for r in verdict.singles if everything[r.name] == r.word}
    if not kept:
        raise LensSkillsError(
            "no word of this verdict rests on its mean effects alone. Give the function that "
            "makes the verdict: stability(lambda task: verify(model, task, …), task)."
        )
    left = len(everything) - len(kept)
    runs = []
    for part in parts:
        words = words_on(verdict, part, n_draws=_DRAWS, seed=seed)
        runs.append(_found({name: words[name] for name in kept}))
    notes = ["δ, controls and q are those of the whole verdict; only the examples are drawn anew"]
    if left:
        counts = Counter(r.word for r in verdict.singles if r.name not in kept)
        which = ", ".join(f"{count} {word}" for word, count in counts.items())
        notes.append(f"{left} left out, whose word rests on more than the mean effect: {which}")
    return compare_runs(
        replace(_found(kept), exploratory=verdict.exploratory),
        runs,
        [(place, place + 1) for place in range(0, len(parts) - 1, 2)],
        disjoint=disjoint,
        over="groups",
        runs=tuple(f"{place // 2 + 1}{'ab'[place % 2]}" for place in range(len(parts))),
        n_groups=len(set(groups)),
        n_groups_run=len(parts[0]),
        notes=tuple(notes),
        provenance={**verdict.provenance, "n": len(parts), "seed": seed},
    )


def words_on(
    verdict: Verdict, groups: Collection[str], *, n_draws: int, seed: int
) -> dict[str, str]:
    """The word of each neuron from its effects in some groups, all else as in the whole verdict."""
    effects = verdict.effects
    rows = torch.tensor([group in groups for group in effects.groups])
    kept = [group for group in effects.groups if group in groups]
    total = estimate(effects.total[:, rows], kept, n_draws=n_draws, seed=seed)
    direct = None
    if effects.direct is not None:
        direct = estimate(effects.direct[:, rows], kept, n_draws=n_draws, seed=seed)
    words = {}
    for place, (name, ruling) in enumerate(zip(effects.names, verdict.rulings, strict=True)):
        if name == "set":
            continue
        delta = _delta(verdict, ruling)
        side = int(beyond(total.low[place], total.high[place], delta))
        word = UNDECIDED
        if side and ruling.q is not None and ruling.q <= ALPHA:
            word = signed_word(side, verdict.removes)
        elif bool(equivalent(total.low90[place], total.high90[place], delta)):
            word = NO_EFFECT
            if direct is not None and beyond(direct.low[place], direct.high[place], delta):
                word = COMPENSATED
        words[name] = word
    return words


def _delta(verdict: Verdict, ruling: Ruling) -> float:
    """The neuron's own δ where there is one (per layer), else the verdict's."""
    own = getattr(ruling, "delta", None)
    return float(verdict.delta if own is None else own)


def _found(words: dict[str, str]) -> Found:
    causal = tuple(name for name, word in words.items() if word in CAUSAL)
    return Found("verdict", causal, tried=tuple(words), words=words)
