"""The shell's command that prints what was found before: nothing is computed, no model opened."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from lens_skills.cli.console import call
from lens_skills.errors import LensSkillsError, did_you_mean

# The order in which a run comes by its results: how the names of their folders begin.
WALK = (
    "study", "preflight", "explore", "confirm", "selection", "verdict", "sweep", "dose", "audit",
    "explanations", "activating", "shortcuts", "regulators", "circuit", "methods",
)  # fmt: skip
_PARTS = ("scores", "confirm_scores", "selection", "verdict")  # of a study
_DEPTH = 2  # a demo's folder holds studies in folders of their own


def show(
    folder: Annotated[
        Path,
        typer.Argument(help="A run, a demo's folder, or a saved result.", metavar="RUN"),
    ],
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Show this one: explore, verdict, … as it is called in RUN (may repeat)."
        ),
    ] = None,
) -> None:
    """Print the cards of what is saved in RUN again, in the order of its steps.

    What cannot be read is named, with the reason, and the rest is shown.
    """
    told, places = call(), _saved_in(folder)
    is_run = (folder / "run.json").exists()
    broken = _broken_run(folder) if is_run and not only else {}
    wanted = _named(places, only) if only else [name for name in places if name not in broken]
    shown: dict[str, Any] = {}
    on_a_card: set[str] = set()
    left_out = []
    for name in wanted:
        try:
            shown[name], card = _read(places[name])
        except LensSkillsError as error:
            broken[name] = str(error)
            continue
        if card in on_a_card and not only and not told.as_json:
            left_out.append(name)
            continue
        on_a_card |= _cards_inside(shown[name])
        if not told.as_json:
            print(f"━━ {name} ━━", flush=True)
        told.show(name, shown[name])
        if not told.as_json:
            print(flush=True)
    said = [f"{name} is not shown: {why}" for name, why in broken.items()]
    if not shown:
        raise LensSkillsError(" ".join(said) or _nothing_in(folder))
    told.values["not_shown"] = broken
    for text in said:
        told.note(text)
    if left_out:
        told.note(f"{', '.join(left_out)}: on the study's card; --only NAME shows one by itself")
    if is_run and not only and "run.json" not in broken:
        told.then(_next_of(folder, shown))


def _saved_in(folder: Path) -> dict[str, Path]:
    """What is saved in a folder, by the names of the folders in it, in the order of `WALK`."""
    if not folder.is_dir():
        beside = []
        with suppress(OSError):
            beside = [path.name for path in folder.parent.iterdir() if path.is_dir()]
        raise LensSkillsError(
            f"{folder} {'is a file' if folder.exists() else 'does not exist'}."
            f"{did_you_mean(folder.name, beside)} Name the folder of a run or of a saved result."
        )
    found = [path for path in _folders(folder, _DEPTH) if _holds_a_result(path)]
    if folder in found:
        return {folder.name or str(folder): folder}
    return {path.relative_to(folder).as_posix(): path for path in sorted(found, key=_rank)}


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    """The folder, and the visible ones in it, to a depth."""
    yield folder
    if depth:
        try:
            inside = sorted(path for path in folder.iterdir() if path.is_dir())
        except OSError:  # no right to look into it
            return
        for path in inside:
            if not path.name.startswith("."):
                yield from _folders(path, depth - 1)


def _holds_a_result(folder: Path) -> bool:
    """Whether a result is saved in it, even an older, a damaged or an unfinished one."""
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError:
        return True  # that it cannot be read is for the reader to say
    stems = {name.removesuffix(".safetensors") for name in names if name.endswith(".safetensors")}
    plain = {name.removesuffix(".json") for name in names if name.endswith(".json")}
    return bool(stems & plain) or bool(
        {"result.json", "result.safetensors", "manifest.json"} & names
    )


def _rank(path: Path) -> tuple[str, int, str]:
    place = [n for n, start in enumerate(WALK) if path.name.split("-")[0] == start]
    return str(path.parent), place[0] if place else len(WALK), path.name


def _named(places: Mapping[str, Path], only: Sequence[str]) -> list[str]:
    """Those of the names that are asked for, whole or by their beginning (``verdict``)."""
    chosen = []
    for asked in only:
        found = [name for name in places if asked in (name, *name.split("/"), name.split("-")[0])]
        if not found:
            raise LensSkillsError(
                f"nothing called {asked!r} is saved here.{did_you_mean(asked, places)} There are: "
                f"{', '.join(places) or 'none'}."
            )
        chosen += found
    return list(dict.fromkeys(chosen))


def _read(place: Path) -> tuple[Any, str]:
    """A saved result and its card."""
    from lens_skills.results import undamaged
    from lens_skills.saved import load

    with undamaged(place):
        result = load(place)
        return result, repr(result)


def _cards_inside(result: Any) -> set[str]:
    """The cards of what a study holds: shown with it, they need no showing by themselves."""
    parts = (getattr(result, name, None) for name in _PARTS)
    return (
        {repr(part) for part in parts if part is not None} if hasattr(result, _PARTS[0]) else set()
    )


def _broken_run(folder: Path) -> dict[str, str]:
    """Why a run cannot be gone on from, where it cannot: by what is damaged or missing."""
    from lens_skills.cli.runs import Run

    try:
        run = Run.load(folder)
    except LensSkillsError as error:
        return {"run.json": str(error)}
    if (folder / "explore").exists():
        return {}
    try:
        run.scores()
    except LensSkillsError as error:
        unfinished = (folder / "explore-checkpoint").exists()
        return {"explore-checkpoint" if unfinished else "explore": str(error)}
    return {}


def _nothing_in(folder: Path) -> str:
    from lens_skills.results import kind_of

    try:
        kind_of(folder)
    except LensSkillsError as error:
        return str(error)
    return f"nothing is saved in {folder}."


def _next_of(folder: Path, shown: Mapping[str, Any]) -> str:
    """The first step of the walk that a run has not yet come to."""
    there = {name.split("-")[0] for name in shown}
    if "explore" not in there:
        return ""
    steps = {"selection": "select", "verdict": "verify", "explanations": "explain"}
    steps |= {"circuit": "circuit"}
    chosen = [result for name, result in shown.items() if name.split("-")[0] == "selection"]
    if chosen and not any(len(selection) for selection in chosen):
        steps.pop("verdict")  # nothing is confirmed
    missing = [command for name, command in steps.items() if name not in there]
    missing += [] if (folder / "figures").exists() else ["figures"]
    return f"lens-skills {(missing or ['report'])[0]} {folder}"
