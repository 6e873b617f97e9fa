"""The demonstration's figures of the strongest neurons, which take a pass of the model."""

import csv
from pathlib import Path
from typing import Any

import pytest

import lens_skills as ls
from lens_skills.activations import stream
from lens_skills.cli import demo


def test_studies_of_the_same_examples_are_read_in_one_pass(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, task = ls.load_model(tiny_folder), ls.tasks.agreement()[:200]
    options = {"fractions": (0.5, 0.5), "n_permutations": 19}
    one = ls.study(model, task, metric="label:plural", **options)
    two = ls.study(model, task, metric="logit_diff", earlier=one, **options)
    other = ls.study(model, task[20:], metric="label:plural", **options)
    passes: list[Any] = []

    def counted(*args: Any, **named: Any) -> Any:
        passes.append(named["layers"])
        return stream(*args, **named)

    monkeypatch.setattr(demo, "stream", counted)
    places = {tmp_path / name: found for name, found in (("1", one), ("2", two), ("3", other))}
    demo.draw_strongest(model, places)
    assert len(passes) == 2
    for folder, found in places.items():
        (unit,) = found.scores[found.metric].top(1)
        (table,) = folder.glob("activation-*.csv")
        assert unit.name in table.name
        rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
        expected = [
            float(value)
            for batch in stream(model, found.explore, layers=unit.layer)
            for value in batch.activations[:, 0, unit.index]
        ]
        read = [float(row["activation"]) for row in rows if row["what"] == "example"]
        assert sorted(read) == pytest.approx(sorted(expected), abs=1e-6)
