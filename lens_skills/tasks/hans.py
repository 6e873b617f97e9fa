"""`hans`: the evaluation set of HANS, or a file of the same columns, as a Task."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lens_skills.data import in_turns
from lens_skills.errors import LensSkillsError
from lens_skills.tasks.nli import (
    ANSWERS,
    HEURISTICS,
    WORDING,
    SentencePair,
    demonstrate,
    pose_pairs,
)
from lens_skills.tasks.table_files import read_text
from lens_skills.tasks.task import Task, by_digest

COLUMNS = ("gold_label", "sentence1", "sentence2", "pairID", "heuristic", "subcase", "template")
"""The columns that are read; a file may have more."""

GOLD = {"entailment": True, "non-entailment": False}


def hans(
    path: str | Path,
    *,
    n: int | None = None,
    seed: int = 0,
    wording: str = WORDING,
    answers: tuple[str, str] = ANSWERS,
    shots: int = 0,
    group: str = "subcase",
) -> Task:
    r"""A Task of premises and hypotheses that three shallow rules all call entailed.

    HANS crosses the rule (lexical overlap, subsequence, constituent) with what is true, so that a
    neuron of the rule and one of the answer can be told apart. Columns: see `pose_pairs`, with the
    covariate ``template``. The prompt is ``wording``; the answer follows as " Yes" or " No".

    The group is the sub-case, because it alone decides both the rule and the answer: examples, and
    even templates, of one sub-case repeat one observation of either. Random labels per sub-case
    were called significant in every run where examples traded them freely. The price is few
    groups (30), so few that small splits cannot reach a small p.

    Args:
        path: The tab-separated file of the authors (``heuristics_evaluation_set.txt``), or JSON
            Lines with the same names.
        n: At most so many examples, drawn evenly from the sub-cases; None for all.
        seed: Of that draw and of the demonstrations.
        wording: The prompt: see `pose_pairs`.
        answers: What is said where the hypothesis follows, and where it does not.
        shots: Answered demonstrations before every question, drawn with balanced answers and from
            as many sub-cases as can be; those rows are left out of the task.
        group: ``"subcase"``, or ``"template"`` for finer groups: more of them, but a test then
            counts what one sub-case says several times.

    Raises:
        LensSkillsError: No such file, a column missing, or a malformed row, with its line number.

    Source: McCoy, Pavlick and Linzen 2019 (arXiv 1902.01007).
    """
    pairs = list(_pairs(Path(path)))
    shown = demonstrate(pairs, shots, seed=seed)
    taken = {pair.id for pair in shown}
    kept = _evenly([pair for pair in pairs if pair.id not in taken], n, seed)
    return pose_pairs(
        "hans", kept, demonstrations=shown, wording=wording, answers=answers, group=group
    )


def is_hans(path: Path) -> bool:
    """Whether a text file begins as HANS's does."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = file.readline(10_000)
    except (OSError, UnicodeDecodeError):
        return False
    return {"gold_label", "sentence1", "sentence2"} <= set(first.rstrip("\r\n").split("\t"))


def _pairs(path: Path) -> Iterator[SentencePair]:
    """The rows, checked one by one."""
    seen: dict[str, int] = {}
    number = 0
    for number, row in _rows(path):
        pair = _pair(row, f"{str(path)!r}, line {number}")
        if pair.id in seen:
            raise LensSkillsError(
                f"{str(path)!r}, line {number}: the pairID {pair.id!r} was used in line "
                f"{seen[pair.id]}. Give each row its own."
            )
        seen[pair.id] = number
        yield pair
    if not seen:
        raise LensSkillsError(f"{str(path)!r} holds no examples. Give at least one row.")


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Line number and columns of each row."""
    lines = re.split(r"\r\n?|\n", read_text(path))
    filled = ((at, line) for at, line in enumerate(lines, 1) if line.strip())
    if path.suffix == ".jsonl":
        for number, line in filled:
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                row = error
            if not isinstance(row, dict):
                raise LensSkillsError(
                    f"{str(path)!r}, line {number} is no JSON object: {line[:60]!r}."
                )
            yield number, row
        return
    _, header = next(filled, (1, ""))
    names = header.split("\t")
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise LensSkillsError(
            f"{str(path)!r}, line 1: the columns {', '.join(missing)} are missing. The file holds "
            f"{len(names)} tab-separated columns: {', '.join(names)[:200]}."
        )
    for number, line in filled:
        cells = line.split("\t")
        if len(cells) != len(names):
            raise LensSkillsError(
                f"{str(path)!r}, line {number}: {len(cells)} tab-separated cells, where the header "
                f"has {len(names)} columns: {line[:60]!r}."
            )
        yield number, dict(zip(names, cells, strict=True))


def _pair(row: Mapping[str, Any], where: str) -> SentencePair:
    texts = {name: str(row.get(name) or "").strip() for name in COLUMNS}
    empty = [name for name in COLUMNS if not texts[name]]
    if empty:
        raise LensSkillsError(f"{where}: {empty[0]} is missing. Fill it or drop the row.")
    for name, known in (("gold_label", tuple(GOLD)), ("heuristic", HEURISTICS)):
        if texts[name] not in known:
            raise LensSkillsError(
                f"{where}: {name} is {texts[name]!r}, not one of {', '.join(known)}."
            )
    return SentencePair(
        id=texts["pairID"],
        premise=_written(texts["sentence1"]),
        hypothesis=_written(texts["sentence2"]),
        entailed=GOLD[texts["gold_label"]],
        heuristic=texts["heuristic"],
        subcase=texts["subcase"],
        columns={"template": texts["template"]},
    )


def _written(sentence: str) -> str:
    """A sentence as people write it: the file has a space before every full stop and comma."""
    return sentence.replace(" .", ".").replace(" ,", ",")


def _evenly(pairs: list[SentencePair], n: int | None, seed: int) -> list[SentencePair]:
    """n of the pairs, as many from each sub-case as can be, in the file's order."""
    if n is not None and n < 1:
        raise LensSkillsError(f"hans(n={n}): give at least 1, or None for all.")
    if n is None or n >= len(pairs):
        return pairs
    order = in_turns(sorted(pairs, key=by_digest(seed)), lambda pair: pair.subcase)
    kept = {pair.id for pair in order[:n]}
    return [pair for pair in pairs if pair.id in kept]
