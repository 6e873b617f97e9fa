"""A page per neuron: what is known of it from all results, its examples, and what is not known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lens_skills.activations.excerpts import Excerpt
from lens_skills.diagnostics import Memorisation, Redundancy, Regulators
from lens_skills.diagnostics.redundancy import cluster_by
from lens_skills.explanation import (
    ActivatingExamples,
    Explanation,
    Explanations,
    Shortcuts,
    TokenLogits,
)
from lens_skills.explanation.token_logits import LENSES
from lens_skills.interventions.verdict import Ruling
from lens_skills.reporting.document import (
    Cell,
    Control,
    Fact,
    Graph,
    NeuronPage,
    Quantile,
    TokenRow,
    Written,
)
from lens_skills.reporting.found_analyses import Analysis
from lens_skills.reporting.neuron_facts import caveats_of, delta_of, facts_of, summary_of
from lens_skills.reporting.neuron_table import plain
from lens_skills.reporting.phrases import signed
from lens_skills.reporting.sources import Sources

_TOKENS = 48  # of a prompt that are shown, around the one that is read
_TEXT = 300  # characters of a label or a group
_FEATURES = 15  # of an explanation
_ALIKE = 0.3  # |r| from which on neurons go together
_MOST_ALIKE = 10
_CUT = 0.5  # of 1 - |r|, as `redundancy` cuts

_FEATURE_COLUMNS = {
    "feature": "feature",
    "variance_explained": "variance explained",
    "low": "95 % from",
    "high": "to",
    "overlap_top": "share of its top examples",
    "base": "share of all",
    "p": "p",
    "q": "q",
    "ranked_first": "ranked first in resamples",
    "stands_for": "stands for",
    "accepted": "accepted",
}


@dataclass(frozen=True, eq=False)
class Around:
    """All that pages are made from beside the analyses."""

    sources: Sources
    examples: ActivatingExamples | None
    graphs: Sequence[Graph]
    rows: Mapping[str, Mapping[str, Cell]]
    clusters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    alike: Mapping[str, tuple[tuple[str, float], ...]] = field(default_factory=dict)


def pages(
    names: Sequence[str],
    analyses: Sequence[Analysis],
    sources: Sources,
    examples: ActivatingExamples | None,
    graphs: Sequence[Graph],
    rows: Sequence[Mapping[str, Cell]],
) -> tuple[NeuronPage, ...]:
    """The pages of some neurons, in their order; every number is one of the results'."""
    first: dict[str, Mapping[str, Cell]] = {}
    for row in rows:
        first.setdefault(str(row["neuron"]), row)
    around = Around(
        sources, examples, graphs, first, _clusters(sources, examples), _alike(sources, examples)
    )
    return tuple(_page(name, analyses, around) for name in names)


def _page(name: str, analyses: Sequence[Analysis], around: Around) -> NeuronPage:
    row = around.rows.get(name, {"neuron": name})
    own = next((one for one in analyses if name in one.names), analyses[0] if analyses else None)
    ruling = own.rulings.get(name) if own is not None else None
    explained = _explained(name, around.sources)
    sentences, features = _explanation(name, explained, around.sources)
    return NeuronPage(
        name=name,
        summary=summary_of(name, row, own, ruling),
        grade=str(row.get("grade") or ""),
        row=dict(row),
        facts=facts_of(name, row, own, ruling, analyses),
        verdict=_verdict(ruling),
        controls=_controls(own, ruling),
        quantiles=_quantiles(name, around.examples, explained),
        written=_written(name, around, explained),
        explanation=sentences,
        features=features,
        correlated=around.alike.get(name, ()),
        cluster=around.clusters.get(name, ()),
        diagnostics=_diagnostics(name, around.sources),
        circuits=tuple(
            graph.anchor for graph in around.graphs
            if any(node.kind == "neuron" and node.label == name for node in graph.nodes)
        ),
        caveats=caveats_of(name, row, own, ruling, around.alike.get(name, ())),
    )  # fmt: skip


def _verdict(ruling: Ruling | None) -> str:
    if ruling is None:
        return ""
    return ruling.label + (f": {ruling.why}" if ruling.why else "")


def _controls(own: Analysis | None, ruling: Ruling | None) -> Control | None:
    """The neurons it is compared with: of its own layer, unless the verdict took all layers."""
    verdict = None if own is None else own.verdict
    if ruling is None or verdict is None or not len(verdict.control_neurons):
        return None
    across = verdict.provenance.get("control_neurons") == "all layers"
    layer = ruling.name.split("N")[0].split("H")[0].split("R")[0]
    inside = [
        place for place, other in enumerate(verdict.control_neurons)
        if across or _layer_of(other) == layer
    ]  # fmt: skip
    if not inside:
        return None
    where = "of all layers" if across else "of its layer"
    rank = ""
    if ruling.rank is not None:
        rank = (
            f"|effect| is number {ruling.rank:,} among {ruling.n_controls:,} other units {where} "
            "and its own"
        )
    return Control(
        effects=tuple(verdict.control_neuron_effect[inside].tolist()),
        effect=ruling.effect,
        low=ruling.low,
        high=ruling.high,
        delta=delta_of(ruling, verdict),
        unit=verdict.effects.unit,
        rank=rank,
    )


def _layer_of(name: str) -> str:
    digits = name[1:]
    end = next((k for k, letter in enumerate(digits) if not letter.isdigit()), len(digits))
    return name[: end + 1]


# ── examples and tokens ──────────────────────────────────────────────────────────────────────────


def _quantiles(
    name: str, examples: ActivatingExamples | None, explained: Explanation | None
) -> tuple[Quantile, ...]:
    """From where it is strongest; of an explanation alone, the ends it kept.

    That is from the highest activations down, and of a neuron that mostly fires below 0 from the
    lowest up.
    """
    parts = _parts(name, examples, explained)
    if parts and -parts[-1].low > parts[0].high:
        return tuple(replace(one, rows=one.rows[::-1]) for one in reversed(parts))
    return tuple(parts)


def _parts(
    name: str, examples: ActivatingExamples | None, explained: Explanation | None
) -> list[Quantile]:
    if examples is not None and name in examples:
        told = examples.examples.set_index("id")
        return [
            Quantile(
                part.name,
                part.low,
                part.high,
                part.n_examples,
                tuple(_row(excerpt, told) for excerpt in part.excerpts),
            )
            for part in examples[name].quantiles
        ]
    if explained is None:
        return []
    ends = (("highest", explained.top), ("lowest", tuple(reversed(explained.bottom))))
    return [
        Quantile(
            word,
            min(one.activation for one in some),
            max(one.activation for one in some),
            len(some),
            tuple(_row(one, None) for one in some),
        )
        for word, some in ends
        if some
    ]


def _row(excerpt: Excerpt, told: Any) -> TokenRow:
    """An excerpt, of a long prompt the tokens around the one that was read."""
    tokens, values, read = excerpt.tokens, excerpt.values, excerpt.read
    if len(tokens) > _TOKENS:
        middle = read
        if middle is None:
            middle = max(range(len(values)), key=lambda place: abs(values[place]))
        start = min(max(0, middle - 2 * _TOKENS // 3), len(tokens) - _TOKENS)
        stop = start + _TOKENS
        before, after = "…" * (start > 0), "…" * (stop < len(tokens))
        shown = list(tokens[start:stop])
        shown[0], shown[-1] = before + shown[0], shown[-1] + after
        tokens, values = tuple(shown), values[start:stop]
        read = None if read is None or not start <= read < stop else read - start
    group, labels = "", ()
    if told is not None and excerpt.id in told.index:
        about = told.loc[excerpt.id]
        group = str(about["group"])[:_TEXT]
        labels = tuple(
            f"{column.removeprefix('label:')} = {_short(about[column])}"
            for column in told.columns
            if column.startswith("label:") and about[column] is not None
        )
    return TokenRow(tokens, values, read, excerpt.activation, group, labels)


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"


def _written(name: str, around: Around, explained: Explanation | None) -> tuple[Written, ...]:
    """What it writes, by each lens that was read."""
    found: dict[str, TokenLogits] = {}
    lone = [one for one in around.sources.of(TokenLogits).values() if one.name == name]
    for one in (*lone, *([] if explained is None else [explained.writes])):
        if one is not None:
            found.setdefault(one.lens, one)
    if around.examples is not None and name in around.examples:
        found |= {one.lens: one for one in around.examples[name].writes}
    logit, jacobian = found.get("logit"), found.get("jacobian")
    same = logit is not None and jacobian is not None and logit.promoted == jacobian.promoted
    if same:
        del found["jacobian"]
    return tuple(
        Written(
            LENSES.get(lens, lens),
            f"logits per unit of activation, {one.how}"
            + ("; no layer follows, so that the Jacobian lens is the same" if same else ""),
            one.promoted,
            one.suppressed,
        )
        for lens, one in sorted(found.items(), key=lambda item: item[0] != "logit")
    )


# ── explanations and diagnostics ─────────────────────────────────────────────────────────────────


def _explained(name: str, sources: Sources) -> Explanation | None:
    for one in sources.of(Explanations).values():
        if name in one:
            return one[name]
    return None


def _explanation(
    name: str, explained: Explanation | None, sources: Sources
) -> tuple[tuple[str, ...], tuple[tuple[Cell, ...], ...]]:
    """Sentences, and the features that were tested; what the search for shortcuts says last."""
    sentences: list[str] = []
    features: tuple[tuple[Cell, ...], ...] = ()
    if explained is not None:
        sentences += explained.sentences()
        rows = explained.rows[:_FEATURES]
        if rows:
            body = (tuple(plain(row.get(key)) for key in _FEATURE_COLUMNS) for row in rows)
            features = (tuple(_FEATURE_COLUMNS.values()), *body)
    for found in sources.of(Shortcuts).values():
        for one in found.tried:
            if name in (one.name, *one.members):
                said = one.sentences(found.metric, found.n_features)
                whose = "shortcuts, together" if one.members else "shortcuts"
                sentences += [f"{whose}: {text}" for text in said]
    return tuple(sentences), features


_DIAGNOSED = {
    "norm": "‖w_out‖, and its percentile in the layer",
    "log_variance": "log10 of the variance of its logit write over the vocabulary",
    "null_share": "share of w_out in the unembedding's null space, 0 to 1",
    "frequency": "cosine of its logit write with the token frequencies",
    "r_task": "correlation with the metric at the last token of the prompts",
    "r_neutral": "correlation with the entropy on neutral text",
    "effect": "change of the metric under mean ablation",
    "mediated": "share of its direct effect on the entropy that goes through the final norm",
    "unigram": "change of the distance to the token frequencies under ablation (nats)",
}


def _diagnostics(name: str, sources: Sources) -> tuple[Fact, ...]:
    """Of the confidence regulators, of memorisation, of redundancy."""
    found: list[Fact] = []
    for one in sources.of(Regulators).values():
        if name in one.names:
            row = one[name]
            why = f": {row['why']}" if row.get("why") else ""
            found.append(Fact("confidence regulator", f"{row['word']}{why}"))
            found += [fact for key, text in _DIAGNOSED.items() if (fact := _number(row, key, text))]
    for one in sources.of(Memorisation).values():
        for _, row in one.table[one.table["name"] == name].iterrows():
            told = f"entropy {row['entropy']:.2f} bits, information {row['information']:.2f} nats"
            found.append(Fact("memorisation (of the set)", f"{one.word}; this neuron: {told}"))
    for one in sources.of(Redundancy).values():
        if name in one.names:
            place = one.names.index(name)
            cluster = int(one.cluster[place])
            first = one.names[int(one.representative[cluster])]
            members = len(one.members(cluster))
            told = f"one of {members} that do the same; the one to go on with is {first}"
            found.append(Fact("redundancy", told if members > 1 else "no other does the same"))
    return tuple(found)


def _number(row: Any, key: str, text: str) -> Fact | None:
    value = plain(row.get(key))
    if not isinstance(value, float | int):
        return None
    low, high = plain(row.get(f"{key}_low")), plain(row.get(f"{key}_high"))
    ends = f" [{signed(low)}, {signed(high)}]" if isinstance(low, float) and isinstance(
        high, float
    ) else ""  # fmt: skip
    percentile = plain(row.get(f"{key}_percentile"))
    place = f", percentile {percentile:.0%}" if isinstance(percentile, float) else ""
    return Fact(text, f"{signed(value)}{ends}{place}")


# ── neurons that go together ─────────────────────────────────────────────────────────────────────


def _alike(
    sources: Sources, examples: ActivatingExamples | None
) -> dict[str, tuple[tuple[str, float], ...]]:
    """Of each neuron those that go with it over the examples, the strongest first."""
    found: dict[str, tuple[tuple[str, float], ...]] = {}
    tables: list[tuple[list[str], Any]] = [
        (one.names, one.r) for one in sources.of(Redundancy).values()
    ]
    if examples is not None:
        r = torch.tensor(examples.correlations().to_numpy())
        tables.append((list(examples), r))
    for names, r in tables:
        for place, name in enumerate(names):
            others = [
                (other, float(r[place, k])) for k, other in enumerate(names)
                if k != place and abs(float(r[place, k])) >= _ALIKE
            ]  # fmt: skip
            others.sort(key=lambda pair: -abs(pair[1]))
            found[name] = tuple(others[:_MOST_ALIKE])
    return found


def _clusters(sources: Sources, examples: ActivatingExamples | None) -> dict[str, tuple[str, ...]]:
    """Of each neuron the others of its cluster, as `redundancy` found them, or by the examples."""
    found: dict[str, tuple[str, ...]] = {}
    if examples is not None and len(examples) > 2:
        table = examples.correlations()
        known = table.columns[table.notna().sum() > 0]
        if len(known) > 2:
            r = torch.tensor(table.loc[known, known].to_numpy())
            cluster, _ = cluster_by(r, _CUT)
            found |= _members(list(known), cluster.tolist())
    for one in sources.of(Redundancy).values():
        found |= _members(one.names, one.cluster.tolist())
    return found


def _members(names: Sequence[str], cluster: Sequence[int]) -> dict[str, tuple[str, ...]]:
    inside: dict[int, list[str]] = {}
    for name, number in zip(names, cluster, strict=True):
        inside.setdefault(number, []).append(name)
    return {
        name: tuple(other for other in inside[number] if other != name)
        for name, number in zip(names, cluster, strict=True)
    }
