"""How a verdict is printed: a card of 80 columns, words first, and the details on request."""

import math
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from lens_skills.scoring import EXPLORATORY

SHOWN = 12  # neurons on the card
_WIDTH = 80


def card_lines(verdict: Any) -> list[str]:
    """The card's lines, the most telling first."""
    effects, unit = verdict.effects, _unit(verdict)
    words = [f"{count} {word}" for word, count in _labels(verdict).items()]
    lines = [EXPLORATORY] if verdict.exploratory else []
    lines += _wrapped(f"{len(verdict)} verified → {' · '.join(words)}")
    lines += _wrapped(f"{effects.metric} · {effects.do}")
    lines += _wrapped(f"{effects.site} at {effects.position} · {_examples(verdict)}")
    lines += _wrapped(f"δ = {_deltas(verdict)}{unit}, {verdict.delta_from}")
    lines += _wrapped(
        "effects are edited minus clean: what supports the skill "
        + ("lowers the metric when removed" if verdict.removes else "raises the metric")
    )
    whole = [ruling for ruling in verdict.rulings if ruling.name == "set"]
    if whole:
        lines += ["", *_set(verdict, whole[0])]
    order = _ordered(verdict)
    places = decimals(verdict.delta)
    widths = _columns([*order[:SHOWN]], places)
    before = None
    for ruling in order[:SHOWN]:
        if ruling.label != before:
            lines += ["", ruling.label]
            before = ruling.label
        lines += _wrapped(_line(ruling, places, widths), indent=4)
    if len(order) > SHOWN:
        lines.append(f"  … and {len(order) - SHOWN} more in .frame()")
    lines += ["", *_wrapped(_legend(verdict))]
    for note in verdict.notes:
        lines += _wrapped(f"note: {note}", indent=2)
    return lines


def detail_lines(verdict: Any) -> list[str]:
    """What the card leaves out."""
    places, unit = decimals(verdict.delta), _unit(verdict)
    lines = []
    for ruling in verdict.rulings:
        if ruling.direct is not None and ruling.self_repair is not None:
            direct = _ends(ruling.direct, ruling.direct_low, ruling.direct_high, places)
            rest = _ends(ruling.self_repair, ruling.repair_low, ruling.repair_high, places)
            lines.append(f"{ruling.name}: direct {direct}{unit}")
            lines.append(f"  later layers and the final norm {rest}{unit}")
    for row in verdict.tables.get("set", ()):
        lines += _wrapped(f"{row['name']}: {_interval(row, places)}{unit}")
    for row in verdict.tables.get("controls", ()):
        low, high = (_number(row[end], places) for end in ("low", "high"))
        lines += _wrapped(
            f"{row['controls']} {row['kind']} sets: 90 % of them {low} to {high}{unit}; of the "
            f"set, p = {row['p']:.2g}"
        )
    match = [f"{row['feature']} {row['smd']:+.2f}" for row in verdict.tables.get("match", ())]
    if match:
        lines += _wrapped(f"match of the sets (standardised mean difference): {', '.join(match)}")
    for row in verdict.tables.get("ablations", ()):
        lines += _wrapped(f"{row['name']}, {row['do']}: {_interval(row, places)}{unit}", indent=2)
    for row in verdict.tables.get("pairs", ()):
        lines += _wrapped(
            f"{row['name']}, {row['what']}: {row['share']:.0%} [{row['low']:.0%}, "
            f"{row['high']:.0%}] of the "
            + ("clean metric" if row["what"] == "preservation" else "gap clean to corrupted")
            + (" · sufficient" if row.get("sufficient") else ""),
            indent=2,
        )
    for row in verdict.tables.get("unrelated", ()):
        where = row.get("where", "unrelated examples")
        small = decimals(max(abs(row["high"] - row["low"]), 1e-9))
        lines += _wrapped(f"{row['name']}, on {where}: {_interval(row, small)}", indent=2)
    return lines or ["nothing beyond the card"]


def decimals(delta: float) -> int:
    """Digits after the point that show a third of delta.

    >>> decimals(0.2), decimals(0.0018), decimals(50)
    (2, 4, 0)
    """
    if not (math.isfinite(delta) and delta > 0):
        return 3
    return max(0, math.ceil(-math.log10(delta / 3)))


def _number(value: float, places: int) -> str:
    return f"{round(value, places) + 0.0:+.{places}f}"


def _ends(value: float, low: float, high: float, places: int) -> str:
    return f"{_number(value, places)} [{_number(low, places)}, {_number(high, places)}]"


def _interval(row: Mapping[str, Any], places: int) -> str:
    return _ends(row["effect"], row["low"], row["high"], places)


def _wrapped(text: str, indent: int = 2) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, subsequent_indent=" " * indent, break_long_words=False, drop_whitespace=True
    )


def _unit(verdict: Any) -> str:
    unit = verdict.effects.unit
    return f" {unit}" if unit not in ("", "column", "0/1") else ""


def _ordered(verdict: Any) -> list[Any]:
    words = list(verdict.counts)
    return sorted(
        verdict.singles,
        key=lambda one: (words.index(one.word), one.large, one.sign_depends, -abs(one.effect)),
    )


def _labels(verdict: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for ruling in _ordered(verdict):
        found[ruling.label] = found.get(ruling.label, 0) + 1
    return found


def _deltas(verdict: Any) -> str:
    values = [ruling.delta for ruling in verdict.singles]
    low, high = min(values), max(values)
    return f"{low:.2g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g} to {high:.2g}"


def _examples(verdict: Any) -> str:
    effects = verdict.effects
    n_groups = len(set(effects.groups))
    worth = verdict.effective_groups
    alike = "" if worth > 0.9 * n_groups else f" (worth {worth:.0f} of one size)"
    mean = float(effects.clean.mean())
    return (
        f"{len(effects.clean):,} examples in {n_groups:,} groups{alike}, clean mean "
        f"{mean:.3g}{_unit(verdict)}"
    )


def _columns(rulings: Iterable[Any], places: int) -> tuple[int, int]:
    """How wide names and intervals are."""
    rulings = list(rulings)
    return (
        max(len(one.name) for one in rulings),
        max(len(_interval(vars(one), places)) for one in rulings),
    )


def _line(ruling: Any, places: int, widths: tuple[int, int]) -> str:
    name, interval = widths
    parts = [f"  {ruling.name:<{name}}  {_interval(vars(ruling), places):<{interval}}"]
    if ruling.percent is not None:
        parts.append(f"{ruling.percent:+.{1 if abs(ruling.percent) < 10 else 0}f} %")
    if ruling.q is not None:
        parts.append(f"q {ruling.q:.2g}")
    if ruling.q_alike is not None:
        parts.append(f"size q {ruling.q_alike:.2g}")
    if ruling.doubtful:
        parts.append("interval: do not trust")
    if ruling.why:
        parts.append(ruling.why)
    return " · ".join(parts)


def _set(verdict: Any, whole: Any) -> list[str]:
    places, unit = decimals(verdict.delta), _unit(verdict)
    text = f"together: {whole.label} {_interval(vars(whole), places)}{unit}"
    if whole.percent is not None:
        text += f" ({whole.percent:+.0f} %)"
    if whole.p is not None:
        kind = "matched sets" if verdict.matched else "sets that are not matched"
        text += f", p = {whole.p:.2g} among {whole.n_controls} {kind}"
    if whole.doubtful:
        text += " · interval: do not trust"
    if whole.why:
        text += f" · {whole.why}"
    return _wrapped(text)


def _legend(verdict: Any) -> str:
    parts = ["[95 % interval of one neuron, by group]"]
    if any(ruling.percent is not None for ruling in verdict.singles):
        parts.append("% of the clean metric")
    counts = {ruling.n_controls for ruling in verdict.singles if ruling.q is not None}
    k = len(verdict)
    if counts:
        some = f"{min(counts):,}" if len(counts) == 1 else f"{min(counts):,} to {max(counts):,}"
        where = (
            "other units"
            if verdict.provenance.get("control_neurons") == "all layers"
            else "others of its layer"
        )
        over = f", Benjamini–Hochberg over the {k}" if k > 1 else ""
        parts.append(f"q: rank of |effect| among {some} {where}{over}")
    if any(ruling.q_alike is not None for ruling in verdict.singles):
        parts.append("size q: the same beyond what |a|, std and ‖W_out‖ lead to expect")
    if any(ruling.doubtful for ruling in verdict.rulings):
        parts.append("do not trust: a few groups carry most of the effect")
    parts.append(".details() has the rest")
    return "; ".join(parts)
