"""What shares examples with what, and which scores fit together: leakage is refused here."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from lens_skills.activations.activation_reader import ActivationReader
from lens_skills.data import Example, field_of
from lens_skills.errors import LensSkillsError
from lens_skills.models import SoftPrompt
from lens_skills.scoring.scores import MetricScores, Scores, one_metric


def shared(
    ids: Iterable[str],
    groups: Iterable[str],
    other_ids: Iterable[str],
    other_groups: Iterable[str] = (),
) -> str:
    """What two sets of examples have in common, in words; empty where it is nothing.

    >>> shared(["a", "b"], ["g", "h"], ["b"], ["h"]), shared(["a"], ["g"], ["c"], ["g"])
    ('1 examples', '1 groups')
    """
    examples, alike = set(ids) & set(other_ids), set(groups) & set(other_groups)
    return f"{len(examples)} examples" if examples else f"{len(alike)} groups" if alike else ""


def known_to(examples: Sequence[Example], provenance: Mapping[str, Any]) -> str:
    """What of some examples a result was made with, in words; empty where it is nothing."""
    ids, groups = set(provenance.get("example_ids", ())), set(provenance.get("groups", ()))
    for part in (provenance, provenance.get("explore", {}), provenance.get("confirm", {})):
        borrowed = _borrowed(part)
        ids, groups = ids | borrowed[0], groups | borrowed[1]
    return shared(field_of(examples, "id"), field_of(examples, "group"), ids, groups)


def _borrowed(provenance: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """Ids and groups of the examples behind what scores share; see `score`'s ``share``.

    A group of another task says nothing here, whatever its name.
    """
    others = provenance.get("share", ())
    alike = [other for other in others if other["task"] == provenance.get("task")]
    ids = {name for other in others for name in other["example_ids"]}
    return ids, {name for other in alike for name in other["groups"]}


def _seen_by(scores: Scores) -> tuple[set[str], set[str]]:
    """Ids and groups that scores were made with: their own, and those of what they share."""
    ids, groups = _borrowed(scores.provenance)
    return ids | set(scores.example_ids), groups | set(scores.groups)


def check_prompt(prompt: SoftPrompt | None, examples: Sequence[Example], exploratory: bool) -> bool:
    """Whether a soft prompt was trained on these examples; refused unless ``exploratory``."""
    if prompt is None:
        return False
    what = known_to(examples, prompt.provenance)
    if what and not exploratory:
        raise LensSkillsError(
            f"the soft prompt was trained on {what} of this split: it may have learned them by "
            "heart. Use another split, or say exploratory=True to mark the result."
        )
    return bool(what)


def check_reuse(explore: Scores, confirm: Scores, exploratory: bool) -> bool:
    """Whether the splits share examples or groups; refused unless ``exploratory``."""
    what = shared(*_seen_by(explore), *_seen_by(confirm))
    if what and not exploratory:
        raise LensSkillsError(
            f"explore and confirm share {what}, so confirming would repeat the search. Use "
            "task.split(…), or say exploratory=True to mark the result."
        )
    return bool(what)


def check_baseline(
    baseline: Scores, examples: Sequence[Example], source: ActivationReader, exploratory: bool
) -> None:
    """Refuses thresholds of the same examples, another model, site or position."""
    what = shared(field_of(examples, "id"), (), baseline.example_ids)
    if what and not exploratory:
        raise LensSkillsError(
            f"the baseline was measured on {what} of this split. Take its thresholds "
            "from another split, or say exploratory=True."
        )
    if baseline.provenance.get("chat", False) != source.about["chat"]:
        raise LensSkillsError(
            f"the baseline was measured with chat={baseline.provenance.get('chat', False)!r}, and "
            f"this with chat={source.about['chat']!r}. Measure both alike."
        )
    rounded = (baseline.provenance.get("precision"), source.about.get("precision"))
    if rounded[0] != rounded[1]:
        raise LensSkillsError(
            f"the baseline was measured with precision={rounded[0]!r}, and this with "
            f"precision={rounded[1]!r}. Measure both alike."
        )
    if baseline.provenance.get("model_fingerprint") != source.about["model_fingerprint"]:
        raise LensSkillsError("the baseline was measured on another model.")
    if baseline.site != source.site.name or baseline.positions != source.labels:
        raise LensSkillsError(
            f"the baseline is of {baseline.site} at {baseline.positions}, not "
            f"{source.site.name} at {source.labels}."
        )


def check_match(explore: MetricScores, confirm: MetricScores) -> None:
    """Refuses scores of another metric, site, position, model, task or partialling."""
    one, other = explore.scores, confirm.scores
    pairs: dict[str, tuple[Any, Any]] = {
        "metric": (explore.metric, confirm.metric),
        "site": (one.site, other.site),
        "positions": (one.positions, other.positions),
    }
    for key in ("model_fingerprint", "task", "given", "chat", "template"):
        pairs[key] = (one.provenance.get(key), other.provenance.get(key))
    _check_same(pairs, "the two scores", "on explore", "on confirm")


def check_seeds(
    scores_by_seed: Sequence[Scores], metric: str | None, *, at_least: int = 1
) -> list[MetricScores]:
    """One metric of scores under several prompts; None for the only one there is.

    Refuses too few scores, another metric, site, model or neurons, and the same pass twice.
    """
    if len(scores_by_seed) < at_least:
        raise LensSkillsError(
            f"{len(scores_by_seed)} scores: give one per prompt, {at_least} at least."
        )
    first = scores_by_seed[0]
    metric = one_metric(first).metric if metric is None else metric
    for place, scores in enumerate(scores_by_seed):
        _ = scores[metric]  # raises where it is missing
        pairs: dict[str, tuple[Any, Any]] = {"site": (first.site, scores.site)}
        # The weights: with its prompt, a model's own fingerprint differs from seed to seed.
        for key in ("weights", "task", "chat", "template", "given"):
            pairs[key] = (first.provenance.get(key), scores.provenance.get(key))
        pairs["the model"] = pairs.pop("weights")
        _check_same(pairs, "the scores", "in #0", f"in #{place}")
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
    return [scores[metric] for scores in scores_by_seed]


def _check_same(pairs: Mapping[str, tuple[Any, Any]], scores: str, one: str, other: str) -> None:
    for what, (here, there) in pairs.items():
        if here != there:
            raise LensSkillsError(
                f"{scores} do not fit together: {what} is {here!r} {one} and {there!r} {other}."
            )
