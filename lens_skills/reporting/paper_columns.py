"""`paper_table`: of every kind of result, the few columns a paper prints, and the caption."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import pandas as pd
import torch

from lens_skills.errors import LensSkillsError
from lens_skills.reporting.paper_cells import (
    BY_GROUP,
    ENDS,
    PaperTable,
    Parts,
    about,
    set_rows,
    size_of,
    with_unit,
)
from lens_skills.reporting.paper_cells import PaperColumn as Column
from lens_skills.reporting.paper_checks import CHECKS
from lens_skills.scoring import EXPLORATORY
from lens_skills.scoring.evidence import (
    BADGE,
    GENERAL,
    GENERAL_MEANING,
    MEANINGS,
    NOT_ASSOCIATED,
    ONLY_CONFIRM,
)
from lens_skills.scoring.predicted_evidence import seen_words


def paper_table(result: Any, *, most: int = 20) -> PaperTable:
    """The table in print of a result.

    Raises:
        LensSkillsError: ``most`` below 1; a kind without one.
    """
    kind, tables = type(result).__name__, {**_FINDINGS, **CHECKS}
    if kind not in tables:
        raise LensSkillsError(
            f"a {kind} has no table that a paper prints. .frame() has its numbers, where it has "
            f"some; there is one of: {', '.join(sorted(tables))}."
        )
    caption, columns, frame, of = tables[kind](result)
    rows = frame[: max(most, 0)]
    rows = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else rows
    if getattr(result, "exploratory", False):
        caption = f"{EXPLORATORY}. {caption}"
    return set_rows(caption, columns, rows, most=most, of=of, n=len(frame))


def _study(result: Any) -> Parts:
    confirm = result.confirm_scores
    caption, columns = _association(result.selection, about(confirm, on=False), size_of(confirm))
    if result.verdict is not None:
        ends = ("effect_low", "effect_high")
        unit = with_unit("effect", result.verdict.effects.unit)
        columns += [Column(unit, "effect", "number", ends, True), Column("verdict", "verdict")]
        caption += f" {_sign(result.verdict)}"
    return _evidence(result, caption, columns)


def _selection(result: Any) -> Parts:
    scored = result.provenance.get("confirm", {})
    known = ", ".join(str(scored[key]) for key in ("model", "task") if scored.get(key))
    where = "; ".join(filter(None, (known, f"{result.site} at {', '.join(result.positions)}")))
    caption, columns = _association(result, f" ({where})", "")
    return _evidence(result, caption, columns)


def _evidence(result: Any, caption: str, columns: list[Column]) -> Parts:
    """The rows of a study's or a selection's evidence, those that came through no door left out."""
    evidence = _badged(result.evidence())
    of = "associated neurons, best grade first"
    if "found_by" in evidence:
        held = ~evidence["stopped_by"].isin((NOT_ASSOCIATED, ONLY_CONFIRM))
        evidence = evidence[held | (evidence["found_by"] != "")].reset_index(drop=True)
        of = "associated or predicted neurons, best grade first"
    return f"{caption} {BY_GROUP}", columns, evidence, of


def _association(selection: Any, where: str, size: str) -> tuple[str, list[Column]]:
    grades = "; ".join(f"{grade}: {meaning}" for grade, meaning in MEANINGS.items())
    caption = (
        f"Neurons associated with {selection.metric}{where}. {grades}. *: {BADGE}. r: on the "
        f"confirm split{f', {size}' if size else ''}; q: of r, false discoveries among the "
        "associated; excess: |r| over that of random directions of the layer."
    )
    columns = [
        Column("neuron", "name"),
        Column("grade", "grade"),
        Column("r [95 %]", "r_confirm", "number", ENDS, True),
        Column("q", "q_confirm", "p"),
        Column("excess", "excess", "number"),
    ]
    if facts := selection.predicted:
        caption += (
            f" Found by association, or by the first-order effect of {facts['do']} on "
            f"{facts['metric']}, in {facts['unit']}, on the confirm split (q of it, among the "
            f"{facts['tested']:,} largest on explore). {GENERAL}: {GENERAL_MEANING}; "
            f"{seen_words(facts)}."
        )
        ends = ("predicted_low", "predicted_high")
        columns += [
            Column("found by", "found_by"),
            Column(
                with_unit("predicted", facts["unit"]), "predicted_confirm", "number", ends, True
            ),
            Column("q predicted", "q_predicted", "p"),
        ]
    return caption, columns


def _badged(evidence: pd.DataFrame) -> pd.DataFrame:
    marks = evidence["badge"].map(lambda badge: "*" if badge else "")
    return evidence.assign(grade=evidence["grade"] + marks)


def _sign(verdict: Any) -> str:
    effects = verdict.effects
    n, groups = len(effects.clean), len(set(effects.groups))
    return (
        f"effect: on {effects.metric} of {effects.do}, edited minus clean, on {n:,} examples in "
        f"{groups:,} groups; δ, the smallest that matters, is {verdict.delta:.2g} {effects.unit}."
    )


def _verdict(result: Any) -> Parts:
    effects = result.effects
    where = f"{effects.site} at {effects.position}"
    known = about(result, at=False, on=False)
    caption = (
        f"What interventions at {where} show{known}. {_sign(result)} q: rank of |effect| among "
        "matched neurons of the layer; size q: the same beyond what the neuron's size leads to "
        f"expect; false discoveries over the {len(result):,} on trial. {BY_GROUP}"
    )
    columns = [
        Column("neuron", "name"),
        Column(with_unit("effect", effects.unit), "effect", "number", ENDS, True),
        Column("% of clean", "percent", "number", signed=True),
        Column("q", "q", "p"),
        Column("size q", "q_alike", "p"),
        Column("verdict", "label"),
    ]
    rows = result.frame()
    if rows["doubtful"].any():
        rows["label"] += rows["doubtful"].map({True: " †", False: ""})
        caption += " †: a few groups carry most of the effect, and the interval is too narrow."
    return caption, columns, rows, "neurons tried, alone and together"


def _audit(result: Any) -> Parts:
    caption, columns, _, _ = _verdict(result.verdict)
    caption = f"Claims about neurons on {result.task}; r: on the {result.explored}. {caption}"
    claims = [
        Column("metric", "metric"),
        Column("r [95 %]", "r", "number", ("r_low", "r_high"), True),
    ]
    rulings = {row["name"]: row for row in result.verdict.frame().to_dict("records")}
    rows = [
        rulings.get(row["name"], {}) | {"name": row["name"], "metric": row["metric"]}
        | {"r": row["r"], "r_low": row["low"], "r_high": row["high"]}
        for row in result.claims
    ]  # fmt: skip
    return caption, [columns[0], *claims, *columns[1:]], rows, "claims"


def _effects(result: Any) -> Parts:
    rows = result.frame().sort_values("effect", key=abs, ascending=False, kind="stable")
    screening = result.screening
    chosen = "" if screening is None else (
        f"{len(result.names):,} of {len(screening.names):,} units were measured: "
        f"{int(screening.chosen.sum()):,} that gradients chose, {int(screening.drawn.sum()):,} "
        "drawn from the rest. "
    )  # fmt: skip
    caption = (
        f"Mean effect of {result.do} on {result.metric}, edited minus clean, each alone"
        f"{about(result)}: {len(result.clean):,} examples in {len(set(result.groups)):,} groups. "
        f"{chosen}sd: over examples. No control and no test."
    )
    columns = [
        Column("edited", "name"),
        Column(with_unit("effect", result.unit, interval=False), "effect", "number", signed=True),
        Column("sd", "std", "number"),
        Column("direct", "direct", "number", signed=True),
    ]
    return caption, columns, rows, "sets, the largest |effect| first"


def _prescreen(result: Any) -> Parts:
    caption = (
        f"First-order estimates of what each unit does to {result.metric} at {result.position}; no "
        f"effects. size: of setting it to zero; predicted: of {result.do or 'an edit'}."
    )
    columns = [
        Column("unit", "name"),
        Column("size", "taylor", "number"),
        Column("predicted", "predicted", "number", signed=True),
    ]
    rows = result.frame().sort_values("taylor", ascending=False, kind="stable")
    return caption, columns, rows, "units, the largest first"


def _circuit(result: Any) -> Parts:
    words = ", ".join(f"{count:,} {word}" for word, count in result.counts.items())
    few = not any(result.counts.values())
    shown = [edge for edge in result.edges if few or edge.confirmed]
    caption = (
        f"Circuit of {result.target}{about(result)}: {len(result.edges):,} edges tested by exact "
        f"path patching ({'too few groups for words' if few else words}). effect: target with "
        "this edge alone corrupted minus clean, so that an edge that raises its target has a "
        f"negative one; share: of the target's whole change. {BY_GROUP}"
    )
    rows = [edge.row() | {"edge": str(edge)} for edge in shown]
    units = {totals.unit for totals in result.totals}
    columns = [
        Column("edge", "edge"),
        Column("target", "target"),
        Column(
            with_unit("effect", units.pop() if len(units) == 1 else "of the target's unit"),
            "effect", "number", ENDS, True,
        ),
        Column("share (%)", "share", "share"),
        Column("q", "q", "p"),
    ]  # fmt: skip
    of = "edges tested" if few else "confirmed edges"
    return caption, columns, rows, f"{of}, the largest share first"


def _faithfulness(result: Any) -> Parts:
    caption = (
        f"The circuit run alone, its strongest edges first{about(result)}. faithfulness: 0 "
        "without "
        f"an edge, 1 with all; random: mean of random circuits of as many edges. {BY_GROUP}"
    )
    columns = [
        Column("part", "part"),
        Column("target", "target"),
        Column("edges", "n_edges", "count"),
        Column("faithfulness [95 %]", "faithfulness", "number", ENDS),
        Column("random", "random_mean", "number"),
    ]
    return caption, columns, result.frame(), "sizes"


def _damage(result: Any) -> Parts:
    caption = (
        f"What editing each skill's neurons does to each task{about(result, on=False)}. effect: "
        f"on {result.metric}, edited minus clean; damage: −effect over the standard deviation of "
        f"the clean metric. The diagonal dominates by {result.dominance:.2g}, p = {result.p:.2g}. "
        f"{BY_GROUP}"
    )
    columns = [
        Column("neurons of", "skill"),
        Column("task", "task"),
        Column(with_unit("effect", result.unit), "effect", "number", ENDS, True),
        Column("damage (sd)", "damage", "number", signed=True),
    ]
    return caption, columns, result.frame(), "pairs"


def _dose(result: Any) -> Parts:
    caption = (
        f"Steering {len(result.names):,} units together{about(result)}: effect on "
        f"{result.metric}, "
        f"edited minus clean, by dose in standard deviations of {result.over}; "
        f"{len(result.clean):,} examples in {len(set(result.groups)):,} groups. damage: KL of the "
        f"next token on {result.n_texts:,} neutral texts. slope {result.slope:+.2g} "
        f"[{result.slope_low:+.2g}, {result.slope_high:+.2g}] per sd. {BY_GROUP}"
    )
    columns = [
        Column("dose (sd)", "dose", "number", signed=True),
        Column(with_unit("effect", result.unit), "effect", "number", ENDS, True),
        Column("damage (nats per token) [95 %]", "damage", "number", ("damage_low", "damage_high")),
    ]
    return caption, columns, result.frame(), "doses"


def _scores(result: Any) -> Parts:
    caption, columns = _correlations(result, "metric")
    rows = _Strongest(result, range(len(result.metrics)))
    return caption, columns, rows, "neurons and metrics, the largest |r| first"


def _metric_scores(result: Any) -> Parts:
    caption, columns = _correlations(result.scores, result.metric)
    rows = _Strongest(result.scores, [result.scores.metrics.index(result.metric)])
    return caption, columns, rows, "neurons, the largest |r| first"


def _correlations(result: Any, metric: str) -> tuple[str, list[Column]]:
    given = (result.provenance or {}).get("given") or ()
    name = f"partial r given {', '.join(given)}" if given else "Pearson's r"
    caption = (
        f"{name} of activation and {metric}{about(result)}. p: family-wise over the neurons and "
        "positions; q control: against the control task. The first were selected for a large r, "
        f"which is too large for it. {BY_GROUP}"
    )
    columns = [
        Column("neuron", "name"),
        Column("position", "position"),
        Column("metric", "metric"),
        Column("r [95 %]", "r", "number", ENDS, True),
        Column("p", "p_family", "p"),
        Column("q control", "q_control", "p"),
        Column("excess", "excess", "number"),
    ]
    return caption, columns


class _Strongest(Sequence[Mapping[str, Any]]):
    """The rows of scores, the largest |r| first; each is made when it is asked for."""

    def __init__(self, scores: Any, metrics: Sequence[int]) -> None:
        self.scores, self.metrics = scores, list(metrics)
        strength = scores.r[self.metrics].abs().nan_to_num(-1.0).flatten()
        self.order = strength.argsort(descending=True, stable=True).tolist()

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, place: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> list[Mapping[str, Any]]: ...
    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self._row(number) for number in self.order[place]]
        return self._row(self.order[place])

    def _row(self, number: int) -> Mapping[str, Any]:
        scores = self.scores
        metric, rest = divmod(number, scores.r[0].numel())
        metric = self.metrics[metric]
        position, unit = divmod(rest, scores.n_units)
        numbers = {
            name: None if part is None else float(part[metric, position, unit])
            for name in ("r", "low", "high", "p_family", "q_control", "excess")
            for part in (getattr(scores, name),)
        }
        names = {"metric": scores.metrics[metric], "position": scores.positions[position]}
        return {"name": scores.components(torch.tensor([unit])).names[0]} | names | numbers


def _profile(result: Any) -> Parts:
    rows = result.frame().assign(beyond=[n if n >= 0 else None for n in result.beyond.tolist()])
    caption = (
        f"Per layer, the largest |r| with {result.metric}{about(result, at=False)}; beyond: "
        "neurons "
        "beyond the permutation threshold, 5 % family-wise"
        + (f"; answer: the largest |r| with {result.answer}." if result.answer else ".")
    )
    columns = [
        Column("layer", "layer", "count"),
        Column("neurons", "neurons", "count"),
        Column("largest |r|", "strongest", "number"),
        Column("at", "position"),
        Column("beyond", "beyond", "count"),
        Column("answer", "answer_strongest", "number"),
        Column("given the answer", "metric_left", "number"),
    ]
    return caption, columns, rows, "layers"


def _predictivity(result: Any) -> Parts:
    caption = (
        f"Predictivity of {result.metric}{about(result)}: the mean over {len(result.by_seed):,} "
        "prompts of each neuron's best position, 0.5 by chance; in brackets the range over prompts."
    )
    columns = [
        Column("neuron", "name"),
        Column("predictivity [range]", "predictivity", "number", ("lowest", "highest")),
    ]
    return caption, columns, result.frame(), "neurons, the best first"


def _score_comparison(result: Any) -> Parts:
    caption = (
        f"Scores of {result.metric} under {result.n_prompts:,} prompts, pair by "
        f"pair{about(result)}:"
        f" rank r of |r| over {result.n_units:,} units; shared: of the {result.top:,} strongest, "
        "and "
        "expected of sets that keep the layers, with its p."
    )
    columns = [
        Column("prompt", "one"),
        Column("other", "other"),
        Column("rank r", "rank_r", "number", signed=True),
        Column("shared", "shared", "count"),
        Column("expected", "expected_by_layer", "number"),
        Column("p", "p_by_layer", "p"),
    ]
    return caption, columns, result.frame(), "pairs"


def _skills(result: Any) -> Parts:
    caption = (
        f"Neurons that pairs of skills share{about(result, on=False)}; {size_of(result)}. "
        "expected: of "
        "sets that keep the layers, with p; likeness: of the r of the neurons of either."
    )
    columns = [
        Column("skill", "skill"),
        Column("other", "other"),
        Column("shared", "shared", "count"),
        Column("Jaccard", "jaccard", "number"),
        Column("expected", "expected", "number"),
        Column("p", "p", "p"),
        Column("likeness", "likeness", "number", signed=True),
    ]
    return caption, columns, result.overlaps(), "pairs"


def _comparison(result: Any) -> Parts:
    caption = (
        f"The {result.k:,} strongest neurons of each ranking, tried{about(result)}. hits: those "
        "with "
        f"a causal effect of {result.do} on {result.causal_metric}; difference: of the share to "
        f"random neurons. {BY_GROUP}"
    )
    columns = [
        Column("method", "method"),
        Column("neurons", "n", "count"),
        Column("hits", "hits", "count"),
        Column("share (%) [95 %]", "share", "share", ENDS),
        Column(
            "difference (%) [95 %]", "difference", "share",
            ("difference_low", "difference_high"), True,
        ),
        Column("supports", "supports", "count"),
        Column("opposes", "opposes", "count"),
    ]  # fmt: skip
    return caption, columns, result.frame(), "rankings, the most hits first"


def _ranking(result: Any) -> Parts:
    caption = (
        f"Neurons ranked for {result.metric} by {result.method}{about(result)}: {result.about}. A "
        "rank is no test."
    )
    columns = [
        Column("rank", "rank", "count"),
        Column("neuron", "name"),
        Column(with_unit("score", result.unit, interval=False), "score", "number", signed=True),
    ]
    return caption, columns, result.frame(), "neurons, the strongest first"


def _stability(result: Any) -> Parts:
    caption = (
        f"What of a {result.kind} returns over {result.over}{about(result)}: "
        f"{len(result.runs):,} runs of {result.n_groups_run:,} of {result.n_groups:,} groups. "
        "found in: share of the runs; in brackets 95 % intervals."
    )
    columns = [
        Column("name", "name"),
        Column("in the whole", "in_whole"),
        Column("found in (%) [95 %]", "share", "share", ENDS),
        Column("word", "word"),
        Column("word stays (%)", "word_stays", "share"),
    ]
    return caption, columns, result.frame(), "names, the most often found first"


_FINDINGS: Mapping[str, Callable[[Any], Parts]] = {
    "Audit": _audit,
    "Circuit": _circuit,
    "DamageMatrix": _damage,
    "DoseResponse": _dose,
    "Effects": _effects,
    "Faithfulness": _faithfulness,
    "LayerProfile": _profile,
    "MethodComparison": _comparison,
    "Predictivity": _predictivity,
    "Prescreen": _prescreen,
    "Ranking": _ranking,
    "ScoreComparison": _score_comparison,
    "MetricScores": _metric_scores,
    "Scores": _scores,
    "Selection": _selection,
    "SkillMatrix": _skills,
    "Stability": _stability,
    "Study": _study,
    "Verdict": _verdict,
}
