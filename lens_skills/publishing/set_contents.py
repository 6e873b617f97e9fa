"""What a `NeuronSet` says of each component, from a study, a selection, a verdict or an audit."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lens_skills.activations.components import Component, parse_components
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions import Audit, Verdict
from lens_skills.interventions.verdict import Ruling
from lens_skills.models import ModelAdapter
from lens_skills.scoring import Scores, Selection
from lens_skills.scoring.evidence import MEANINGS
from lens_skills.studies import Study
from lens_skills.tasks import Task

SIGN_CONVENTION = {
    "r": "positive: the activation is higher where the metric is",
    "effect": "edited minus clean, in the metric's unit: removing what supports the skill lowers "
    "the metric, so its effect is negative",
}
_ASSOCIATION = {
    "r": "r_confirm",
    "low": "low",
    "high": "high",
    "p": "p_confirm",
    "q": "q_confirm",
    **{
        name: name
        for name in ("r_explore", "p_family", "q_control", "q_control_confirm", "excess", "q_basis")
    },
}
_CLAIM = {name: name for name in ("low", "high", "p_family", "q_control", "excess", "q_basis")}
_NUMBERS = (
    "effect", "low", "high", "percent", "delta", "p", "q", "direct", "direct_low", "direct_high",
)  # fmt: skip
BUILT_IN = {
    "logit_diff": "log-probability of the answer minus that of the foil, or of the best other "
    "option: for answers of one token the difference of their logits (arXiv 2211.00593)",
    "correct": "1 where greedy decoding writes the whole answer and then stops, else 0",
    "first_token_correct": "1 where the answer's first token is the model's first choice, else 0",
    "confidence": "probability of the first choice",
    "answer_probability": "joint probability of the answer",
    "margin": "log-probability of the first choice minus that of the second",
    "entropy": "-sum p ln p over the next token",
    "confidence:options": "the largest of the options' joint probabilities, which sum to 1",
    "answer_probability:options": "the answer's share of the options' joint probabilities",
    "margin:options": "log-probability of the best option minus that of the second",
    "entropy:options": "-sum p ln p over the options' joint probabilities, which sum to 1",
}
"""What the metrics are that a name is enough for."""

GRADES = {**MEANINGS, "general": "causal, and no association with the metric found"}


@dataclass
class Findings:
    """What is known of some components before a model is asked.

    Attributes:
        names: Of the components, in order, or what names them.
        site, positions: Of all, and of each by name.
        associations: By name.
        verdict: Of interventions, if there was one.
        splits: For each use of examples the ids used for it.
        about: The provenances of what it is from.
        notes: What a reader must know.
    """

    names: Any
    site: str | None = None
    positions: dict[str, str] = field(default_factory=dict)
    associations: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    verdict: Verdict | None = None
    search: set[str] = field(default_factory=set)
    about: list[Mapping[str, Any]] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    exploratory: bool = False


def findings(source: Any, verdict: Verdict | None = None) -> Findings:
    """What a result says of its components.

    Raises:
        LensSkillsError: No such result; a verdict given twice, or of none of its neurons.
    """
    if isinstance(source, Study):
        return findings(source.selection, _one(source.verdict, verdict))
    if isinstance(source, Audit):
        return _of_audit(source, _one(source.verdict, verdict))
    if isinstance(source, Verdict):
        return _with(Findings([ruling.name for ruling in source.singles]), _one(source, verdict))
    if isinstance(source, Selection):
        return _with(_of_selection(source), verdict)
    if isinstance(source, Scores) or not isinstance(source, Sequence | str):
        raise LensSkillsError(
            f"a NeuronSet is not made of a {type(source).__name__}. Give a study, a selection, a "
            "verdict, an audit, or a list of names such as ['L17N635']."
        )
    return _with(Findings(source), verdict)


def check_words(*, licence: Any, name: Any, **others: Any) -> None:
    """Nothing; raises where what is said of a set is no text, or cannot be a licence or a name.

    Raises:
        LensSkillsError: Which, and what to say instead.
    """
    for what, text in {"licence": licence, "name": name, **others}.items():
        if not isinstance(text, str):
            raise LensSkillsError(f"{what}={text!r:.60} is no text.")
    if not licence.strip():
        raise LensSkillsError(
            "a set needs a licence, or nobody may use it. Say one, such as licence='CC-BY-4.0'."
        )
    if "/" in name or "\\" in name or name in (".", ".."):
        raise LensSkillsError(
            f"name={name!r} holds a separator of paths, and a set's name is a name. Say where "
            "it goes when it is saved: .save(folder)."
        )


def whole_task(study: Study) -> Task:
    """The examples that a study holds, of all its splits."""
    splits = [split for split in (study.explore, study.confirm, study.intervene) if split]
    words = " + ".join(split.split_name for split in splits)
    examples = [example for split in splits for example in split]
    recipe = " + ".join(split.recipe for split in splits)
    return Task(study.explore.name, examples, split_name=words, recipe=recipe)


def _one(own: Verdict | None, given: Verdict | None) -> Verdict | None:
    if own is not None and given is not None and own is not given:
        raise LensSkillsError("the result holds a verdict already: leave out verdict=.")
    return own if given is None else given


def _of_selection(source: Selection) -> Findings:
    if len(source) == 0:
        raise LensSkillsError(
            "no neurons to publish: the selection is empty. Nothing was confirmed, and that is the "
            "result."
        )
    confirm = source.provenance.get("confirm", {})
    given = list(confirm.get("given", ()))
    split = _words(confirm)
    rows = {
        row["name"]: {
            "metric": source.metric,
            **{new: _number(row.get(old)) for new, old in _ASSOCIATION.items()},
            "split": split,
            "given": given,
            **{name: str(row.get(name) or "") for name in ("grade", "badge", "stopped_by")},
        }
        for row in source.rows
    }
    names = source.names
    return Findings(
        names,
        site=source.site,
        positions=dict(zip(names, source.position, strict=True)),
        associations={name: [rows[name]] for name in names if name in rows},
        search=set(source.provenance.get("example_ids", ())),
        about=[source.provenance.get("explore", {}), confirm],
        notes=dict.fromkeys(source.notes),
        exploratory=source.exploratory,
    )


def _of_audit(source: Audit, verdict: Verdict | None) -> Findings:
    found = Findings([ruling.name for ruling in source.verdict.singles])
    for row in source.claims:
        numbers = dict.fromkeys(_ASSOCIATION) | {
            name: _number(row.get(old)) for name, old in _CLAIM.items()
        }
        found.associations.setdefault(row["name"], []).append(
            {
                "metric": row["metric"],
                **numbers,
                "r": _number(row["r"]),
                "split": f"{source.task}, {source.explored}",
                "given": [],
                "grade": "",
                "badge": "",
                "stopped_by": "",
            }
        )
        found.positions[row["name"]] = row["position"]
    found.notes = dict.fromkeys(source.notes)
    return _with(found, verdict)


def _with(found: Findings, verdict: Verdict | None) -> Findings:
    if verdict is None:
        return found
    if not isinstance(verdict, Verdict):
        raise LensSkillsError(f"verdict= is what `verify` gives, not a {type(verdict).__name__}.")
    tried = [ruling.name for ruling in verdict.singles]
    names = [found.names] if isinstance(found.names, str) else list(found.names)
    if not set(tried) & set(map(str, names)):
        raise LensSkillsError(
            f"the verdict is on {', '.join(tried[:3])}, none of which is in the set "
            f"({', '.join(map(str, names[:3]))})."
        )
    found.verdict = verdict
    found.about.append(verdict.provenance)
    found.notes |= dict.fromkeys(verdict.notes)
    found.exploratory |= verdict.exploratory
    if not found.positions:
        found.positions = dict.fromkeys(tried, verdict.effects.position)
    return found


def components(adapter: ModelAdapter, found: Findings, position: str) -> list[dict[str, Any]]:
    """A row of the file for every component.

    Raises:
        LensSkillsError: A name that this model has not; a component named twice.
    """
    at = {} if found.site is None else {"at": found.site}
    units = parse_components(adapter, found.names, **at)
    rulings = {} if found.verdict is None else {one.name: one for one in found.verdict.singles}
    return [
        {
            "name": unit.name,
            "layer": unit.layer,
            "site": unit.site,
            "start": unit.start,
            "stop": unit.stop,
            "position": found.positions.get(unit.name, position),
            "associations": found.associations.get(unit.name, []),
            "verdict": _ruling(found.verdict, rulings.get(unit.name)),
        }
        for unit in units
    ]


def set_verdict(found: Findings) -> dict[str, Any] | None:
    """Of all that were tried together, where there were several."""
    rulings = () if found.verdict is None else found.verdict.rulings
    return _ruling(found.verdict, next((one for one in rulings if one.name == "set"), None))


def _ruling(verdict: Verdict | None, one: Ruling | None) -> dict[str, Any] | None:
    if verdict is None or one is None:
        return None
    effects = verdict.effects
    return {
        "word": one.word,
        "label": one.label,
        "why": one.why,
        "metric": effects.metric,
        "unit": effects.unit,
        "edit": effects.do,
        "split": _words(verdict.provenance),
        "n_examples": len(effects.clean),
        "n_groups": len(set(effects.groups)),
        **{name: _number(getattr(one, name)) for name in _NUMBERS},
        "delta_from": verdict.delta_from,
        "n_controls": one.n_controls,
        **{name: bool(getattr(one, name)) for name in ("large", "sign_depends", "doubtful")},
        "exploratory": verdict.exploratory,
    }


def _number(value: Any) -> float | None:
    return None if value is None or not math.isfinite(float(value)) else float(value)


def _words(about: Mapping[str, Any]) -> str:
    split, recipe = about.get("split", "all"), about.get("recipe", "all")
    return f"{about.get('task', 'examples')}, {split} ({recipe})"


def units_of(rows: Iterable[Mapping[str, Any]]) -> tuple[Component, ...]:
    """The components that rows of a file are about."""
    return tuple(
        Component(row["name"], row["layer"], row["site"], row["start"], row["stop"]) for row in rows
    )


def metric_rows(components: Sequence[Mapping[str, Any]], whole: Any) -> list[dict[str, Any]]:
    """Every metric that the rows name, and what it is."""
    units: dict[str, str] = {}
    for row in [*components, {"associations": [], "verdict": whole}]:
        for one in row["associations"]:
            units.setdefault(one["metric"], "")
        if row["verdict"] is not None:
            units[row["verdict"]["metric"]] = row["verdict"]["unit"]
    return [{"name": name, "unit": unit} | _defined(name) for name, unit in sorted(units.items())]


def _defined(name: str) -> dict[str, Any]:
    kind, _, column = name.partition(":")
    if kind in ("label", "covariate") and column:
        return {"definition": f"the {kind} {column!r} of the task", "built_in": True}
    if name in BUILT_IN:
        return {"definition": BUILT_IN[name], "built_in": True}
    return {
        "definition": f"a function of the authors', called {name!r}, which this file does not hold",
        "built_in": False,
    }


def task_row(task: Any, found: Findings, hashed: str, most: int) -> dict[str, Any]:
    """The task, with its examples where they are few enough characters.

    Raises:
        LensSkillsError: Not the task that the components were found or tried on.
    """
    ids = {example.id for example in task}
    tried = set() if found.verdict is None else set(found.verdict.effects.example_ids)
    missing = (found.search | tried) - ids
    if missing:
        raise LensSkillsError(
            f"the task {task.name!r} ({len(ids):,} examples) lacks {len(missing):,} of the "
            f"examples the result was made with, such as {min(missing)!r}. Give the whole "
            "task, before it was split."
        )
    rows = [_example(example, found.search, tried) for example in task]
    size = sum(len(str(row)) for row in rows)
    return {
        "name": task.name,
        "recipe": task.recipe,
        "n_examples": len(task),
        "n_groups": len(task.groups),
        "examples_hash": hashed,
        "labels": sorted({name for example in task for name in example.labels}),
        "covariates": sorted({name for example in task for name in example.covariates}),
        "examples": rows if size <= most else None,
    }


_TEXTS = ("id", "prompt", "answer", "foil", "corrupted", "group", "kind")


def _example(example: Example, search: set[str], tried: set[str]) -> dict[str, Any]:
    used = "search" if example.id in search else "verdict" if example.id in tried else ""
    return {
        **{name: getattr(example, name) for name in _TEXTS},
        "options": list(example.options),
        "labels": dict(example.labels),
        "covariates": dict(example.covariates),
        "used": used,
    }


def example_of(row: Mapping[str, Any]) -> Example:
    """The example of a row."""
    parts = {name: part for name, part in row.items() if name != "used"}
    return Example(**{**parts, "options": tuple(row["options"])})
