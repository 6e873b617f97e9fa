"""What a report is made from: results in memory or on disk, and the commands that made them."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens_skills.errors import LensSkillsError
from lens_skills.file_names import place_to_read
from lens_skills.models import SoftPrompt
from lens_skills.reporting.document import Fact
from lens_skills.results import Result, file_name, is_saved, read_asked
from lens_skills.saved import load
from lens_skills.scoring import MetricScores
from lens_skills.studies import Study

_RUN = "run.json"
_DEPTH = 3  # folders below the one that was named
_MOST = 400  # results that are looked for

# By what the folder of a step begins with: its command, and how that is told what it is about.
_COMMANDS = {
    "selection": ("select", "--metric"),
    "verdict": ("verify", "--metric"),
    "explanations": ("explain", "--metric"),
    "methods": ("compare-methods", "--metric"),
    "circuit": ("circuit", ""),
    "audit": ("audit", ""),
    "shortcuts": ("shortcuts", "--metric"),
    "regulators": ("regulators", "--metric"),
    "dose": ("dose", ""),
    "sweep": ("sweep", "--causal-metric"),
}


@dataclass(frozen=True, eq=False)
class Sources:
    """Results by name, and what is known of how they came to be.

    Attributes:
        results: By the folder of each below the one that was opened, or as they were named.
        damaged: Results that could not be read, and why.
        commands: That made them, in their order.
        folder: The one that was opened; None for results in memory, and for one saved result.
        is_run: Whether that is the folder of a run of the shell.
    """

    results: Mapping[str, Result]
    damaged: tuple[Fact, ...] = ()
    commands: tuple[str, ...] = ()
    folder: Path | None = None
    is_run: bool = False

    def of(self, *kinds: type) -> dict[str, Any]:
        """The results of some kinds, by name."""
        return {name: one for name, one in self.results.items() if isinstance(one, kinds)}


def open_sources(source: Any) -> Sources:
    """The results that a path names, or that were handed over.

    Raises:
        LensSkillsError: No such folder, no result in it, or something that is no result.
    """
    if isinstance(source, str | Path):
        return _opened(Path(source))
    if isinstance(source, MetricScores):
        source = source.scores
    if isinstance(source, Result):
        return Sources({type(source).__name__: source})
    if isinstance(source, Mapping):
        given = {str(name): part for name, part in source.items()}
    elif isinstance(source, Sequence):
        given = {f"{n}-{type(part).__name__}": part for n, part in enumerate(source)}
    else:
        raise LensSkillsError(
            f"a report is made of results, not of a {type(source).__name__}. Give a result, a dict "
            "of them by name, or the folder they are saved in."
        )
    given = {name: p.scores if isinstance(p, MetricScores) else p for name, p in given.items()}
    for name, part in given.items():
        if not isinstance(part, Result):
            raise LensSkillsError(
                f"{name!r} is a {type(part).__name__}, no result. A report is made of what the "
                "verbs hand back: study, score, select, verify, explain, circuit, …"
            )
    if not given:
        raise LensSkillsError("no result to report: the collection is empty.")
    return Sources(given)


def _opened(folder: Path) -> Sources:
    if is_saved(place_to_read(folder)):
        return Sources({folder.name: load(folder)})
    if not folder.is_dir():
        load(folder)  # says what is there instead
    try:
        places = list(_saved_in(folder))
    except OSError as error:
        raise LensSkillsError(f"{folder} cannot be read: {error}.") from error
    results: dict[str, Result] = {}
    damaged: list[Fact] = []
    for place in places[:_MOST]:
        name = place.relative_to(folder).as_posix()
        try:
            found = load(place)
        except LensSkillsError as error:
            damaged.append(Fact(name, str(error)))
            continue
        if not isinstance(found, SoftPrompt):
            results[name] = found
    if len(places) > _MOST:
        damaged.append(Fact("further results", f"{len(places) - _MOST} are not shown"))
    if not results:
        why = f" ({damaged[0].name}: {damaged[0].value})" if damaged else ""
        raise LensSkillsError(
            f"no result in {folder} that can be read{why}. A report is made of a run's folder "
            "(`lens-skills study TASK --out FOLDER` makes one), or of any folder of saved results."
        )
    is_run = (folder / _RUN).exists()
    damaged += _broken_off(folder)
    commands = tuple(_commands(folder, results, damaged))
    return Sources(results, tuple(damaged), commands, folder, is_run)


def _saved_in(folder: Path, depth: int = 0) -> Iterator[Path]:
    """The saved results below a folder, in order; hidden folders are work in progress."""
    for place in sorted(folder.iterdir()):
        if place.name.startswith(".") or place.is_symlink() or not place.is_dir():
            continue
        if is_saved(place):
            yield place
        elif depth < _DEPTH:
            try:
                yield from list(_saved_in(place, depth + 1))
            except PermissionError:
                continue


def _broken_off(folder: Path) -> list[Fact]:
    """Passes that were interrupted, whose checkpoint is still there."""
    places = sorted(folder.glob("*checkpoint*")) if (folder / _RUN).exists() else []
    return [
        Fact(
            place.name.removesuffix("-checkpoint").replace("-checkpoint-", " of "),
            "this step was interrupted; the command that began it goes on where it stopped",
        )
        for place in places
        if place.is_dir()
    ]


def _commands(folder: Path, results: Mapping[str, Result], damaged: list[Fact]) -> Iterator[str]:
    """As they were typed, or as what was asked says; none for results made in Python."""
    runs = [folder] if (folder / _RUN).exists() else []
    runs += sorted(path.parent for path in folder.glob(f"*/{_RUN}"))
    for run in runs:
        if first := str(_json(run / _RUN).get("command", "")):
            yield first
        yield from _steps(run, results, damaged)
    of_demo = all((folder / name / "study").is_dir() for name in ("agreement", "arithmetic"))
    asked = _asked(folder / "agreement" / "study", damaged) if of_demo else None
    if asked is not None:
        yield shlex.join(["lens-skills", "demo", "--out", str(folder), *_options(asked)])


def _steps(run: Path, results: Mapping[str, Result], damaged: list[Fact]) -> Iterator[str]:
    """The commands of a run's steps, in the order in which they were done."""
    metrics = {
        file_name(name): name for one in results.values() for name in getattr(one, "metrics", ())
    }
    studied = {file_name(one.metric) for one in results.values() if isinstance(one, Study)}
    records = []
    for place in run.glob(".*-asked.json"):
        name = place.name.removeprefix(".").removesuffix("-asked.json")
        kind, _, rest = name.partition("-")
        of_study = kind in ("selection", "verdict") and rest in studied
        if kind not in _COMMANDS or of_study:
            continue
        if (asked := _asked(run / name, damaged)) is not None:
            records.append((place.stat().st_mtime_ns, name, kind, rest, asked))
    for _, _, kind, rest, asked in sorted(records, key=lambda record: record[:2]):
        verb, option = _COMMANDS[kind]
        about = [option, metrics.get(rest, rest)] if option and rest else []
        if kind == "circuit" and rest not in ("", "answer"):
            about = [part for unit in rest.split("_") for part in ("--neuron", unit)]
        yield shlex.join(["lens-skills", verb, str(run), *about, *_options(asked)])


def _asked(place: Path, damaged: list[Fact]) -> Mapping[str, Any] | None:
    """What was asked for a result; None where that cannot be read, which is then a fact."""
    try:
        return read_asked(place) or {}
    except LensSkillsError as error:
        damaged.append(Fact(f"the command of {place.name}", str(error)))
        return None


def _options(asked: Mapping[str, Any]) -> list[str]:
    """Options as they are typed, of those that were given."""
    typed: list[str] = []
    for name, value in asked.items():
        if not name.startswith("--") or value is None or value is False or name == "--metric":
            continue
        values = value if isinstance(value, list) else [value]
        for one in values:
            typed += [name] if one is True else [name, str(one)]
    return typed


def _json(path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return plain if isinstance(plain, dict) else {}
