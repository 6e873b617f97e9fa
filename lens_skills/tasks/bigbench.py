"""`bigbench`: a Task from BIG-bench's JSON files."""

import random
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lens_skills.data import Example, Value
from lens_skills.errors import LensSkillsError
from lens_skills.file_names import place_to_read
from lens_skills.tasks.arithmetic import parse, pose, varying
from lens_skills.tasks.table_files import parse_json, read_text
from lens_skills.tasks.task import Task

EXACT_MATCH = "exact_str_match"
MOST_OPTIONS = 12
"""Beyond this an answer is rather a name than a class."""

# Read here, or about other things than a zero-shot prompt and its answer.
_FILE_KEYS = {
    "append_choices_to_input", "canary", "choice_prefix", "description", "example_input_prefix",
    "example_output_prefix", "examples", "few_shot_example_separator", "keywords", "metrics",
    "name", "output_regex", "preferred_metric", "preferred_score", "stop_string", "task_prefix",
}  # fmt: skip
_EXAMPLE_KEYS = {"comment", "context", "input", "target", "target_scores"}


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
    join: str | None = None,
    name: str | None = None,
) -> Task:
    r"""A Task from a BIG-bench JSON task, or from a folder of sub-tasks put one after the other.

    The prompt is BIG-bench's zero-shot one: ``task_prefix``, ``example_input_prefix`` (by default
    "\nQ: "), the ``context`` if there is one and a line end, the input, the choices each after
    ``choice_prefix`` ("\n  choice: "), then ``example_output_prefix`` ("\nA: "). The answer is the
    target (the first of several, which a warning counts), else the option with the best score,
    which is to be above 0 and that of one option alone. The options are those of
    ``target_scores``. Of two options the other one is the foil.

    Label, where the same 2 to 12 options stand in every example: ``answer``, the right one. With
    choices in the prompt also ``answer_position``, the place of the right one (from 0). Covariates:
    ``subtask``; with options ``n_options``. Arithmetic sub-tasks get the foil, labels, covariates,
    group and kind of ``arithmetic``, and ``answer_position`` as a covariate. Identical inputs of a
    sub-task share a group. A warning names the keys that are not used.

    Args:
        path: A JSON file; a folder with a ``task.json``, also in folders below it; or a folder
            of JSON files.
        limit: At most this many examples of each sub-task, drawn with the seed.
        choices: Whether the prompt lists the options, in a seeded order. None does as the file
            says (``append_choices_to_input``); where it says nothing, yes, as BIG-bench, except
            for tasks scored by exact match: an answer that stands in the prompt can be copied.
        seed: For the draw and the order of the choices.
        join: What stands between prompt and answer: prompts then lose white space at their end,
            answers and options begin with this. For models that join a space to the word after
            it, " ".
        name: The task's name; None takes the file's or folder's.

    Raises:
        LensSkillsError: no such file, no JSON, a key missing or wrong, or no one right answer,
            with the file and the number of the example (from 0).

    >>> import json
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
    sets = {frozenset(row.options) for row in rows}
    same = len(sets) == 1 and 2 <= len(rows[0].options) <= MOST_OPTIONS
    examples = []
    for row, problem in zip(rows, problems, strict=True):
        labels: dict[str, Value] = {"answer": row.answer} if same else {}
        covariates: dict[str, Value] = {"subtask": row.subtask}
        if row.options:
            covariates["n_options"] = len(row.options)
        if row.listed:
            place = row.options.index(row.answer)
            (covariates if problem else labels)["answer_position"] = place
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
                    labels=labels,
                    covariates=covariates,
                    group=firsts.setdefault((row.subtask, row.question), row.id),
                )
            )
    if join is not None:
        examples = [_joined(example, join) for example in examples]
    return Task(name or (_name(files[0]) if len(files) == 1 else root.resolve().name), examples)


def _joined(example: Example, join: str) -> Example:
    """The example with one text between its prompt and each continuation."""
    if not isinstance(join, str):
        raise LensSkillsError(f"join={join!r}: give the text between prompt and answer, as ' '.")
    return replace(
        example,
        prompt=example.prompt.rstrip(),
        answer=join + (example.answer or "").lstrip(),
        foil=None if example.foil is None else join + example.foil.lstrip(),
        options=tuple(join + option.lstrip() for option in example.options),
    )


def _files(root: Path) -> list[Path]:
    """The task files, in the order of their names."""
    if place_to_read(root).is_file():
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
    listing = _lists(data, file) if choices is None else choices
    before = _text(data, file, "task_prefix", "") + _text(
        data, file, "example_input_prefix", "\nQ: "
    )
    between = _text(data, file, "choice_prefix", "\n  choice: ")
    after = _text(data, file, "example_output_prefix", "\nA: ")
    rows = []
    several, unused = 0, set(data) - _FILE_KEYS
    for number, entry in picked:
        try:
            question, answer, options = _parts(entry)
        except ValueError as error:
            raise LensSkillsError(f"{str(file)!r}, example {number}: {error}") from None
        several += isinstance(entry.get("target"), list) and len(entry["target"]) > 1
        unused |= {f"examples[{key}]" for key in set(entry) - _EXAMPLE_KEYS}
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
    if unused:
        warnings.warn(
            f"{str(file)!r}: not used are {', '.join(sorted(map(str, unused)))}. Where one is part "
            "of the question, write it into 'input' or 'context'.",
            RuntimeWarning,
            stacklevel=4,
        )
    if several:
        warnings.warn(
            f"{str(file)!r}: {several} of {len(rows)} examples have several right targets. The "
            "first is the answer; 'correct' takes no other.",
            RuntimeWarning,
            stacklevel=4,
        )
    return rows


def _read(file: Path) -> dict[str, Any]:
    """The JSON object of a task file, with its list of examples."""
    text = read_text(file)
    try:
        data = parse_json(text)
    except ValueError as error:
        raise LensSkillsError(f"cannot read {str(file)!r} as JSON: {error}.") from error
    examples = data.get("examples") if isinstance(data, dict) else None
    if not isinstance(examples, list) or not examples:
        raise LensSkillsError(
            f"{str(file)!r} is no BIG-bench JSON task: it is to hold an object with a non-empty "
            f"list 'examples', and holds {sorted(data) if isinstance(data, dict) else data!r:.40}. "
            "A table of other columns is opened by tasks.table(path, prompt=…)."
        )
    return data


def _lists(data: Mapping[str, Any], file: Path) -> bool:
    """Whether the prompt lists the options, going by the file."""
    said = data.get("append_choices_to_input")
    if said is not None and not isinstance(said, bool):
        raise LensSkillsError(
            f"{str(file)!r}: 'append_choices_to_input' is {said!r:.40}, not true or false."
        )
    if said is not None:
        return said
    # Older files call the preferred metric a score; one or several may be named.
    for key in ("preferred_score", "preferred_metric", "metrics"):
        named = data.get(key)
        names = [named] if isinstance(named, str) else named or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise LensSkillsError(f"{str(file)!r}: {key!r} is {named!r:.40}, no name or names.")
        if names:
            return any(name != EXACT_MATCH for name in names)
    return True


def _text(data: Mapping[str, Any], file: Path, key: str, default: str) -> str:
    value = data.get(key)
    if value is not None and not isinstance(value, str):
        raise LensSkillsError(f"{str(file)!r}: {key!r} is {value!r:.40}, no text.")
    return default if value is None else value


def _parts(entry: Any) -> tuple[str, str, tuple[str, ...]]:
    """Question, answer and options of one example; a ValueError says what is wrong with it."""
    if not isinstance(entry, dict) or not isinstance(entry.get("input"), str):
        raise ValueError("it needs a text 'input'.")
    context = entry.get("context")
    if context is not None and not isinstance(context, str):
        raise ValueError(f"its 'context' is {context!r:.40}, no text.")
    question = f"{context}\n{entry['input']}" if context else entry["input"]
    scores: dict[str, float] | None = entry.get("target_scores")
    target = entry.get("target")
    if scores is not None and not (
        isinstance(scores, dict)
        and scores
        and all(isinstance(score, int | float) for score in scores.values())
    ):
        raise ValueError(f"'target_scores' is to map each option to a number, not {scores!r:.80}.")
    best = _best(scores)
    if isinstance(target, list):
        target = target[0] if target else None
    if target is None and scores is not None:
        if len(best) != 1:
            raise ValueError(
                f"it has no one right answer: the scores are {scores!r:.120}. Give one option the "
                "highest, above 0, or name the answer in 'target'."
            )
        target = best[0]
    if not isinstance(target, str) or not target:
        raise ValueError(
            f"it needs a text or texts 'target', or 'target_scores'; it has {sorted(entry)}"
            + ("." if target is None else f" with the target {target!r:.80}.")
        )
    if scores is not None and target not in scores:
        raise ValueError(f"the target {target!r} is not one of the options {list(scores)}.")
    if scores is not None and target not in best:
        raise ValueError(f"the target {target!r} has not the best of the scores {scores!r:.120}.")
    if len(best) > 1:
        raise ValueError(
            f"the options {best} are all right, so none can be the wrong one that {target!r} is "
            "measured against. Leave one of them."
        )
    return question, target, tuple(scores or ())


def _best(scores: Mapping[str, float] | None) -> list[str]:
    """The options with the highest score above 0; none where a score is no number."""
    if not scores or any(score != score for score in scores.values()):
        return []
    most = max(scores.values())
    return [option for option, score in scores.items() if score == most > 0]
