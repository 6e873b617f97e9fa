"""`gather`: results as the document that a report shows."""

from collections.abc import Mapping, Sequence
from typing import Any

from lens_skills.circuits import Circuit
from lens_skills.errors import LensSkillsError
from lens_skills.explanation import ActivatingExamples, Explanations, Shortcuts
from lens_skills.interventions import Verdict
from lens_skills.reporting.document import (
    Card,
    Document,
    EveryNeuron,
    Graph,
)
from lens_skills.reporting.document_words import (
    asked_of,
    caveats_of,
    data_of,
    found_of,
    grades_of,
    missing_of,
    steps_of,
    versions_of,
)
from lens_skills.reporting.found_analyses import Analysis, named_apart, with_audits
from lens_skills.reporting.graphs import anchor_of, example_tokens, graph
from lens_skills.reporting.neuron_pages import pages
from lens_skills.reporting.neuron_table import columns, frame_rows, rows
from lens_skills.reporting.pictures import pictures
from lens_skills.reporting.sources import Sources, open_sources
from lens_skills.results import file_name
from lens_skills.scoring import Scores, Selection
from lens_skills.studies import Study

_PAGES = 100
_TABLE = 100  # rows of a result's table


def gather(
    source: Any, *, neurons: int = _PAGES, examples: ActivatingExamples | None = None
) -> Document:
    """A report of results, as plain values: `Document`.

    Nothing is run. What is not there is named in ``missing`` with what would make it; a result
    that is damaged, or of an older version, is named there too and the rest is shown.

    Args:
        source: A result, several by name, or a folder they are saved in: a run of the shell, what
            `lens-skills demo` writes, or any folder with saved results up to three levels down.
        neurons: How many neurons get a page, 0 or more: those tried first, then those that a
            result is about, then the best grades.
        examples: From `activating_examples`; default those that are saved with the rest.

    Raises:
        LensSkillsError: No result in it; a ``neurons`` below 0.

    >>> import lens_skills as ls
    >>> model = ls.load_model("arithmetic-small")
    >>> task = ls.tasks.arithmetic("+", digits=(1,))
    >>> scores = ls.score(model, task, metrics=["confidence"], n_permutations=20)
    >>> document = gather(scores)
    >>> document.title, len(document.every.layer)
    ('arithmetic on arithmetic-small', 1536)
    """
    if neurons < 0:
        raise LensSkillsError(f"neurons= is how many get a page, 0 or more, not {neurons}.")
    sources = source if isinstance(source, Sources) else open_sources(source)
    analyses = with_audits(sources)
    names = named_apart(analyses)
    examples = examples or saved_examples(sources)
    wanted = neurons_with_pages(analyses, sources, neurons)
    table = rows(analyses, names, paged=wanted)
    graphs = _graphs(sources, set(wanted))
    drawn, failed = pictures(analyses, names, sources)
    made = pages(wanted, analyses, sources, examples, graphs, table)
    return Document(
        title=_title(analyses, sources),
        found=found_of(analyses, names, sources),
        asked=asked_of(analyses, names, sources),
        data=data_of(analyses, names, sources, examples),
        attrition=steps_of(analyses[0]) if analyses else (),
        grades=grades_of(analyses[0]) if analyses else (),
        caveats=caveats_of(analyses, names, sources),
        missing=(*missing_of(analyses, sources, made, examples), *failed),
        pictures=drawn,
        cards=_cards(sources),
        columns=columns(analyses, table),
        rows=table,
        n_rows=sum(len(one.rows) for one in analyses),
        every=_every(analyses),
        neurons=made,
        circuits=graphs,
        reproduce=sources.commands,
        versions=versions_of(analyses, sources),
        about={"format": "lens-skills/report", "version": 1, "results": list(sources.results)},
    )


def saved_examples(sources: Sources) -> ActivatingExamples | None:
    """The examples that are among the results: the ones of the most neurons."""
    found = list(sources.of(ActivatingExamples).values())
    return max(found, key=len) if found else None


def neurons_with_pages(
    analyses: Sequence[Analysis], sources: Sources, most: int
) -> tuple[str, ...]:
    """Who gets a page: those tried, those that a result is about, then by grade and strength.

    Of one model only, that of the analysis that went furthest: a name says nothing of another.
    """
    if not analyses:
        return tuple(_named(sources, set()))[:most]
    model = analyses[0].about.get("model_fingerprint")
    same = [one for one in analyses if one.about.get("model_fingerprint") == model]
    ordered: dict[str, None] = {}
    for one in same:
        ordered |= dict.fromkeys(one.rulings)
    known = {unit for one in same for unit in one.places}
    ordered |= dict.fromkeys(_named(sources, known))
    for one in same:
        ordered |= dict.fromkeys(str(row["name"]) for row in one.rows if row.get("grade"))
    for one in same:
        ordered |= dict.fromkeys(str(row["name"]) for row in one.rows)
    return tuple(ordered)[:most]


def _named(sources: Sources, known: set[str]) -> list[str]:
    """The neurons that further results are about, of those known (all, where none are)."""
    found: list[str] = []
    for one in sources.of(Explanations).values():
        found += list(one)
    for one in sources.of(Shortcuts).values():
        found += [neuron.name for neuron in one.neurons]
    for one in sources.of(Circuit).values():
        found += [node.name for node in one.start if node.kind == "neuron"]
    if not found:
        for one in sources.of(ActivatingExamples).values():
            found += list(one)
    return [name for name in found if not known or name in known]


def _title(analyses: Sequence[Analysis], sources: Sources) -> str:
    if analyses:
        tasks = list(dict.fromkeys(one.task for one in analyses))
        models = list(dict.fromkeys(one.model for one in analyses))
        return f"{', '.join(tasks)} on {', '.join(models)}"
    for one in sources.results.values():
        about = getattr(one, "provenance", None)
        if isinstance(about, Mapping) and about.get("model"):
            return f"{about.get('task', type(one).__name__)} on {about['model']}"
    return " and ".join(dict.fromkeys(type(one).__name__ for one in sources.results.values()))


def _graphs(sources: Sources, with_pages: set[str]) -> tuple[Graph, ...]:
    found: list[Graph] = []
    for name, circuit in sources.of(Circuit).items():
        anchor = anchor_of("", circuit)
        if any(one.anchor == anchor for one in found):
            anchor = anchor_of(name.replace("/", "-"), circuit)
        found.append(graph(circuit, anchor, pages=with_pages, tokens=example_tokens(circuit)))
    return tuple(found)


def _cards(sources: Sources) -> tuple[Card, ...]:
    """Every result as it prints itself; of a step that a study holds as well, the study's only."""
    studied = {one.metric for one in sources.of(Study).values()}
    found = []
    for name, one in sources.results.items():
        if isinstance(one, ActivatingExamples) or (studied and _is_step_of(one, studied)):
            continue
        # The evidence and the effects of all neurons are the report's own table.
        frame = None if isinstance(one, Scores | Selection | Study | Verdict) else _frame(one)
        found.append(
            Card(
                anchor=f"card-{file_name(name.replace('/', '-'))}",
                title=name,
                text=repr(one),
                table=() if frame is None else frame_rows(frame, _TABLE),
            )
        )
    return tuple(found)


def _is_step_of(one: Any, metrics: set[str]) -> bool:
    """Whether it is the selection, the verdict or the scores of a study that is shown whole."""
    kind = type(one).__name__
    if kind == "Scores":
        return bool(metrics & set(one.metrics))
    if kind == "Selection":
        return one.metric in metrics
    selection = one.provenance.get("selection") if kind == "Verdict" else None
    return selection is not None


def _frame(one: Any) -> Any:
    try:
        return one.frame()
    except AttributeError:
        return None


def _every(analyses: Sequence[Analysis]) -> EveryNeuron | None:
    """Of all neurons of the furthest analysis that has scores, at each one's strongest position."""
    scored = [one.scores.scores for one in analyses if one.scores is not None]
    if not scored:
        return None
    held = scored[0]
    out = held.excluded
    numbers = {}
    for metric in held.metrics:
        view = held[metric]
        r = view.at_strongest(view.r).double().masked_fill(out, float("nan"))
        numbers[metric] = tuple(r.tolist())
    return EveryNeuron(
        layer=tuple(held.layer.tolist()),
        index=tuple(held.neuron.tolist()),
        r=numbers,
        threshold={metric: held.thresholds.get(metric) for metric in held.metrics},
    )
