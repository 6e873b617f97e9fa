"""What the results say of one neuron, number by number and in words."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lens_skills.interventions.verdict import UNDECIDED, Ruling
from lens_skills.reporting.document import Fact
from lens_skills.reporting.found_analyses import Analysis
from lens_skills.reporting.phrases import chance, change, correlation, listed, signed
from lens_skills.scoring.evidence import GENERAL, of_others, short_number

_TWINS = 0.9  # |r| from which on two neurons do about the same


def summary_of(
    name: str, row: Mapping[str, Any], own: Analysis | None, ruling: Ruling | None
) -> str:
    """What is known of it in one sentence."""
    parts = []
    metric = own.metric if own is not None else ""
    r = row.get("r")
    if isinstance(r, float):
        ends = (row.get("low"), row.get("high"))
        parts.append(f"{correlation(r, *ends)} with {metric} on unseen groups")
    elif isinstance(row.get("r_explore"), float):
        parts.append(
            f"{correlation(row['r_explore'])} with {metric} on explore, "
            f"{row.get('stopped_by') or 'not confirmed'}"
        )
    if ruling is not None and own is not None and own.verdict is not None:
        verdict = own.verdict
        told = change(ruling.effect, ruling.low, ruling.high, verdict.effects.unit, ruling.percent)
        moves = "raises" if ruling.effect > 0 else "lowers" if ruling.effect < 0 else "leaves"
        parts.append(
            f"{_edit(verdict)} of it alone {moves} {verdict.effects.metric}, by {told}: "
            f"{ruling.label}"
        )
    elif own is not None and own.verdict is not None and parts:
        parts.append("not tried")
    elif parts:
        parts.append("no intervention was made")
    return "; ".join(parts) + "." if parts else f"{name} is in none of the tables of this report."


def _edit(verdict: Any) -> str:
    return str(verdict.effects.do).split(" over ")[0]


def facts_of(
    name: str,
    row: Mapping[str, Any],
    own: Analysis | None,
    ruling: Ruling | None,
    analyses: Sequence[Analysis],
) -> tuple[Fact, ...]:
    """What is known beside its row of the table: numbers with intervals and units."""
    found = [*_effects(name, own, ruling), *_evidence(row)]
    for one in analyses:
        found += _elsewhere(name, one, own)
    return (*found, *_activation(name, own))


def _evidence(row: Mapping[str, Any]) -> list[Fact]:
    tests = {
        "p_confirm": ("r on confirm, of this neuron by itself", "p"),
        "q_control_confirm": ("r against the control task, confirm", "q"),
        "q_basis": ("r against random directions of its layer", "q"),
    }
    return [
        Fact(name, chance(sign, row[key]))
        for key, (name, sign) in tests.items()
        if row.get(key) is not None
    ]


def _activation(name: str, own: Analysis | None) -> list[Fact]:
    """Its activation on explore, and with its position where that is not plain."""
    if own is None or own.scores is None:
        return []
    held = own.scores.scores
    place = own.places.get(name)
    if place is None:
        return []
    spot = own.scores.strongest_of(place)
    mean, std = float(held.mean[spot, place]), float(held.std[spot, place])
    told = f"mean {signed(mean)}, standard deviation {std:.3g}"
    if own.metric in held.class_means:
        zero, one = (float(part[spot, place]) for part in held.class_means[own.metric])
        told += f"; mean {signed(zero)} where {own.metric} is 0, {signed(one)} where 1"
    return [Fact(f"activation ({held.site} at {held.positions[spot]}), explore", told)]


def _effects(name: str, own: Analysis | None, ruling: Ruling | None) -> list[Fact]:
    if ruling is None or own is None or own.verdict is None:
        return []
    verdict = own.verdict
    unit = verdict.effects.unit
    compared = {
        "smallest effect that matters, δ": f"{delta_of(ruling, verdict):.2g} {unit}",
        "rank of |effect| among the controls": chance("p", ruling.p),
        "effect beyond what its size leads to expect": chance("q", ruling.q_alike),
    }
    found = [Fact(what, told) for what, told in compared.items() if told]
    if ruling.direct is not None:
        told = change(ruling.direct, ruling.direct_low, ruling.direct_high, unit)
        found.append(Fact("direct effect, passing no later layer", told))
    if ruling.self_repair is not None:
        told = change(ruling.self_repair, ruling.repair_low, ruling.repair_high, unit)
        found.append(Fact("what later layers add to it", told))
    for row in verdict.tables.get("classes", ()):
        if row["name"] == name:
            told = change(row["effect"], row["low"], row["high"], unit)
            found.append(Fact(f"effect where {row['column']} = {row['value']} ({row['n']})", told))
    for row in verdict.tables.get("ablations", ()):
        if row["name"] == name and row["do"] != verdict.effects.do:
            told = change(row["effect"], row["low"], row["high"], unit)
            found.append(Fact(f"effect by {row['do']}", told))
    return found


def delta_of(ruling: Ruling, verdict: Any) -> float:
    """δ in the layer of a neuron; the verdict's where it has none of its own."""
    return float(verdict.delta if math.isnan(ruling.delta) else ruling.delta)


def _elsewhere(name: str, one: Analysis, own: Analysis | None) -> list[Fact]:
    """What the other metrics of the pass, and other analyses, say of it."""
    found: list[Fact] = []
    if one is own and one.scores is not None:
        held = one.scores.scores
        place = one.places.get(name)
        for metric in held.metrics:
            # Of its own metric the row of the table says all, where it has one.
            if place is None or (metric == one.metric and name in one.names):
                continue
            view = held[metric]
            spot = view.strongest_of(place)
            r, low, high = (float(part[spot, place]) for part in (view.r, view.low, view.high))
            p = None if view.p_family is None else float(view.p_family[spot, place])
            told = correlation(r, low, high)
            if p is not None:
                told += f", p over all neurons {short_number(p)}"
            found.append(Fact(f"with {metric}, explore", told))
    elif one is not own:
        for row in one.rows:
            if row["name"] != name:
                continue
            r = row.get("r_confirm", None)
            told = (
                correlation(r, row.get("low"), row.get("high")) if r is not None else "not tested"
            )
            about = f"{one.task} · {one.metric}" if one.metric else one.task
            found.append(Fact(f"in {about}", f"grade {row['grade'] or '–'}, {told}"))
            break
        if (ruling := one.rulings.get(name)) is not None and one.verdict is not None:
            unit = one.verdict.effects.unit
            told = change(ruling.effect, ruling.low, ruling.high, unit, ruling.percent)
            metric = one.verdict.effects.metric
            found.append(Fact(f"effect on {metric} ({one.task})", f"{told}: {ruling.label}"))
    return found


def caveats_of(
    name: str,
    row: Mapping[str, Any],
    own: Analysis | None,
    ruling: Ruling | None,
    alike: Sequence[tuple[str, float]],
) -> tuple[str, ...]:
    """What the numbers of a page do not show, in sentences."""
    found = []
    if own is not None and own.exploratory:
        found.append("Exploratory: examples were used before; nothing here is confirmed.")
    if len(row) <= 1:
        found.append("It is not associated with the metric: it is here because a result names it.")
    elif of_others(row):
        found.append(
            "No association with the metric was found: gradients expect an effect of it, which "
            "says nothing of what it is about."
            + (" General means no more than that." if row.get("grade") == GENERAL else "")
        )
    elif not row.get("grade") and own is not None and own.metric:
        why = row.get("stopped_by")
        found.append(
            "Associated on explore, on which it was chosen, and not confirmed on unseen groups"
            + (f" ({why})" if why else "")
            + ": its r is not for quoting."
        )
    if ruling is None:
        found.append("Not tried: a correlate. Whether the model uses it takes an intervention.")
    else:
        found += _of_ruling(ruling)
    excess, badge = row.get("excess"), row.get("badge")
    if isinstance(excess, float) and not badge:
        found.append(
            "Its r is within what random directions of its layer reach: the layer carries the "
            "metric, and nothing here says that this neuron is where."
        )
    twins = [other for other, r in alike if abs(r) >= _TWINS]
    if twins:
        found.append(
            f"It does about the same as {listed(twins, 4)} (|r| ≥ {_TWINS}): the effect of one "
            "alone may be made up for by the others."
        )
    return tuple(found)


def _of_ruling(ruling: Ruling) -> list[str]:
    found = []
    if ruling.large:
        found.append("Large neuron: its effect is no more than its size leads to expect.")
    if ruling.sign_depends:
        found.append("Another ablation has an effect of the opposite sign: read the facts.")
    if ruling.doubtful:
        found.append("A few groups carry most of the effect: its interval is not to be trusted.")
    if ruling.word == UNDECIDED and ruling.needed:
        found.append(f"Undecided: about {ruling.needed:,} examples, in as many more groups, would "
                     "decide, should mean and spread stay.")  # fmt: skip
    return found
