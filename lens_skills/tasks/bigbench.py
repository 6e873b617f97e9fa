"""`bigbench`: a Task from BIG-bench's JSON files."""

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lens_skills.data import Example, Value
from lens_skills.errors import LensSkillsError
from lens_skills.tasks.arithmetic import parse, pose, varying
from lens_skills.tasks.task import Task

EXACT_MATCH = "exact_str_match"


class BigBenchRow(NamedTuple):
    """One example of a file, read and checked."""

    id: str
    subtask: str
    question: str
    prompt: str
    answer: str
    options: tuple[str, ...]
    listed: bool


def bigbench(
    path: str | Path,
    *,
    limit: int | None = None,
    choices: bool | None = None,
    seed: int = 0,
    name: str | None = None,
) -> Task:
    r"""A Task from a BIG-bench JSON task, or from a folder of sub-tasks put one after the other.

    The prompt is BIG-bench's zero-shot one: ``task_prefix``, ``example_input_prefix`` (by default
    "\nQ: "), the input, the choices each after ``choice_prefix`` ("\n  choice: "), then
    ``example_output_prefix`` ("\nA: "). The answer is the target (the first of several), else the
    option with the best score (the first of equals); the options are those of
    ``target_scores``. Of two options the other one is the foil.

    Covariates: ``subtask``; with options ``n_options``; with choices in the prompt also
    ``answer_position`` (from 0). Arithmetic sub-tasks get the foil, labels, covariates, group and
    kind of ``arithmetic``. Identical inputs of a sub-task share a group.

    Args:
        path: A JSON file; a folder with a ``task.json``, also in folders below it; or a folder
            of JSON files.
        limit: At most this many examples of each sub-task, drawn with the seed.
        choices: Whether the prompt lists the options, in a seeded order. None does as the file
            says (``append_choices_to_input``); where it says nothing, yes, as BIG-bench, except
            for tasks scored by exact match: an answer that stands in the prompt can be copied.
        seed: For the draw and the order of the choices.
        name: The task's name; None takes the file's or folder's.

    Raises:
        LensSkillsError: no such file, no JSON, or a key missing or wrong, with the file and the
            number of the example (from 0).

    >>> import tempfile
    >>> data = {"examples": [{"input": "Snow is", "target_scores": {"white": 1, "black": 0}}]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "colours.json")
    ...     _ = path.write_text(json.dumps(data))
    ...     task = bigbench(path, choices=False)
    >>> task[0].prompt, task[0].answer, task[0].foil
    ('\nQ: Snow is\nA: ', 'white', 'black')
    """
    if limit is not None and limit < 1:
        raise LensSkillsError(f"bigbench(limit={limit}): give at least 1, or None for all.")
    root = Path(path)
    files = _files(root)
    rows = [row for file in files for row in _rows(file, limit, choices, seed)]
    # Arithmetic of several operations is told apart by a label, so all files are looked at first.
    problems = [parse(row.question, row.answer) for row in rows]
    targets = varying([problem for problem in problems if problem])
    firsts: dict[tuple[str, str], str] = {}
    examples = []
    for row, problem in zip(rows, problems, strict=True):
        covariates: dict[str, Value] = {"subtask": row.subtask}
        if row.options:
            covariates["n_options"] = len(row.options)
        if row.listed:
            covariates["answer_position"] = row.options.index(row.answer)
        if problem:
            posed = pose(
                problem, id=row.id, prompt=row.prompt, targets=targets, options=row.options
            )
            examples.append(replace(posed, covariates={**posed.covariates, **covariates}))
        else:
            others = [option for option in row.options if option != row.answer]
            examples.append(
                Example(
                    id=row.id,
                    prompt=row.prompt,
                    answer=row.answer,
                    foil=others[0] if len(others) == 1 else None,
                    options=row.options,
                    covariates=covariates,
                    group=firsts.setdefault((row.subtask, row.question), row.id),
                )
            )
    return Task(name or (_name(files[0]) if len(files) == 1 else root.resolve().name), examples)


def _files(root: Path) -> list[Path]:
    """The task files, in the order of their names."""
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise LensSkillsError(f"no file or folder {str(root)!r}.")
    # A BIG-bench folder also holds results as JSON: where there are task.json files, only those.
    files = sorted(root.rglob("task.json")) or sorted(root.glob("*.json"))
    if not files:
        raise LensSkillsError(
            f"no JSON task in {str(root)!r}: neither task.json there or below, nor *.json there."
        )
    return files


def _name(file: Path) -> str:
    return file.resolve().parent.name if file.name == "task.json" else file.stem


def _rows(file: Path, limit: int | None, choices: bool | None, seed: int) -> list[BigBenchRow]:
    """The examples of one file, in its order."""
    data, subtask = _read(file), _name(file)
    picked = list(enumerate(data["examples"]))
    if limit is not None and limit < len(picked):
        draw = random.Random(f"{seed} {subtask}").sample(range(len(picked)), limit)
        picked = [picked[index] for index in sorted(draw)]
    listing = _lists(data) if choices is None else choices
    before = _text(data, "task_prefix", "") + _text(data, "example_input_prefix", "\nQ: ")
    between = _text(data, "choice_prefix", "\n  choice: ")
    after = _text(data, "example_output_prefix", "\nA: ")
    rows = []
    for number, entry in picked:
        try:
            question, answer, options = _parts(entry)
        except ValueError as error:
            raise LensSkillsError(f"{str(file)!r}, example {number}: {error}") from None
        listed = listing and bool(options)
        shown = ""
        if listed:
            shuffled = sorted(options)
            random.Random(f"{seed} {subtask} {number}").shuffle(shuffled)
            options = tuple(shuffled)
            shown = "".join(between + option for option in options)
        prompt = before + question + shown + after
        rows.append(
            BigBenchRow(f"{subtask}:{number}", subtask, question, prompt, answer, options, listed)
        )
    return rows


def _read(file: Path) -> dict[str, Any]:
    """The JSON object of a task file, with its list of examples."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise LensSkillsError(f"cannot read {str(file)!r} as JSON: {error}") from error
    examples = data.get("examples") if isinstance(data, dict) else None
    if not isinstance(examples, list) or not examples:
        raise LensSkillsError(
            f"{str(file)!r} is no BIG-bench JSON task: it is to hold an object with a non-empty "
            f"list 'examples', and holds {sorted(data) if isinstance(data, dict) else data!r:.40}."
        )
    return data


def _lists(data: Mapping[str, Any]) -> bool:
    """Whether the prompt lists the options, going by the file."""
    said = data.get("append_choices_to_input")
    # Older files call the preferred metric a score.
    preferred = data.get("preferred_score", data.get("preferred_metric"))
    return preferred != EXACT_MATCH if said is None else bool(said)


def _text(data: Mapping[str, Any], key: str, default: str) -> str:
    value = data.get(key)
    return default if value is None else str(value)


def _parts(entry: Any) -> tuple[str, str, tuple[str, ...]]:
    """Question, answer and options of one example; a ValueError says what is wrong with it."""
    if not isinstance(entry, dict) or not isinstance(entry.get("input"), str):
        raise ValueError("it needs a text 'input'.")
    scores: dict[str, float] | None = entry.get("target_scores")
    target = entry.get("target")
    if scores is not None and not (
        isinstance(scores, dict)
        and scores
        and all(isinstance(score, int | float) for score in scores.values())
    ):
        raise ValueError(f"'target_scores' is to map each option to a number, not {scores!r}.")
    if isinstance(target, list):
        target = target[0] if target else None
    if target is None and scores is not None:
        target = max(scores, key=lambda option: scores[option])
    if not isinstance(target, str) or not target:
        raise ValueError(
            f"it needs a text or texts 'target', or 'target_scores'; it has {sorted(entry)}"
            + ("." if target is None else f" with the target {target!r}.")
        )
    if scores is not None and target not in scores:
        raise ValueError(f"the target {target!r} is not one of the options {list(scores)}.")
    return entry["input"], target, tuple(scores or ())
