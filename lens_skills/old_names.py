"""What a public name or an option that is not there is called: renamed, moved, or misspelt."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

_RENAMED = {
    "compare": "compare_methods",
    "describe": "preflight, or task.preflight(model)",
    "equal_pairs": "equal_length_pairs",
    "profile": "layer_profile",
    "predictivity_over_seeds": "predictivity",
    "regulators": "confidence_regulators",
}
_MOVED = {
    **dict.fromkeys(
        ("correct", "covariate", "first_token_correct", "label", "model_answer"), "metrics"
    ),
    "METHODS": "ranking",
    "as_adapter": "models",
    "capture_text": "generation",
    "evaluate": "activations",
    "initial_prompt": "soft_prompts",
    "partial_r": "scoring",
    "stream": "activations",
    "with_soft_prompt": "models",
}
_MOVED_AND_RENAMED = {
    "as_lens": "lens_skills.models.as_adapter",
    "own_answer": "ls.metrics.model_answer",
    "prompted": "lens_skills.models.with_soft_prompt",
}
_RESULTS = {
    **dict.fromkeys(("Circuit", "Edge", "Faithfulness", "Node"), "circuits"),
    **dict.fromkeys(("Explanations", "Shortcuts"), "explanation"),
    **dict.fromkeys(("MethodComparison", "Ranking"), "ranking"),
    **dict.fromkeys(("Scores", "Selection"), "scoring"),
    "Graded": "generation",
    "Regulators": "diagnostics",
    "SoftPrompt": "models",
    "Verdict": "interventions",
}
# Options that change no result, and those whose word has changed.
_SETTINGS = {
    "batch_size": "batch_size",
    "memory_mb": "memory_mb",
    "progress": "progress",
    "rows": "edit_rows",
}
_CONTROLS = {"n_controls": "sets", "n_important": "important", "n_peers": "neurons"}
_OPTIONS = {
    "calibrate": "delta",
    "causal": "causal_metric",
    "checked": "confirm_scores",
    "found": "scores",
    "label": "metric",
    "labels": "metrics",
    "metric": "metrics",
    "metrics": "metric",
    "skills": "neurons",
    "units": "neurons",
}


def unknown_name(name: str, public: Iterable[str]) -> str:
    """What to say of ``lens_skills.name``, which is not there."""
    said = f"module 'lens_skills' has no attribute {name!r}"
    if name in _RENAMED:
        return f"{said}: it is now {_RENAMED[name]}."
    if name in _MOVED_AND_RENAMED:
        return f"{said}: it is now {_MOVED_AND_RENAMED[name]}."
    if name in _MOVED:
        place = "ls.metrics" if _MOVED[name] == "metrics" else f"lens_skills.{_MOVED[name]}"
        return f"{said}: it is {place}.{name}."
    if name in _RESULTS:
        return (
            f"{said}: ls.load(folder) opens a saved one; the class is "
            f"lens_skills.{_RESULTS[name]}.{name}."
        )
    near = get_close_matches(name, public, 1)
    return f"{said}. Did you mean {near[0]!r}?" if near else said


def unknown_option(function: str, option: str, takes: Mapping[str, Any]) -> str:
    """What to say of an option that a public function does not take."""
    said = f"{function}() has no option {option!r}"
    if option in _CONTROLS and "controls" in takes:
        return f"{said}: write controls=ls.controls({_CONTROLS[option]}=…)."
    if option == "precision":
        return (
            f"{said}: it computes in the model's own precision. score, rank, prescreen and "
            "preflight take precision='bfloat16'; effects are differences too small for it."
        )
    near = _OPTIONS.get(option)
    if near not in takes:
        near = next(iter(get_close_matches(option, [*takes, *_SETTINGS], 1)), None)
    if near in takes:
        return f"{said}. Did you mean {near!r}?"
    if near in _SETTINGS:
        name = _SETTINGS[near]
        return f"{said}: {name} changes no result. Set it with ls.config({name}=…)."
    return f"{said}. It takes: {', '.join(takes)}."
