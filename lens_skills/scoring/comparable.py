"""`check_seeds`: whether scores under several prompts can be put side by side."""

from collections.abc import Sequence
from typing import Any

import torch

from lens_skills.errors import LensSkillsError
from lens_skills.scoring.scores import Scores


def check_seeds(scores_by_seed: Sequence[Scores], metric: str, *, at_least: int = 1) -> None:
    """Refuses too few scores, another metric, site, model or neurons, and the same pass twice."""
    if len(scores_by_seed) < at_least:
        raise LensSkillsError(
            f"{len(scores_by_seed)} scores: give one per prompt, {at_least} at least."
        )
    first = scores_by_seed[0]
    for place, scores in enumerate(scores_by_seed):
        _ = scores[metric]  # raises where it is missing
        pairs: dict[str, tuple[Any, Any]] = {"site": (first.site, scores.site)}
        # The weights: with its prompt, a model's own fingerprint differs from seed to seed.
        for key in ("weights", "task", "chat", "given"):
            pairs[key] = (first.provenance.get(key), scores.provenance.get(key))
        for what, (here, there) in pairs.items():
            if here != there:
                what = {"weights": "the model"}.get(what, what)
                raise LensSkillsError(
                    f"the scores do not fit together: {what} is {here!r} in #0 and {there!r} in "
                    f"#{place}."
                )
        if not torch.equal(first.layer, scores.layer) or not torch.equal(
            first.neuron, scores.neuron
        ):
            raise LensSkillsError(
                f"the scores do not fit together: #0 and #{place} hold other neurons, or in "
                "another order. Score the same layers and neurons under every prompt."
            )
        for earlier in range(place):
            other = scores_by_seed[earlier]
            if scores.r.shape == other.r.shape and torch.equal(scores.mean, other.mean):
                raise LensSkillsError(
                    f"#{earlier} and #{place} have the same activations: one prompt on one set of "
                    "examples, given twice. Give one pass per prompt."
                )
