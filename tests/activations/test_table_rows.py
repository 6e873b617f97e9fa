"""The rows of a table of activations are columns: what is read of them is what the examples say,
and scoring makes no examples."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest

from lens_skills.activations.activation_table import ActivationTable
from lens_skills.activations.columns import column_values, reading_of
from lens_skills.activations.table_rows import TableRows
from lens_skills.data import Example, cells_of, field_of
from lens_skills.errors import LensSkillsError
from lens_skills.ranking import rank
from lens_skills.results import examples_hash
from lens_skills.scoring import score, score_part
from tests.activations.test_shards import columns, numbers, write

N = 2500


def rows() -> TableRows:
    random = np.random.default_rng(0)
    given: dict[str, Any] = {
        "id": [f"row {n}" for n in range(N)],
        "group": [f"g{n // 3}" if n % 7 else None for n in range(N)],
        "prompt": ["" if n % 5 == 0 else f'"{n}"\0ü' for n in range(N)],
        "label:y": np.arange(N) % 2,
        "label:yes": np.arange(N) % 2 == 0,
        "label:rule": [None if n % 4 == 0 else "abc"[n % 3] for n in range(N)],
        "label:gap": [None if n % 4 else n for n in range(N)],
        "label:both": [None if n % 4 else "label" for n in range(N)],
        "covariate:both": [n / 7 for n in range(N)],
        "covariate:size": random.normal(size=N),
    }
    return TableRows(pyarrow.table(given))


@pytest.mark.parametrize("some", [slice(None), slice(1000, 1100), slice(None, None, -3)])
def test_columns_say_what_the_examples_say(some: slice) -> None:
    table = rows()[some]
    made = list(table)
    assert all(isinstance(example, Example) for example in made)
    for name in ("id", "prompt", "group", "kind"):
        assert list(field_of(table, name)) == field_of(made, name)
    for kind in ("labels", "covariates", "column"):
        for name in ("y", "yes", "rule", "gap", "both", "size", "none"):
            here, there = cells_of(table, name, kind), cells_of(made, name, kind)
            assert here == there
            assert [type(value) for value in here] == [type(value) for value in there]
            assert reading_of(table, name, kind) == reading_of(made, name, kind)
    assert examples_hash(table) == examples_hash(made)


@pytest.mark.parametrize("name", ["y", "yes", "y=1", "size", "rule=a", "rule:ordered=[c, a]"])
def test_columns_are_read_as_those_of_the_examples(name: str) -> None:
    table = rows()
    some = [example for example in table if example.labels.get("rule") in ("a", "c")]
    for examples in (table, some):
        read = []
        for each in (examples, list(examples)):
            try:
                read.append(column_values(each, name).tolist())
            except LensSkillsError as error:
                read.append(str(error))
        assert read[0] == read[1]


def test_scores_and_rankings_make_no_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = ActivationTable.load(write(tmp_path / "t", numbers(), columns()))

    made = TableRows.made

    def one(rows: TableRows, start: int, stop: int) -> Any:
        assert stop - start == 1, "only the first is looked at, by the checks of types in tests"
        return made(rows, start, stop)

    monkeypatch.setattr(TableRows, "made", one)
    asked: dict[str, Any] = {"metrics": ["label:even", "label:rule", "tone"], "n_permutations": 19}
    score(table, table.examples, **asked)
    score(table, table.examples, metrics="label:even", given=["size"], n_permutations=19)
    rank(table, table.examples, "tone")
    rank(table, table.examples[:60], "label:rule", method="f")
    score_part(table, table.examples[:40], table.examples, **asked)
