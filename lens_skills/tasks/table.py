"""`table` and `pairs`: a Task from any table of prompts, or of prompts and their corrupted twins.

A table is a file, a DataFrame or a data set; texts are left as they were written.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lens_skills.data import Example, Value
from lens_skills.errors import LensSkillsError
from lens_skills.tasks.options import Choices, choose, read_options
from lens_skills.tasks.table_files import Columns, read_columns
from lens_skills.tasks.task import Task, Texts
from lens_skills.tasks.templates import column, plain, texts_of, typed


def table(
    path_or_frame: Any,
    *,
    prompt: str,
    answer: str | None = None,
    foil: str | None = None,
    options: str | Sequence[str] | Mapping[Any, str] | None = None,
    answer_by: Literal["text", "letter", "index", "number"] | None = None,
    join: str | None = None,
    corrupted: str | None = None,
    labels: str | Sequence[str] = (),
    covariates: str | Sequence[str] = (),
    group: str | None = None,
    kind: str | None = None,
    id: str | None = None,
    name: str | None = None,
    paraphrases: Mapping[str, str | tuple[str, str]] | None = None,
    header: Sequence[str] | None = None,
    quotes: bool | None = None,
) -> Task:
    """A Task with one example per row of a table.

    Each text is a column's name or a template over columns: ``answer="word"`` or
    ``answer=" {word}"``; ``{choices[0]}`` is a part of a cell, ``{share:.2f}`` a number written
    so. The answer is used exactly as given: most tokenizers join a space to the word after it, so
    a prompt that ends in a word takes answers that begin with a space; ``join=" "`` puts it there.
    Whole numbers become texts without a point, an empty cell in a text means there is none; a list
    or bytes are refused as text. Class ids of a data set (ClassLabel) are read as their names.

    An answer may be given by its option: MMLU's ``2``, ARC's ``"B"``, a class id, true and false.
    Whether numbers count from 0 or from 1 is decided by all rows (one that is 0, or the number of
    options) and refused where both fit. Of two options the other is the foil. With a column of
    options the covariate ``answer_position`` says which was right (from 0).

    Args:
        path_or_frame: A .csv, .tsv, .jsonl, .json (a list of objects) or .parquet file (texts also
            packed, .csv.gz), a DataFrame, a Hugging Face ``datasets.Dataset`` or a list of dicts.
        prompt: Column or template, e.g. "{premise} Question: {hypothesis}".
        answer, foil, corrupted: Columns or templates, all optional.
        options: The column that holds each row's options (a list, as JSON in a text cell; or an
            object of ``text`` and ``label``); or those of every row themselves, as texts or
            templates, (" yes", " no") or ("{sol1}", "{sol2}"); or what each answer is called,
            {True: " yes", False: " no"}.
        answer_by: How answers name their option, where the rows do not decide it: by its text, its
            letter, its index (from 0) or its number (from 1).
        join: What stands between prompt and answer. Prompts then lose white space at their end,
            answers, foils and options at their beginning, and begin with it instead.
        labels, covariates: Columns. Of a CSV, numbers where every cell is one; "007" is none.
        group: Column of examples never to be separated; None keeps identical prompts together.
        kind: Column of input types for the control task.
        id: Column of unique names; None numbers the rows from 0.
        name: The task's name; None takes the file's.
        paraphrases: Other wordings of the prompts by name, each a column or template; with
            ``corrupted``, two of them: of the prompt and of its twin. See `Task.paraphrases`.
        header: The columns of a .csv or .tsv whose first line is a row already.
        quotes: Whether double quotes of a .csv or .tsv enclose cells (True) or are part of the
            texts (False). None finds out, and refuses what can be read both ways.

    Raises:
        LensSkillsError: unreadable table, a column that is not there (with the nearest name),
            a missing prompt, label or covariate (with its row), a row longer or shorter than the
            header (with its line), an answer that names no option or may name two.

    >>> rows = [{"text": "The key", "verb": "is"}, {"text": "The keys", "verb": "are"}]
    >>> task = table(rows, prompt="text", answer="{verb}", options=("is", "are"), join=" ")
    >>> task[1].answer, task[1].foil, task[1].options
    (' are', ' is', (' is', ' are'))
    >>> rows = [{"q": "2 + 2 =", "choices": ["3", "4"], "answer": 1},
    ...         {"q": "1 + 2 =", "choices": ["3", "4"], "answer": 0}]
    >>> table(rows, prompt="q", answer="answer", options="choices", join=" ")[0].answer
    ' 4'
    """
    labels = (labels,) if isinstance(labels, str) else tuple(labels)
    covariates = (covariates,) if isinstance(covariates, str) else tuple(covariates)
    rows = read_columns(path_or_frame, header=header, quotes=quotes)
    if not rows.n_rows:
        raise LensSkillsError(f"the table {rows.name!r} has no rows. Give at least one.")
    if options is None and answer_by is not None:
        raise LensSkillsError(f"answer_by={answer_by!r} names an option: say which, options=….")
    choices = None if options is None else read_options(rows, options)
    texts = {
        field: texts_of(rows, source, field)
        for field, source in (
            ("prompt", prompt), ("answer", answer if choices is None else None), ("foil", foil),
            ("corrupted", corrupted), ("group", group), ("kind", kind), ("id", id),
        )
        if source is not None
    }  # fmt: skip
    for field in ("prompt", "group", "kind", "id"):
        if None in texts.get(field, ()):
            raise LensSkillsError(
                f"row {texts[field].index(None)} of {rows.name!r} has no {field}. "
                "Fill it or drop the row."
            )
    label_rows = _values(rows, labels, "label")
    covariate_rows = _values(rows, covariates, "covariate")
    if choices is not None and answer is not None:
        texts |= _answers(rows, choices, answer, answer_by, found_foils="foil" in texts)
        for place, columns in zip(choices.right, covariate_rows, strict=True):
            if isinstance(options, str) and place is not None:
                columns.setdefault("answer_position", place)
    _join(texts, choices, join)
    twins: dict[tuple[str | None, ...], str] = {}
    examples = []
    for row in range(rows.n_rows):
        fields: dict[str, Any] = {field: values[row] for field, values in texts.items()}
        fields.setdefault("id", str(row))
        # A prompt seen in two splits would leak, and so would a pair and its mirror image.
        texts_of_row = {fields["prompt"], fields.get("corrupted") or fields["prompt"]}
        fields.setdefault("group", twins.setdefault(tuple(sorted(texts_of_row)), fields["id"]))
        examples.append(
            Example(
                **fields,
                options=() if choices is None else choices.texts[row],
                labels=label_rows[row],
                covariates=covariate_rows[row],
            )
        )
    ids = [example.id for example in examples]
    wordings = {
        wording: dict(
            zip(ids, _wording(rows, texts, wording, corrupted is not None, join), strict=True)
        )
        for wording, texts in (paraphrases or {}).items()
    }
    return Task(name or rows.name, examples, wordings=wordings)


def _answers(
    rows: Columns, choices: Choices, answer: str, by: str | None, *, found_foils: bool
) -> dict[str, list[str | None]]:
    """Answers, and foils where none are given and there are two options."""
    choices.right[:] = choose(rows, choices, answer, by)
    placed = list(zip(choices.texts, choices.right, strict=True))
    found: dict[str, list[str | None]] = {
        "answer": [None if place is None else some[place] for some, place in placed]
    }
    if not found_foils:
        found["foil"] = [
            some[1 - place] if place is not None and len(some) == 2 else None
            for some, place in placed
        ]
    return found


def _join(texts: dict[str, list[str | None]], choices: Choices | None, join: str | None) -> None:
    """Puts ``join`` between prompts and answers, in place."""
    if join is None:
        return
    if not isinstance(join, str):
        raise LensSkillsError(f"join={join!r}: give the text between prompt and answer, as ' '.")
    for field in ("prompt", "corrupted"):
        if field in texts:
            texts[field] = [text if text is None else text.rstrip() for text in texts[field]]
    for field in ("answer", "foil"):
        if field in texts:
            texts[field] = [text if text is None else join + text.lstrip() for text in texts[field]]
    if choices is not None:
        choices.texts[:] = [tuple(join + text.lstrip() for text in row) for row in choices.texts]


def _wording(
    table: Columns, texts: str | tuple[str, str], name: str, twins: bool, join: str | None
) -> list[Texts]:
    """One wording of every row's prompt, and of its twin where there are twins."""
    sources = (texts,) if isinstance(texts, str) else tuple(texts)
    if len(sources) != 1 + twins:
        raise LensSkillsError(
            f"the wording {name!r} is {texts!r}: give one template for the prompts"
            + (" and one for their corrupted twins." if twins else ", as there are no twins.")
        )
    prompts, *others = [texts_of(table, source, f"the wording {name!r}") for source in sources]
    if None in prompts:
        raise LensSkillsError(f"row {prompts.index(None)} has no text for the wording {name!r}.")
    twin_texts = others[0] if twins else [None] * len(prompts)
    if join is not None:
        prompts = [(text or "").rstrip() for text in prompts]
        twin_texts = [text if text is None else text.rstrip() for text in twin_texts]
    return [(text or "", twin) for text, twin in zip(prompts, twin_texts, strict=True)]


def _values(table: Columns, names: Sequence[str], role: str) -> list[dict[str, Value]]:
    """The labels or covariates of each row, none of them missing."""
    cells = {name: [plain(value) for value in column(table, name, role)] for name in names}
    for name, values in cells.items():
        if None in values:
            raise LensSkillsError(
                f"the {role} {name!r} is missing in {values.count(None)} of {len(values)} rows of "
                f"{table.name!r}, first in row {values.index(None)}. Fill it or drop those rows."
            )
        if not table.typed:
            cells[name] = typed(values)
    return [{name: values[row] for name, values in cells.items()} for row in range(table.n_rows)]


def pairs(
    frame: Any,
    *,
    clean: str,
    corrupted: str | None = None,
    answer: str | None = None,
    foil: str | None = None,
    group: str | None = None,
    labels: str | Sequence[str] = (),
    covariates: str | Sequence[str] = (),
    kind: str | None = None,
    join: str | None = None,
    name: str = "pairs",
    paraphrases: Mapping[str, str | tuple[str, str]] | None = None,
) -> Task:
    """A Task of contrast pairs: the clean prompt asks for the answer, the corrupted for the foil.

    Each argument names a column (texts may be templates, as in ``table``). Without ``group``, a
    pair and its mirror image (clean and corrupted exchanged) stay together in splits.

    Args:
        frame: A DataFrame, or anything else ``table`` reads.
        clean: Column of the prompts.
        corrupted: Column of the twins, best of the same length in tokens, so they can be patched.
        answer: Column of right continuations of the clean prompt, leading space included.
        foil: Column of right continuations of the corrupted prompt.
        group: Column of examples never to be separated.
        labels: Columns to look for in neurons.
        covariates: Columns that could explain a neuron away.
        kind: Column of input types for the control task.
        join: What stands between prompt and answer; see `table`.
        name: The task's name.
        paraphrases: Other wordings by name: of the clean prompt and of its corrupted twin.

    Raises:
        LensSkillsError: as ``table`` does.

    >>> task = pairs([{"a": "The key", "b": "The keys", "yes": " is", "no": " are"}],
    ...              clean="a", corrupted="b", answer="yes", foil="no")
    >>> task[0].corrupted, task[0].foil
    ('The keys', ' are')
    """
    return table(
        frame,
        prompt=clean,
        corrupted=corrupted,
        answer=answer,
        foil=foil,
        group=group,
        labels=labels,
        covariates=covariates,
        kind=kind,
        join=join,
        name=name,
        paraphrases=paraphrases,
    )
