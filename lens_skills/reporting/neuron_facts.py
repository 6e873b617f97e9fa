"""What the results say of one neuron, number by number and in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from lens_skills.interventions.verdict import UNDECIDED, Ruling
from lens_skills.reporting.document import Fact
from lens_skills.reporting.found_analyses import Analysis
from lens_skills.reporting.phrases import chance, change, correlation, interval, listed, signed
from lens_skills.scoring.evidence import short_number

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
        parts.append(f"alone, {_edit(verdict)} changes {verdict.effects.metric} by {told}: "
                     f"{ruling.label}")  # fmt: skip
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
    """Its numbers with their intervals and units, each with what it is."""
    found = [*_evidence(row, own), *_effects(name, own, ruling)]
    for one in analyses:
        found += _elsewhere(name, one, own)
    return tuple(found)


def _evidence(row: Mapping[str, Any], own: Analysis | None) -> list[Fact]:
    metric = own.metric if own is not None else ""
    found = []
    r, explored = row.get("r"), row.get("r_explore")
    if isinstance(r, float):
        told = correlation(r, row.get("low"), row.get("high"))
        parts = (told, chance("p", row.get("p_confirm")), chance("q", row.get("q_confirm")))
        found.append(Fact(f"with {metric}, confirm", ", ".join(p for p in parts if p)))
    if isinstance(explored, float):
        parts = (
            correlation(explored, row.get("explore_low"), row.get("explore_high")),
            chance("p over all neurons", row.get("p_family")),
            "selected for being large",
        )
        found.append(Fact(f"with {metric}, explore", ", ".join(p for p in parts if p)))
    if row.get("q_control") is not None:
        again = chance("on confirm q", row.get("q_control_confirm"))
        told = chance("on explore q", row["q_control"]) + (f", {again}" if again else "")
        found.append(Fact("against the control task", told))
    if isinstance(excess := row.get("excess"), float):
        q = chance("q", row.get("q_basis"))
        told = f"{excess:.1f} times their root mean square" + (f", {q}" if q else "")
        found.append(Fact("|r| against random directions of its layer", told))
    return [*found, *_activation(str(row.get("neuron")), own)]


def _activation(name: str, own: Analysis | None) -> list[Fact]:
    """Its activation on explore, and with its position where that is not plain."""
    if own is None or own.scores is None:
        return []
    held = own.scores.scores
    place = own.places.get(name)
    if place is None:
        return []
    spot = int(own.scores.strongest_position[place])
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
    found = [
        Fact(
            f"effect on {verdict.effects.metric}, {_edit(verdict)}",
            change(ruling.effect, ruling.low, ruling.high, unit, ruling.percent),
        )
    ]
    compared = [
        f"δ = {short_delta(ruling.delta)} {unit}",
        chance("p by rank", ruling.p),
        chance("q over those tried", ruling.q),
        chance("q beyond what its size leads to expect", ruling.q_alike),
    ]
    found.append(Fact("against the controls", ", ".join(part for part in compared if part)))
    if ruling.direct is not None:
        told = change(ruling.direct, ruling.direct_low, ruling.direct_high, unit, None)
        found.append(Fact("of it direct, passing no later layer", told))
    if ruling.self_repair is not None:
        told = change(ruling.self_repair, ruling.repair_low, ruling.repair_high, unit, None)
        found.append(Fact("what later layers add", told))
    for row in verdict.tables.get("classes", ()):
        if row["name"] == name:
            told = signed(row["effect"]) + f" {unit}" + interval(row["low"], row["high"])
            found.append(Fact(f"effect where {row['column']} = {row['value']} ({row['n']})", told))
    for row in verdict.tables.get("ablations", ()):
        if row["name"] == name and row["do"] != verdict.effects.do:
            told = signed(row["effect"]) + f" {unit}" + interval(row["low"], row["high"])
            found.append(Fact(f"effect by {row['do']}", told))
    return found


def short_delta(delta: float) -> str:
    """δ as a card writes it."""
    return f"{delta:.2g}"


def _elsewhere(name: str, one: Analysis, own: Analysis | None) -> list[Fact]:
    """What the other metrics of the pass, and other analyses, say of it."""
    found: list[Fact] = []
    if one is own and one.scores is not None:
        held = one.scores.scores
        place = one.places.get(name)
        for metric in held.metrics:
            if metric == one.metric or place is None:
                continue
            view = held[metric]
            spot = int(view.strongest_position[place])
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
