"""Whether the scores of two splits may be held against each other."""

from collections.abc import Sequence
from typing import Any

from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.models import SoftPrompt
from lens_skills.scoring.scores import MetricScores, Scores
from lens_skills.scoring.source import Source


def check_match(found: MetricScores, checked: MetricScores) -> None:
    """Refuses scores of another metric, site, position, model, task or partialling."""
    one, other = found.scores, checked.scores
    pairs: dict[str, tuple[Any, Any]] = {
        "metric": (found.metric, checked.metric),
        "site": (one.site, other.site),
        "positions": (one.positions, other.positions),
    }
    for key in ("model_fingerprint", "task", "given", "chat"):
        pairs[key] = (one.provenance.get(key), other.provenance.get(key))
    for what, (here, there) in pairs.items():
        if here != there:
            raise LensSkillsError(
                f"the two scores do not fit together: {what} is {here!r} on explore and {there!r} "
                "on confirm."
            )


def check_reuse(explore: Scores, confirm: Scores, exploratory: bool) -> bool:
    """Whether the splits share examples or groups; refused unless ``exploratory``."""
    shared = set(explore.example_ids) & set(confirm.example_ids)
    groups = set(explore.groups) & set(confirm.groups)
    if (shared or groups) and not exploratory:
        what = f"{len(shared)} examples" if shared else f"{len(groups)} groups"
        raise LensSkillsError(
            f"explore and confirm share {what}, so confirming would repeat the search. Use "
            "task.split(…), or say exploratory=True to mark the result."
        )
    return bool(shared or groups)


def check_baseline(
    baseline: Scores, examples: Sequence[Example], source: Source, exploratory: bool
) -> None:
    """Refuses thresholds of the same examples, another model, site or position."""
    shared = set(baseline.example_ids) & {example.id for example in examples}
    if shared and not exploratory:
        raise LensSkillsError(
            f"the baseline was measured on {len(shared)} of these examples. Take its thresholds "
            "from another split, or say exploratory=True."
        )
    if baseline.provenance.get("model_fingerprint") != source.about["model_fingerprint"]:
        raise LensSkillsError("the baseline was measured on another model.")
    if baseline.site != source.site or baseline.positions != source.labels:
        raise LensSkillsError(
            f"the baseline is of {baseline.site} at {baseline.positions}, not {source.site} at "
            f"{source.labels}."
        )


def check_prompt(prompt: SoftPrompt | None, examples: Sequence[Example], exploratory: bool) -> bool:
    """Whether a soft prompt was trained on these examples; refused unless ``exploratory``."""
    if prompt is None:
        return False
    shared = {example.id for example in examples} & set(prompt.provenance.get("example_ids", ()))
    groups = {example.group for example in examples} & set(prompt.provenance.get("groups", ()))
    if (shared or groups) and not exploratory:
        what = f"{len(shared)} of these examples" if shared else f"{len(groups)} of their groups"
        raise LensSkillsError(
            f"the soft prompt was trained on {what}: it may have learned them by heart. Score "
            "another split, or say exploratory=True to mark the result."
        )
    return bool(shared or groups)
