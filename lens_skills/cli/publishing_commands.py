"""`lens-skills publish` and `check`: a run's neurons as a file for others, and theirs for you."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lens_skills.cli.console import call, is_run, open_model, open_run_model
from lens_skills.cli.feature_folders import featured
from lens_skills.cli.shared_options import Features, Metric, ResultsFolder
from lens_skills.errors import LensSkillsError, did_you_mean

DEPTH = 2  # a demo's folder holds studies in folders of their own


def publish(
    folder: ResultsFolder,
    licence: Annotated[str, typer.Option(help="Under which others may use it: CC-BY-4.0, …")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder to write (default: neuron-set, in the run or beside the study)."
        ),
    ] = None,
    metric: Metric = None,
    citation: Annotated[str, typer.Option(help="How to cite it.")] = "",
    name: Annotated[
        str, typer.Option(help="What the set is called (default: the task, or the study's folder).")
    ] = "",
    push: Annotated[
        str | None, typer.Option(help="Upload it to this repository of the hub: user/name.")
    ] = None,
) -> None:
    """Write the neurons that were confirmed, with all evidence, as a NeuronSet others can check.

    Of a run; of a saved study; of every study in a folder, as `demo` writes it, a set each.
    """
    from lens_skills.publishing.set_contents import check_words

    about = {"licence": licence, "citation": citation}
    check_words(name=name, **about)
    if (folder / "run.json").exists() or not (studies := _studies_in(folder)):
        _publish_run(folder, out, metric, name, push, about)
    else:
        _publish_studies(folder, studies, out, metric, name, push, about)


def _publish_run(
    folder: Path,
    out: Path | None,
    metric: str | None,
    name: str,
    push: str | None,
    about: Mapping[str, Any],
) -> None:
    is_run(folder)
    from lens_skills.cli.runs import Run, main_metric
    from lens_skills.interventions import Verdict
    from lens_skills.publishing import NeuronSet

    opened = Run.load(folder)
    chosen = main_metric(opened.scores().metrics, metric)
    selection, tried = opened.selected(chosen), opened.path("verdict", chosen)
    verdict = Verdict.load(tried) if tried.exists() else None
    model, task = open_run_model(opened), opened.task()
    made = NeuronSet.of(selection, model, task, name=name, verdict=verdict, **about)
    _keep("neuron_set", made, out or folder / "neuron-set", push)
    if verdict is None:
        call().note(f"nothing is known of effects: `lens-skills verify {folder}` measures them")


def _publish_studies(
    folder: Path,
    places: list[Path],
    out: Path | None,
    metric: str | None,
    name: str,
    push: str | None,
    about: Mapping[str, Any],
) -> None:
    from lens_skills.publishing import NeuronSet
    from lens_skills.results import file_name
    from lens_skills.studies import Study

    studies = {place: Study.load(place) for place in places}
    some = {place: one for place, one in studies.items() if len(one.selection)}
    without = [_part(place, folder) for place in places if place not in some]
    if not some:
        raise LensSkillsError(
            f"nothing to publish in {folder}: nothing was confirmed in {', '.join(without)}, and "
            "that is the result."
        )
    if len(some) > 1 and (name or push):
        parts = ", ".join(_part(place, folder) for place in some)
        first = next(iter(some))
        raise LensSkillsError(
            f"{'--name' if name else '--push'} is of one set, and {folder} holds {len(some)} "
            f"studies that found neurons: {parts}. Name one: lens-skills publish {first.parent}."
        )
    for part in without:
        call().note(f"nothing was confirmed in {part}: there is no set of it")
    models: dict[str, Any] = {}
    for place, found in some.items():
        if metric not in (None, found.metric):
            near = did_you_mean(str(metric), [found.metric])
            raise LensSkillsError(f"{place} is a study of {found.metric!r}, not {metric!r}.{near}")
        opening, task = _asked(place, found)
        model = models.setdefault(str(opening), None) or open_model(**opening)
        models[str(opening)] = model
        part = file_name(_part(place, folder))
        made = NeuronSet.of(found, model, task, name=name or part, **about)
        beside = "neuron-set" if place.name == "study" else f"{place.name}-neuron-set"
        target = place.with_name(beside) if out is None else out / part if len(some) > 1 else out
        _keep("neuron_set" if len(some) == 1 else part, made, target, push)
        if found.verdict is None:
            call().note(f"{made.name}: nothing is known of effects: {found.no_verdict}")


def _keep(shown_as: str, made: Any, place: Path, push: str | None) -> None:
    told = call()
    told.show(shown_as, made)
    told.wrote(made.save(place))
    if push is not None:
        told.wrote(made.push(push))


def _studies_in(folder: Path) -> list[Path]:
    """The saved studies in a folder, itself one or to a depth."""
    from lens_skills.results import is_saved, kind_of

    def inside(place: Path, depth: int) -> list[Path]:
        if is_saved(place):
            return [place] if kind_of(place) == "Study" else []
        if not depth or not place.is_dir():
            return []
        found = sorted(one for one in place.iterdir() if one.is_dir() and one.name[0] != ".")
        return [path for one in found for path in inside(one, depth - 1)]

    try:
        return inside(folder, DEPTH)
    except OSError as error:
        raise LensSkillsError(f"{folder} cannot be read: {error}.") from error


def _part(place: Path, folder: Path) -> str:
    """What a study in a folder is called: ``agreement`` of ``agreement/study``."""
    home = place.parent if place.name == "study" else place
    if home == folder or folder == place:
        return home.resolve().name
    return home.relative_to(folder).as_posix()


def _asked(place: Path, found: Any) -> tuple[dict[str, Any], Any]:
    """How the model of a study is opened, and its whole task, where a command made it."""
    from lens_skills.results import read_asked
    from lens_skills.tasks import open_task

    about, asked = found.scores.provenance, read_asked(place) or {}
    opening = {
        "model": asked.get("--model") or about["model"],
        "implementation": asked.get("--implementation") or about["implementation"],
        "dtype": str(about["dtype"]).removeprefix("torch."),
    }
    return opening, open_task(asked["task"]) if "task" in asked else None


def check(
    source: Annotated[
        str, typer.Argument(metavar="FOLDER|hub:user/name", help="A published NeuronSet.")
    ],
    features: Features = None,
) -> None:
    """Does --model hold the weights that a published NeuronSet is of? If not, what differs."""
    from lens_skills.publishing import NeuronSet

    told = call()
    theirs = NeuronSet.load(source)
    told.show("neuron_set", theirs)
    told.show("check", theirs.check(featured(open_model(), features or ())))
