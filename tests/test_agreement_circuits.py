"""The benchmark of circuits: its smoke setting in full, its pairs, and what it makes of curves."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import lens_skills as ls
from lens_skills.activations.metrics import Readout

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))
circuits: Any = import_module("agreement_circuits")
tasks: Any = import_module("circuit_tasks")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("circuits")
    run(out)
    return out


def run(out: Path) -> None:
    asked = f"agreement_circuits.py --quick --model arithmetic-small --out {out} --runs {out}/runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", asked.split())
        circuits.main()


def test_the_smoke_setting_writes_the_whole_page(quick: Path) -> None:
    page = (quick / "arithmetic_small.md").read_text(encoding="utf-8")
    assert page.count("| ranking | K at 0.9 |") == 2  # the mean's values, and the twin's
    assert str(quick) not in page
    assert "Fewest neurons to 0.9:" in page
    assert (quick / "arithmetic_small_agreement.png").stat().st_size > 10_000
    lines = pd.read_csv(quick / "arithmetic_small_summary.csv").set_index(["values", "method"])
    points = pd.read_csv(quick / "arithmetic_small_points.csv")
    last = points[points["size"] == points["size"].max()]
    assert (last.loc[last["what"] == "faithfulness", "value"] == 1).all()
    assert (last.loc[last["what"] == "completeness", "value"] == 0).all()
    chance = lines.loc[("mean", "random")]
    for method in ("attribution", "integrated_gradients", "relevance"):
        own = lines.loc[("mean", method)]
        assert own["cmd"] < 0.5 * chance["cmd"]
        assert own["k"] < 0.5 * chance["k"]


def test_what_is_done_is_not_done_again(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (quick / "arithmetic_small_points.csv").read_bytes()

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr(circuits, "expected_changes", refuse)
    monkeypatch.setattr(circuits.KeptNeurons, "measure", refuse)
    run(quick)
    assert (quick / "arithmetic_small_points.csv").read_bytes() == before


def test_the_first_size_that_reaches_is_found_with_its_interval() -> None:
    """All groups alike: no width. Two kinds of groups: the interval holds both kinds' sizes."""
    sizes, groups = [1, 10, 100], [str(k) for k in range(20)]
    gap = torch.ones(20, dtype=torch.float64)
    alike = torch.tensor([0.2, 0.95, 1.0])[:, None] * gap
    assert circuits.reach(alike, gap, groups, sizes) == (10.0, 10.0, 10.0)
    assert circuits.reach(0.5 * alike, gap, groups, sizes) == (float("inf"),) * 3
    two = alike.clone()
    two[1, :3] = 0.55  # the mean is .89 as it is, and beyond .9 in some draws
    found = circuits.reach(two, gap, groups, sizes)
    assert found == (100.0, 10.0, 100.0)


@pytest.mark.slow
def test_nothing_ranked_on_is_measured_on(shared_data: Path, smollm: Any) -> None:
    for kind in ("simple", "nounpp"):
        pairs = tasks.agreement(smollm, shared_data, kind, 10, 30)
        ranked, run_on = (
            {text for example in part for text in (example.prompt, example.corrupted)}
            for part in (pairs.rank, pairs.test)
        )
        assert not ranked & run_on
        assert pairs.aligned
        assert pairs.n_columns == {"simple": 1, "nounpp": 4}[kind]


def test_the_pairs_are_read_in_one_line(shared_data: Path) -> None:
    task = ls.tasks.pairs(
        shared_data / "agreement_pairs" / "nounpp_train.jsonl",
        clean="clean_prefix", corrupted="patch_prefix", answer="clean_answer", foil="patch_answer",
    )  # fmt: skip
    assert len(task) == 1920
    assert len(task.groups) == 970  # a pair and its mirror image are one
    first = task[0]
    assert (first.prompt, first.corrupted) == (
        "The teachers near the desk", "The teacher near the desk",
    )  # fmt: skip
    assert (first.answer, first.foil) == (" are", " is")


@pytest.fixture
def years(tmp_path: Path) -> Callable[[list[str]], Any]:
    """The greater-than task of a tokenizer that knows these words, each a token."""

    def make(known: list[str]) -> Any:
        folder = tmp_path / "greater_than"
        folder.mkdir(exist_ok=True)
        rows = ["clean,corrupted,label"]
        rows += [f"from 17{y} to 17,from 1701 to 17,{y}" for y in range(20, 60)]
        (folder / "greater_than_data.csv").write_text("\n".join(rows))
        adapter = SimpleNamespace(
            encode_plain=lambda text: (
                [known.index(text)] if text in known else [known.index(c) for c in text]
            )
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tasks, "as_adapter", lambda model: adapter)
            patch.setattr(tasks, "usable", lambda model, task: task)
            patch.setattr(tasks, "columns_of", lambda *args: (3, True))
            return tasks.greater_than(None, tmp_path, 4, 8)

    return make


def test_greater_years_count_for_and_others_against(years: Any) -> None:
    """Two-digit tokens: above the start's, minus the rest; digits: above the tens, minus below."""
    digits = list("0123456789")
    for known in (digits, [*digits, *(f"{y:02d}" for y in range(100))]):
        pairs = years(known)
        logits = torch.from_numpy(np.random.default_rng(0).normal(size=(8, len(known))))
        shares = logits.softmax(-1)
        found = pairs.metric.of(Readout(logits), list(pairs.test))
        for row, example in enumerate(pairs.test):
            year = int(example.covariates["label"])
            wanted = 0.0
            for token, name in enumerate(known):
                if len(known) > 10 and len(name) == 2:
                    wanted += float(shares[row, token]) * (1 if int(name) > year else -1)
                elif len(known) == 10:
                    wanted += float(shares[row, token]) * np.sign(int(name) - year // 10)
            assert float(found[row]) == pytest.approx(wanted, abs=1e-9)
