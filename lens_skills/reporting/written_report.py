"""`report`: results as one HTML file that opens without a network."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lens_skills.activations.locations import parse_position
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.explanation import ActivatingExamples, activating_examples
from lens_skills.file_names import place_to_write
from lens_skills.models import ModelAdapter, SoftPrompt, with_soft_prompt
from lens_skills.reporting.document import Fact
from lens_skills.reporting.found_analyses import Analysis, with_audits
from lens_skills.reporting.gather import gather, neurons_with_pages, saved_examples
from lens_skills.reporting.html_page import render
from lens_skills.reporting.sources import Sources, open_sources
from lens_skills.results import write_file
from lens_skills.studies import Study
from lens_skills.tasks import Task, few

EXAMPLES = "activating-examples"
"""The folder beside the results in which the examples of a report are kept."""

_MOST = 500  # examples that a report reads neurons on


def report(
    source: Any,
    path: str | Path,
    *,
    model: Any = None,
    examples: Sequence[Example] | None = None,
    prompt: SoftPrompt | None = None,
    neurons: int = 100,
) -> Path:
    """Writes results as one HTML file to read, sort and print; returns its path.

    It opens from the disk without a network: what was asked and found, the data, each step's
    count, figures, a table of the neurons, a page for each with its examples, circuits as graphs,
    caveats in words, and the commands and versions to repeat it. What is not there is named,
    with what would make it.

    With a ``model``, the neurons are read on examples, token by token, and what each writes is
    read by the logit lens and the Jacobian lens (`activating_examples`); kept beside the results,
    where these are in a folder that can be written, so that the next report need not run it again.

    Args:
        source: A result, several by name, or a folder they are saved in: a run of the shell, what
            `lens-skills demo` writes, or any folder with saved results up to three levels down.
        path: Of the file, such as ``"report.html"``; one that is there is replaced, at once.
        model: The model the results are of, to read examples with; without it those are shown
            that were read before.
        examples: On which neurons are read, at most about 500 of them; default a study's explore
            split.
        prompt: The soft prompt that the results were read with, if there was one.
        neurons: How many get a page, 0 or more; about 30 kB each.

    Raises:
        LensSkillsError: No result in the source; another model than theirs; a model and no
            examples; a file that cannot be written.

    >>> import tempfile
    >>> import lens_skills as ls
    >>> model = ls.load_model("arithmetic-small")
    >>> task = ls.tasks.arithmetic("+", digits=(1,))
    >>> scores = ls.score(model, task, metrics=["confidence"], n_permutations=20)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = ls.report(scores, f"{folder}/report.html", neurons=3)
    ...     path.read_text(encoding="utf-8")[:15]
    '<!doctype html>'

    Does not show: more than the results hold; nothing is tested anew.
    """
    path = place_to_write(path)
    _check_path(path)
    if neurons < 0:
        raise LensSkillsError(f"neurons= is how many get a page, 0 or more, not {neurons}.")
    sources = open_sources(source)
    shown, note = None, None
    if model is None and (examples is not None or prompt is not None):
        raise LensSkillsError("examples= are read with the model: give model= as well.")
    if model is not None:
        shown, note = _read(sources, model, examples, prompt, neurons)
    document = gather(sources, neurons=neurons, examples=shown)
    if note is not None:
        document = replace(document, missing=(*document.missing, note))
    return write_file(path, render(document).encode("utf-8"))


def needs_examples(source: Any, *, neurons: int = 100) -> bool:
    """Whether a report of it has neurons whose examples were not read before.

    Raises:
        LensSkillsError: No result in the source.
    """
    sources = open_sources(source)
    analyses = with_audits(sources)
    names = neurons_with_pages(analyses, sources, neurons)
    found = saved_examples(sources)
    return bool(names) and not (found is not None and set(names) <= set(found))


def _check_path(path: Path) -> None:
    """Before anything is computed, that the file can be written."""
    if path.is_dir():
        raise LensSkillsError(
            f"{path} is a folder. Name the file that is to be written, such as "
            f"{str(path / 'report.html')!r}."
        )
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise LensSkillsError(
            f"{path} cannot be written: no right to write in {there}. Choose another folder."
        )


@dataclass(frozen=True)
class _Asked:
    """Where neurons are read: as they were scored."""

    names: tuple[str, ...]
    site: str
    position: Any
    chat: Any


def _read(
    sources: Sources,
    model: Any,
    examples: Sequence[Example] | None,
    prompt: SoftPrompt | None,
    neurons: int,
) -> tuple[ActivatingExamples | None, Fact | None]:
    """The examples of the neurons that get a page, read now or before; or why there are none."""
    analyses = with_audits(sources)
    chat = analyses[0].about.get("chat", False) if analyses else False
    adapter = with_soft_prompt(model, prompt, chat)
    _check_model(analyses, adapter)
    names = neurons_with_pages(analyses, sources, neurons)
    if not names:
        return None, None
    asked = _as_scored(analyses, names)
    if isinstance(asked, str):
        return None, Fact("examples by activation", asked)
    if examples is None and (before := _kept(sources, asked, adapter)) is not None:
        return before, None
    examples = _examples(sources) if examples is None else examples
    if examples is None:
        raise LensSkillsError(
            "a model was given, and these results hold no examples to read it on. Give some: "
            "examples=task; or leave model= out, and they are shown as they are."
        )
    if isinstance(examples, Task):
        examples = few(examples, _MOST)
    found = activating_examples(
        model,
        examples,
        list(asked.names),
        at=asked.site,
        position=asked.position,
        chat=asked.chat,
        prompt=prompt,
        lenses=("logit", "jacobian"),
    )
    _keep(sources, found)
    return found, None


def _check_model(analyses: Sequence[Analysis], adapter: ModelAdapter) -> None:
    known = analyses[0].about if analyses else {}
    if known.get("model_fingerprint", adapter.fingerprint()) == adapter.fingerprint():
        return
    if known.get("prompt") is not None and adapter.soft is None:
        raise LensSkillsError(
            "the results were read with a soft prompt. Give it as prompt=, or leave model= out."
        )
    raise LensSkillsError(
        f"the results are of {known.get('model')}, and the model given is {adapter.name}, of other "
        "weights (or read with another soft prompt). Open the one they are of, or leave model= out."
    )


def _as_scored(analyses: Sequence[Analysis], names: tuple[str, ...]) -> _Asked | str:
    """Site, position and chat template of the results, or why neurons cannot be read there."""
    if not analyses:
        return _Asked(names, "mlp.hook_post", "last", False)
    one = analyses[0]
    position = "last" if "last" in one.positions or not one.positions else one.positions[-1]
    try:
        spec = parse_position(position)
    except LensSkillsError:
        return (
            f"neurons were scored at {position}, which a report cannot find again: "
            "activating_examples(model, examples, neurons, position=…) does, and takes its place "
            "in the folder of results"
        )
    if spec.ragged:
        return f"neurons were scored at {position}: several numbers an example cannot be ordered"
    return _Asked(names, one.site, position, one.about.get("chat", False))


def _kept(sources: Sources, asked: _Asked, adapter: ModelAdapter) -> ActivatingExamples | None:
    """Examples that were read before, of the same weights, place and neurons."""
    found = saved_examples(sources)
    if found is None or not set(asked.names) <= set(found):
        return None
    about = found.provenance
    same = (
        about.get("model_fingerprint") == adapter.fingerprint()
        and found.site == asked.site
        and found.position == parse_position(asked.position).labels[0]
    )
    return found if same else None


def _examples(sources: Sources) -> Task | None:
    """The explore split of a study, on which the neurons were chosen."""
    for study in sources.of(Study).values():
        return study.explore
    return None


def _keep(sources: Sources, found: ActivatingExamples) -> None:
    """Saves the examples beside the results; where that cannot be, the report has them alone."""
    if sources.folder is None:
        return
    try:
        found.save(sources.folder / EXAMPLES)
    except LensSkillsError:
        return
