"""`hans`: the evaluation set of HANS, or a file of the same columns, as a Task."""

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
from lens_skills.tasks.table_files import (
    file_kind,
    parse_json,
    read_columns,
    read_json_lines,
    read_separated,
    read_text,
    text_lines,
)
from lens_skills.tasks.task import Task, by_digest
from lens_skills.tasks.templates import text_of

COLUMNS = ("gold_label", "sentence1", "sentence2", "pairID", "heuristic", "subcase", "template")
"""The columns that are read; a file may have more."""

HUB = {"label": "gold_label", "premise": "sentence1", "hypothesis": "sentence2"}
"""What the hub's export calls the same columns; it has no ``pairID``."""

# The classes of the hub's label, in its order.
GOLD = {"entailment": True, "non-entailment": False, "0": True, "1": False}


def hans(
    path: Any,
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
        path: The tab-separated file of the authors (``heuristics_evaluation_set.txt``); JSON Lines,
            or anything that `table` reads, with the same names or with the hub's: premise,
            hypothesis, label (0 is entailment), heuristic, subcase, template. Rows without a
            ``pairID`` are numbered from 0.
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
    pairs = list(_pairs(path))
    shown = demonstrate(pairs, shots, seed=seed)
    taken = {pair.id for pair in shown}
    kept = _evenly([pair for pair in pairs if pair.id not in taken], n, seed)
    return pose_pairs(
        "hans", kept, demonstrations=shown, wording=wording, answers=answers, group=group
    )


def is_hans(path: Path) -> bool:
    """Whether a text file begins as HANS's does, or as the hub's export of it."""
    try:
        first = next(iter(text_lines(read_text(path))), "")
        names = set(parse_json(first) if file_kind(path) == ".jsonl" else first.split("\t"))
    except (LensSkillsError, ValueError, TypeError):
        return False
    return names >= {"gold_label", "sentence1", "sentence2"} or names >= {*HUB, "heuristic"}


def _pairs(source: Any) -> Iterator[SentencePair]:
    """The rows, checked one by one."""
    seen: dict[str, str] = {}
    for place, (where, row) in enumerate(_rows(source)):
        pair = _pair(row, where, str(place))
        if pair.id in seen:
            raise LensSkillsError(
                f"{where}: the pairID {pair.id!r} was used in {seen[pair.id]}. Give each row its "
                "own."
            )
        seen[pair.id] = where.rpartition(", ")[2]
        yield pair
    if not seen:
        raise LensSkillsError(f"{source!s:.80} holds no examples. Give at least one row.")


def _rows(source: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row's place in words, and its columns under the authors' names."""
    if isinstance(source, str | Path):
        path = Path(source)
        kind = file_kind(path)
        if kind == ".jsonl":
            for line, row in read_json_lines(path):
                yield f"{str(path)!r}, line {line}", _named(row)
            return
        if kind not in (".csv", ".json", ".parquet"):
            # The authors' file and those like it know no quoting: a quote is part of a sentence.
            names, rows = read_separated(path, quotes=False)
            _check(names, f"{str(path)!r}, line 1")
            for line, cells in rows:
                yield f"{str(path)!r}, line {line}", _named(dict(zip(names, cells, strict=True)))
            return
    table = read_columns(source)
    _check(list(table.cells), f"{table.name!r}")
    for row in range(table.n_rows):
        cells = {name: values[row] for name, values in table.cells.items()}
        yield f"{table.name!r}, row {row}", _named(cells)


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    return {HUB.get(name, name) if HUB.get(name) not in row else name: row[name] for name in row}


def _check(names: list[str], where: str) -> None:
    known = {*names, *(ours for theirs, ours in HUB.items() if theirs in names)}
    missing = [name for name in COLUMNS if name not in known and name != "pairID"]
    if missing:
        raise LensSkillsError(
            f"{where}: the columns {', '.join(missing)} are missing. There are {len(names)} "
            f"columns: {', '.join(names)[:200]}."
        )


def _pair(row: Mapping[str, Any], where: str, place: str) -> SentencePair:
    texts = {name: (text_of(row.get(name)) or "").strip() for name in COLUMNS}
    texts["pairID"] = texts["pairID"] or place
    empty = [name for name in COLUMNS if not texts[name]]
    if empty:
        raise LensSkillsError(f"{where}: {empty[0]} is missing. Fill it or drop the row.")
    for name, known in (("gold_label", tuple(GOLD)), ("heuristic", HEURISTICS)):
        if texts[name] not in known:
            raise LensSkillsError(
                f"{where}: {name} is {texts[name]!r:.60}, not one of {', '.join(known)}."
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
