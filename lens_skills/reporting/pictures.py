"""The figures of a report, each with what it shows in words."""

import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from lens_skills.errors import LensSkillsError
from lens_skills.explanation import ActivatingExamples
from lens_skills.interventions import Audit, Verdict
from lens_skills.plotting.drawing import Drawing
from lens_skills.plotting.result_figures import drawn
from lens_skills.reporting.document import Fact, Picture
from lens_skills.reporting.found_analyses import Analysis
from lens_skills.reporting.neuron_table import frame_rows
from lens_skills.reporting.phrases import change, counted, listed
from lens_skills.reporting.sources import Sources
from lens_skills.results import file_name
from lens_skills.scoring import Scores, Selection
from lens_skills.studies import Study
from lens_skills.tasks import Preflight

_TABLE = 60  # rows of a picture's numbers; all are in the files that `figures` writes

# What is looked at first.
_ORDER = (
    "effect_against_r",
    "attrition",
    "effect_forest",
    "effect_against_controls",
    "circuit_graph",
    "r_distribution",
    "layer_profile",
    "correlation_by_position",
)


def pictures(
    analyses: Sequence[Analysis], names: Sequence[str], sources: Sources
) -> tuple[tuple[Picture, ...], tuple[Fact, ...]]:
    """All that can be drawn, and of what cannot, why.

    Title and caption of a figure are text beside it, and not in the picture.
    """
    places = dict.fromkeys([*(one.place for one in analyses), *map(_parent, sources.results)])
    found: list[tuple[int, Picture]] = []
    failed: list[Fact] = []
    for place in places:
        own = [one for one in analyses if one.place == place]
        parts = _parts(place, own, sources)
        try:
            drawings, without = drawn(parts, metrics=[one.metric for one in own if one.metric])
        except Exception as error:  # a report without a picture is better than none
            failed.append(Fact(f"figures{f' of {place}' if place else ''}", _why(error)))
            continue
        failed += [Fact(f"figure: {name}", why) for name, why in without.items()]
        for drawing in drawings:
            title = str(drawing.about.get("title") or drawing.kind)
            title += f" ({place})" if place and len(places) > 1 else ""
            try:
                svg = _svg(drawing.styled("paper"))
            except Exception as error:
                failed.append(Fact(f"figure: {title}", _why(error)))
                continue
            label = "-".join(filter(None, ("figure", file_name(*place.split("/")), drawing.name)))
            alt = " ".join(filter(None, (_finding(drawing, own, parts), *_caption(drawing))))
            found.append(
                (_rank(drawing), Picture(label, title, svg, alt, frame_rows(drawing.frame, _TABLE)))
            )
    # Stable: the figures of one place stay together among those of a kind.
    return tuple(one for _, one in sorted(found, key=lambda pair: pair[0])), tuple(failed)


def _caption(drawing: Drawing) -> list[str]:
    """The lines and the note of a figure as sentences; its title is a heading."""
    lines = [str(line).strip() for line in drawing.about.get("lines", ()) if line]
    sentences = [f"{line[:1].upper()}{line[1:].rstrip('.')}." for line in lines]
    return [*sentences, str(drawing.about.get("note", "")).strip()]


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, LensSkillsError) else f"{error!r:.200}"


def _rank(drawing: Drawing) -> int:
    return _ORDER.index(drawing.kind) if drawing.kind in _ORDER else len(_ORDER)


def _parts(place: str, own: Sequence[Analysis], sources: Sources) -> dict[str, Any]:
    """The results that lie in one place, under the names that a run gives them."""
    parts: dict[str, Any] = {}
    for one in own:
        if one.scores is not None:
            parts.setdefault("explore", one.scores.scores)
        if one.selection is not None:
            parts[f"selection-{one.metric}"] = one.selection
        if one.verdict is not None and one.metric:
            parts[file_name("verdict", one.metric)] = one.verdict
    known = {id(part) for part in parts.values()}
    for name, result in sources.results.items():
        whole = isinstance(result, Study | Scores | Selection | Preflight | ActivatingExamples)
        if _parent(name) == place and not whole and id(result) not in known:
            parts[PurePosixPath(name).name] = result
    return parts


def _finding(drawing: Drawing, own: Sequence[Analysis], parts: Mapping[str, Any]) -> str:
    """What is to be seen, in a sentence; "" where the caption says all."""
    one = next((a for a in own if a.metric and file_name(a.metric) in drawing.name), None)
    verdict = None if one is None else one.verdict
    if one is not None and drawing.kind == "attrition" and one.selection is not None:
        return f"{one.selection.attrition_line(verdict)}."
    if one is not None and drawing.kind == "r_distribution" and one.scores is not None:
        held, beyond = one.scores.scores, int(one.scores.associated.any(0).sum())
        return (
            f"Of {counted(held.n_units, 'neuron')}, {beyond:,} are associated; the strongest is "
            f"{listed(one.scores.top(1).names)}."
        )
    if verdict is not None and drawing.kind in ("effect_against_r", "effect_forest"):
        return _words(verdict)
    if verdict is not None and drawing.kind == "effect_against_controls":
        return _whole(verdict)
    for name, result in parts.items():
        if drawing.name.endswith(file_name(name.partition("-")[2])) and "-" in name:
            return "" if isinstance(result, Verdict | Audit) else _first_line(result)
    return ""


def _first_line(result: Any) -> str:
    if isinstance(result, Scores | Selection):
        return ""
    first = next((line.strip() for line in repr(result).split("\n") if line.strip()), "")
    return f"{first.rstrip('.:')}."


def _words(verdict: Verdict) -> str:
    words = ", ".join(f"{n} {word}" for word, n in verdict.counts.items() if n)
    return f"{counted(len(verdict), 'neuron')} tried: {words}."


def _whole(verdict: Verdict) -> str:
    one = verdict.rulings[-1]
    told = change(one.effect, one.low, one.high, verdict.effects.unit, one.percent)
    who = "All together" if one.name == "set" else one.name
    return f"{who}: {told}, number {one.rank or '–'} among {one.n_controls:,} controls."


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _svg(drawing: Drawing) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = drawing.savefig(Path(folder) / "drawing.svg")
        return smaller(path.read_text(encoding="utf-8"))


def smaller(svg: str) -> str:
    """A picture as Matplotlib writes it at half the size: it looks the same.

    Without names that nothing refers to and without white space; lengths to a hundredth of a point
    (a glyph is drawn at a scale, which stays as it is).

    >>> smaller('<g id="a_1">\\n <path d="M 1.23456 2 \\nL 3 4 \\n" style="x: y"/>\\n</g>')
    '<g><path d="M1.23 2L3 4" style="x: y"/></g>'
    """
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.S)
    named = set(re.findall(r"(?:href=\"|url\()#([^\")]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in named else "", svg)
    short = {name: f"i{number}" for number, name in enumerate(sorted(named))}
    svg = re.sub(r'(?<=["(]#)[^")]+', lambda found: short.get(found[0], found[0]), svg)
    svg = re.sub(r'(?<= id=")[^"]*', lambda found: short[found[0]], svg)
    lengths = r' (?:d|x|y|points)="[^"]*"|translate\([^)]*\)'
    svg = re.sub(lengths, lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)
    svg = re.sub(r' d="[^"]*"', lambda found: _tight(found[0]), svg)
    looks = Counter(re.findall(r' style="([^"]*)"', svg))
    classes = {look: f"s{k}" for k, look in enumerate(looks) if looks[look] > 3}
    rules = "".join(f".{name}{{{look}}}" for look, name in classes.items())
    svg = re.sub(
        r' style="([^"]*)"',
        lambda found: f' class="{classes[found[1]]}"' if found[1] in classes else found[0],
        svg,
    )
    return re.sub(r">\s+<", "><", svg.replace("</style>", f"{rules}</style>", 1))


def _tight(path: str) -> str:
    return ' d="' + re.sub(r"\s*([A-Za-z])\s*", r"\1", " ".join(path[4:-1].split())) + '"'
