"""`export`: results as files for other programs, tables for a paper and graphs for Neuronpedia."""

from pathlib import Path
from typing import Any

import pandas as pd

from lens_skills.activations import DEFAULT_SITE
from lens_skills.circuits import Circuit
from lens_skills.explanation import ActivatingExamples
from lens_skills.file_names import place_to_write
from lens_skills.interventions import Verdict
from lens_skills.reporting.paper_tables import latex, markdown
from lens_skills.reporting.sources import Sources, open_sources
from lens_skills.results import file_name, write_file
from lens_skills.scoring import Selection
from lens_skills.studies import Study

LEFT_OUT = "left-out.txt"


def export(
    source: Any, folder: str | Path, *, most: int = 20, scan: str = "", features_url: str = ""
) -> Path:
    """Writes results as files that other programs read; returns the folder.

    ``tables/NAME.tex`` and ``.md`` of every result: see `Result.to_latex`. Of every circuit
    ``neuronpedia/NAME.json``, and of every neuron whose examples were read a file in
    ``neuronpedia/features/``: valid against Neuronpedia's schemas, which circuit-tracer reads too.
    A file that is there is replaced. What has none is named in ``left-out.txt``, with why.

    Args:
        source: A result, several by name, or a folder they are saved in, as in `report`.
        folder: Made as needed.
        most: Rows of a table at most.
        scan: What Neuronpedia calls the model; default its name in small letters.
        features_url: Where ``neuronpedia/features`` will be served, so that a graph finds it.

    Raises:
        LensSkillsError: No result in the source; ``most`` below 1; an address that is none; a
            folder that cannot be written.

    >>> import tempfile
    >>> import lens_skills as ls
    >>> model = ls.load_model("arithmetic-small")
    >>> ready = ls.preflight(model, ls.tasks.arithmetic(digits=(1,))[:40])
    >>> with tempfile.TemporaryDirectory() as place:
    ...     folder = ls.export({"ready": ready}, f"{place}/paper")
    ...     sorted(path.name for path in (folder / "tables").iterdir())
    ['ready.md', 'ready.tex']

    Does not show: the notes of a result's card, which a reader of its numbers must see.
    """
    sources, place = open_sources(source), place_to_write(folder)
    files: dict[Path, str] = {}
    for name, result in sources.results.items():
        own = file_name(*Path(name).parts)
        files[place / "tables" / f"{own}.md"] = markdown(result, most=most)
        files[place / "tables" / f"{own}.tex"] = latex(result, most=most, label=f"tab:{own}")
    for path, text in files.items():  # all are made before one is written
        write_file(path, text.encode("utf-8"))
    left_out = [f"{fact.name}: {fact.value}" for fact in sources.damaged]
    shown, known = place / "neuronpedia", evidence(sources)
    for name, circuit in sources.of(Circuit).items():
        if not circuit.provenance.get("example"):
            left_out.append(f"{name}: an earlier version saved this circuit; trace it again")
            continue
        path = shown / f"{file_name(*Path(name).parts)}.json"
        circuit.to_neuronpedia(path, scan=scan, features_url=features_url)
    for name, examples in sources.of(ActivatingExamples).items():
        if examples.site == DEFAULT_SITE:
            examples.to_neuronpedia(shown / "features", evidence=known)
        else:
            left_out.append(f"{name}: read at {examples.site}, where there are no neurons")
    if left_out:
        write_file(place / LEFT_OUT, "".join(f"{line}\n" for line in left_out).encode("utf-8"))
    return place


def evidence(sources: Sources) -> pd.DataFrame | None:
    """What is known of each neuron, a row each; of several metrics, that of the first it is in."""
    verdicts: list[Verdict] = list(sources.of(Verdict).values())
    verdicts += [one.verdict for one in sources.of(Study).values() if one.verdict is not None]
    frames = [study.evidence() for study in sources.of(Study).values()]
    for selection in sources.of(Selection).values():
        own = [one for one in verdicts if set(selection.names) & {r.name for r in one.singles}]
        frames.append(selection.graded(own[0]) if own else selection.evidence())
    columns = {"low": "effect_low", "high": "effect_high", "q": "effect_q", "label": "verdict"}
    for verdict in verdicts:  # of what was tried and is in no selection
        frame = verdict.frame()
        own = {new: frame[old] for old, new in columns.items()}
        frames.append(pd.DataFrame({"name": frame["name"], "effect": frame["effect"], **own}))
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True).drop_duplicates("name") if frames else None
