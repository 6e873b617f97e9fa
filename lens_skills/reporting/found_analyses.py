"""`Analysis`: one metric's way from scores to a verdict, put together from single results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import torch

from lens_skills.interventions import Audit, Verdict
from lens_skills.interventions.verdict import Ruling
from lens_skills.reporting.sources import Sources
from lens_skills.results import file_name
from lens_skills.scoring import MetricScores, Scores, Selection
from lens_skills.scoring.evidence import tried
from lens_skills.studies import Study
from lens_skills.tasks import Preflight


@dataclass(frozen=True, eq=False)
class Analysis:
    """What was found of one metric on one task, as far as it was taken.

    Attributes:
        place: The folder of the results within the source; "" at its top.
        metric: Its name; "" where only a verdict is there.
        scores, confirm: Of that metric on either split.
        study: Where all is of one study.
        why_no_verdict: Why a study has none.
    """

    place: str
    metric: str
    scores: MetricScores | None = None
    confirm: MetricScores | None = None
    selection: Selection | None = None
    verdict: Verdict | None = None
    preflight: Preflight | None = None
    study: Study | None = None

    @cached_property
    def rows(self) -> tuple[Mapping[str, Any], ...]:
        """The evidence of every associated neuron, best grade first; of a lone verdict, its own."""
        if self.selection is not None:
            rows = self.selection.rows
            return rows if self.verdict is None else tried(rows, self.verdict)
        if self.scores is not None:
            return tuple(_associated(self.scores))
        return tuple(_tried(self.verdict))

    @cached_property
    def names(self) -> frozenset[str]:
        """Of the neurons in its rows."""
        return frozenset(str(row["name"]) for row in self.rows)

    @cached_property
    def places(self) -> dict[str, int]:
        """The place of each scored unit, by its name."""
        if self.scores is None:
            return {}
        return {name: place for place, name in enumerate(self.scores.scores.names())}

    @property
    def rulings(self) -> dict[str, Ruling]:
        """The rulings on single neurons, by name."""
        return {} if self.verdict is None else {one.name: one for one in self.verdict.singles}

    @property
    def about(self) -> Mapping[str, Any]:
        """The provenance of the first pass there is."""
        if self.scores is not None:
            return self.scores.scores.provenance
        if self.selection is not None:
            return self.selection.provenance.get("explore", {})
        return {} if self.verdict is None else self.verdict.provenance

    @property
    def site(self) -> str:
        """The hook point its neurons stand at."""
        found = (self.selection, self.scores and self.scores.scores)
        sites = [one.site for one in found if one is not None]
        return sites[0] if sites else self.verdict.effects.site if self.verdict else ""

    @property
    def positions(self) -> tuple[str, ...]:
        """Where they were read."""
        if self.selection is not None:
            return self.selection.positions
        if self.scores is not None:
            return self.scores.scores.positions
        return () if self.verdict is None else (self.verdict.effects.position,)

    @property
    def exploratory(self) -> bool:
        """Whether examples were used again."""
        parts = (self.selection, self.verdict, self.scores and self.scores.scores)
        return any(part.exploratory for part in parts if part is not None)

    @property
    def task(self) -> str:
        """Of which task."""
        return str(self.about.get("task", "a task"))

    @property
    def model(self) -> str:
        """Of which model."""
        return str(self.about.get("model", "a model"))


def find_analyses(sources: Sources) -> tuple[Analysis, ...]:
    """Those among the results, the ones that went furthest first."""
    found: list[Analysis] = []
    for name, study in sources.of(Study).items():
        found.append(_of_study(_parent(name), study))
    places = {_parent(name): None for name in sources.results}
    for place in places:
        here = {
            name: one for name, one in sources.results.items()
            if _parent(name) == place and not isinstance(one, Study)
        }  # fmt: skip
        studied = {one.metric for one in found if one.place == place and one.study is not None}
        found += [one for one in _of_steps(place, here, bool(studied)) if one.metric not in studied]
    # Stable: what was named or saved first stays first among those that went as far.
    return tuple(sorted(found, key=_steps_left))


def _steps_left(one: Analysis) -> int:
    if one.verdict is not None and one.metric:
        return 0
    if one.selection is not None:
        return 1 if len(one.selection) else 2
    return 3 if one.scores is not None else 4


def _of_study(place: str, study: Study) -> Analysis:
    return Analysis(
        place,
        study.metric,
        study.scores[study.metric],
        study.confirm_scores[study.metric],
        study.selection,
        study.verdict,
        study.preflight,
        study,
    )


def _of_steps(place: str, results: Mapping[str, Any], studied: bool) -> list[Analysis]:
    """Of the results of single steps that lie in one folder, beside a study of some metric or not.

    Metrics that were scored and not followed up are analyses where no metric was.
    """
    scores = [one for one in results.values() if isinstance(one, Scores)]
    scores.sort(key=lambda one: -one.n_units)
    selections = {n: one for n, one in results.items() if isinstance(one, Selection)}
    verdicts = {n: one for n, one in results.items() if isinstance(one, Verdict)}
    preflights = [one for one in results.values() if isinstance(one, Preflight)]
    found: list[Analysis] = []
    for name, selection in selections.items():
        verdict = _verdict_on(name, selection, verdicts)
        explored, confirmed = (_scores_of(selection, split, scores) for split in _SPLITS)
        found.append(
            Analysis(
                place,
                selection.metric,
                explored,
                confirmed,
                selection,
                verdict,
                preflights[0] if len(preflights) == 1 else None,
            )
        )
    used = {id(one.verdict) for one in found}
    lone = [one for one in verdicts.values() if id(one) not in used]
    if not found and not studied:
        found += [Analysis(place, metric, scores=one[metric])
                  for one in scores[:1] for metric in one.metrics]  # fmt: skip
    found += [Analysis(place, "", verdict=one) for one in lone]
    return found


_SPLITS = ("explore", "confirm")


def _scores_of(selection: Selection, split: str, all_of: Sequence[Scores]) -> MetricScores | None:
    """The scores a selection was made of: of the same examples, with its metric."""
    wanted = selection.provenance.get(split, {}).get("examples")
    for one in all_of:
        if selection.metric in one.metrics and one.provenance.get("examples") == wanted:
            return one[selection.metric]
    return None


def _verdict_on(name: str, selection: Selection, verdicts: Mapping[str, Verdict]) -> Any:
    """The verdict on a selection's neurons: named after its metric, or on neurons of it."""
    ending = file_name("verdict", selection.metric)
    for other, verdict in verdicts.items():
        if _parent(other) == _parent(name) and PurePosixPath(other).name == ending:
            return verdict
    own = set(selection.names)
    for verdict in verdicts.values():
        tried_names = {ruling.name for ruling in verdict.singles}
        if tried_names and tried_names <= own and not _is_named_after_another(verdict, verdicts):
            return verdict
    return None


def _is_named_after_another(verdict: Verdict, verdicts: Mapping[str, Verdict]) -> bool:
    """Whether the shell made it for one metric, which is not the one that is looked for."""
    return any(
        one is verdict and PurePosixPath(name).name.startswith("verdict-")
        for name, one in verdicts.items()
    )


_EXPLORED = {
    "r_explore": "r",
    "explore_low": "low",
    "explore_high": "high",
    "p_family": "p_family",
    "q_control": "q_control",
    "excess": "excess",
    "q_basis": "q_basis",
}


def _associated(scores: MetricScores) -> list[dict[str, Any]]:
    """Rows of the neurons that are associated, where nothing was selected yet."""
    held = scores.scores
    beyond = scores.associated.any(0).nonzero()[:, 0].tolist()
    spots, strength = scores.strongest_position, scores.strength
    beyond.sort(key=lambda unit: -float(strength[unit]))
    names = held.components(torch.tensor(beyond, dtype=torch.long)).names
    rows = []
    for unit, name in zip(beyond, names, strict=True):
        spot = int(spots[unit])
        row: dict[str, Any] = {
            "name": name,
            "layer": int(held.layer[unit]),
            "neuron": int(held.neuron[unit]),
            "position": held.positions[spot],
            "grade": "",
            "badge": "",
            "stopped_by": "not tested on confirm",
        }
        for key, column in _EXPLORED.items():
            part = getattr(scores, column)
            row[key] = None if part is None else float(part[spot, unit])
        rows.append(row)
    return rows


def _tried(verdict: Verdict | None) -> list[dict[str, Any]]:
    """Rows of a verdict that belongs to no selection."""
    if verdict is None:
        return []
    rows = [
        {
            "name": one.name, "position": verdict.effects.position, "grade": "", "badge": "",
            "stopped_by": "", "effect": one.effect, "effect_low": one.low, "effect_high": one.high,
            "effect_percent": one.percent, "effect_q": one.q, "verdict": one.word,
            "causal": one.causal,
        }
        for one in verdict.singles
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -abs(row["effect"]))


def with_audits(sources: Sources) -> tuple[Analysis, ...]:
    """`find_analyses`, and of every audit its verdict by itself."""
    found = find_analyses(sources)
    known = {id(one.verdict) for one in found}
    audits = [
        Analysis(_parent(name), "", verdict=audit.verdict)
        for name, audit in sources.of(Audit).items()
        if id(audit.verdict) not in known
    ]
    return (*found, *audits)


def _parent(name: str) -> str:
    parent = PurePosixPath(name).parent.as_posix()
    return "" if parent == "." else parent


def named_apart(analyses: Sequence[Analysis]) -> list[str]:
    """A name for each, that tells it from the others: by task and metric, or by where they lie."""
    by_task = [f"{one.task} · {one.metric}" if one.metric else one.task for one in analyses]
    by_place = [one.place for one in analyses]
    both = [f"{task} ({place})" for task, place in zip(by_task, by_place, strict=True)]
    numbered = [f"{name}, {n}" for n, name in enumerate(both, 1)]
    for names in (by_task, by_place, both):
        if len(set(names)) == len(names) and all(names):
            return names
    return numbered
