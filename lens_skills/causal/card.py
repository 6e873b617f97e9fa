"""`card_lines`: a verdict as the lines of its card."""

from typing import Any

from lens_skills.causal.ruling import WORDS, Ruling
from lens_skills.scoring import EXPLORATORY

SHOWN = 12


def card_lines(verdict: Any) -> list[str]:
    """The card's lines, the most telling first."""
    effects = verdict.effects
    unit = f" {effects.unit}" if effects.unit else ""
    lines = [
        f"{effects.metric} · {effects.do} · {effects.site} at {effects.position}",
        f"{len(effects.clean):,} examples in {len(set(effects.groups)):,} groups, clean mean "
        f"{float(effects.clean.mean()):.3g}{unit} · δ = {verdict.delta:.3g}{unit} "
        f"({verdict.delta_from})",
        "effects are edited minus clean"
        + (
            ": what supports the skill lowers the metric when removed"
            if verdict.removes
            else ": this edit adds, so what supports the skill raises the metric"
        ),
    ]
    if verdict.exploratory:
        lines.insert(0, EXPLORATORY)
    words = [f"{count} {word}" for word, count in verdict.counts.items() if count]
    lines.append(f"{len(verdict)} on trial → {' · '.join(words)}")
    whole = [ruling for ruling in verdict.rulings if ruling.name == "set"]
    if whole:
        lines += ["", *_set(verdict, whole[0])]
    lines.append("")
    order = sorted(
        verdict.singles, key=lambda ruling: (WORDS.index(ruling.word), -abs(ruling.effect))
    )
    width = max(len(ruling.word) for ruling in order[:SHOWN])
    lines += [_line(ruling, width) for ruling in order[:SHOWN]]
    if len(order) > SHOWN:
        lines.append(f"  … and {len(order) - SHOWN} more in .frame()")
    lines += _ablations(verdict)
    lines += _pairs(verdict)
    lines += _unrelated(verdict)
    if verdict.notes:
        lines += ["", *(f"note: {note}" for note in verdict.notes)]
    return lines


def _line(ruling: Ruling, width: int) -> str:
    interval = f"[{ruling.low:+.3g}, {ruling.high:+.3g}]"
    parts = [f"  {ruling.name:<9} {ruling.word:<{width}} {ruling.effect:+.3g} {interval}"]
    if ruling.direct is not None and ruling.self_repair is not None:
        parts.append(f"direct {ruling.direct:+.3g}, later layers {ruling.self_repair:+.3g}")
    if ruling.q is not None:
        parts.append(f"q = {ruling.q:.2g}")
    if ruling.why:
        parts.append(ruling.why)
    return " · ".join(parts)


def _set(verdict: Any, whole: Ruling) -> list[str]:
    text = f"together: {whole.word} {whole.effect:+.3g} [{whole.low:+.3g}, {whole.high:+.3g}]"
    if whole.p is not None:
        text += f", p = {whole.p:.2g} among {whole.n_controls} matched sets"
    if whole.why:
        text += f" · {whole.why}"
    lines = [text]
    for row in verdict.tables.get("set", ()):
        if row["name"] == "sum of singles":
            lines.append(f"  the sum of its neurons, each alone: {row['effect']:+.3g}")
    for row in verdict.tables.get("controls", ()):
        lines.append(
            f"  {row['controls']} {row['kind']} sets: {row['low']:+.3g} to {row['high']:+.3g} "
            f"(90 % of them), p = {row['p']:.2g}"
        )
    match = [f"{row['feature']} {row['smd']:+.2f}" for row in verdict.tables.get("match", ())]
    if match:
        lines.append(f"  match (standardised mean difference): {', '.join(match)}")
    return lines


def _ablations(verdict: Any) -> list[str]:
    rows = verdict.tables.get("ablations", ())
    name = verdict.rulings[-1].name
    parts = [
        f"{row['do']} {row['effect']:+.3g} [{row['low']:+.3g}, {row['high']:+.3g}]"
        for row in rows
        if row["name"] == name
    ]
    return ["", f"over the choice of ablation ({name}): {'; '.join(parts)}"] if parts else []


def _pairs(verdict: Any) -> list[str]:
    lines = []
    for row in verdict.tables.get("pairs", ()):
        if row["name"] == verdict.rulings[-1].name:
            lines.append(
                f"{row['what']}: {row['share']:.0%} [{row['low']:.0%}, {row['high']:.0%}] of the "
                f"gap between clean and corrupted{' · sufficient' if row.get('sufficient') else ''}"
            )
    return ["", *lines] if lines else []


def _unrelated(verdict: Any) -> list[str]:
    rows = [
        row
        for row in verdict.tables.get("unrelated", ())
        if row["name"] == verdict.rulings[-1].name
    ]
    return [
        f"on unrelated examples ({row['name']}): {row['effect']:+.3g} "
        f"[{row['low']:+.3g}, {row['high']:+.3g}]"
        for row in rows
    ]
