"""`join_points`: each neuron's r beside its effect, by name."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch

from lens_skills.causal.verdict import Verdict
from lens_skills.errors import LensSkillsError
from lens_skills.scoring import MetricScores

_COLUMNS = ["what", "name", "r", "strength", "effect", "low", "high", "word", "mark"]


def join_points(
    found: MetricScores, verdict: Verdict, marked: Mapping[str, str]
) -> tuple[pd.DataFrame, int]:
    """The rows that `effect_against_r` draws, and how many neurons on trial have no r.

    Raises:
        LensSkillsError: Scores of another model or site, or of none of the neurons; a mark on a
            neuron that is not in the verdict.
    """
    r = _signed_r(found, verdict)
    unknown = set(marked) - {*verdict.peers, *(ruling.name for ruling in verdict.singles)}
    if unknown:
        raise LensSkillsError(
            f"no neuron {min(unknown)!r} in this verdict to mark. It is about: "
            + ", ".join(ruling.name for ruling in verdict.singles[:5])
            + (", …." if len(verdict) > 5 else ".")
        )
    rows: list[dict[str, Any]] = []
    peers = zip(verdict.peers, verdict.peer_effect.tolist(), strict=True)
    for name, effect in peers:
        if name in r:
            rows.append({"what": "compared with", "name": name, "effect": effect})
    on_trial = [ruling for ruling in verdict.singles if ruling.name in r]
    if not on_trial:
        raise LensSkillsError(
            f"none of the {len(verdict)} units on trial was scored: the scores hold "
            f"{found.scores.n_units:,} neurons at {found.scores.site}. Pass the scores of the "
            "neurons on trial."
        )
    rows += [
        {
            "what": "on trial",
            "name": ruling.name,
            "effect": ruling.effect,
            "low": ruling.low,
            "high": ruling.high,
            "word": ruling.word,
        }
        for ruling in on_trial
    ]
    for row in rows:
        value = r[row["name"]]
        row |= {"r": value, "strength": abs(value), "mark": marked.get(row["name"], "")}
    rows.append({"what": "delta", "low": -verdict.delta, "high": verdict.delta})
    bar = found.thresholds.permutation
    if bar is not None:
        rows.append({"what": "threshold", "name": "permutation", "strength": bar})
    return pd.DataFrame(rows, columns=_COLUMNS), len(verdict) - len(on_trial)


def _signed_r(found: MetricScores, verdict: Verdict) -> dict[str, float]:
    """Signed r by name such as ``L17N635``, of neurons that vary."""
    scores, effects = found.scores, verdict.effects
    if scores.site not in effects.site.split(", "):
        raise LensSkillsError(
            f"the scores are of {scores.site}, the verdict of {effects.site}. Pass the scores of "
            "the neurons on trial."
        )
    mine, theirs = (
        about.get("model_fingerprint") for about in (scores.provenance, verdict.provenance)
    )
    if None not in (mine, theirs) and mine != theirs:
        raise LensSkillsError(
            "the scores and the verdict are of different models. Pass the scores the neurons were "
            "selected from."
        )
    if effects.position in scores.positions:
        r = found.r[scores.positions.index(effects.position)]
    else:
        strongest = found.r.abs().argmax(dim=0)
        r = found.r[strongest, torch.arange(scores.n_units)]
    places = zip(
        scores.layer.tolist(),
        scores.neuron.tolist(),
        r.tolist(),
        scores.excluded.tolist(),
        strict=True,
    )
    return {f"L{layer}N{neuron}": value for layer, neuron, value, out in places if not out}
