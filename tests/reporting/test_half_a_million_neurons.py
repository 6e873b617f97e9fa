"""Results on 512,000 neurons, of which 12,000 are associated: quick, small on disk, legible."""

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import lens_skills as ls
from lens_skills.cli import app
from lens_skills.ranking.rank import Ranking
from lens_skills.reporting.neuron_table import MOST_ROWS
from lens_skills.scoring import Scores, Selection
from tests.plotting.conftest import evidence_row, make_scores, make_selection
from tests.plotting.results import make_verdict

LAYERS, WIDTH = 80, 6400
METRIC, CONFIRMED, ASSOCIATED = "label:plural", 9_000, 12_000


@pytest.fixture(scope="module")
def scores() -> Scores:
    """Of one metric, that of the selection and the verdict; 512,000 neurons at two positions."""
    return make_scores(layers=LAYERS, width=WIDTH, positions=("subject", "last"), spread=0.12)


@pytest.fixture(scope="module")
def selection() -> Selection:
    """9,000 neurons are confirmed, of 12,000 that are associated."""
    places = [(k % LAYERS, 1 + k // LAYERS) for k in range(ASSOCIATED)]
    rows = tuple(
        evidence_row(
            0, "B" if k < CONFIRMED else "", "" if k < CONFIRMED else "association on confirm",
            name=f"L{layer}N{neuron}", layer=layer, neuron=neuron, r_confirm=0.9 - k / 60_000,
        )
        for k, (layer, neuron) in enumerate(places)
    )  # fmt: skip
    numbers = torch.linspace(0.9, 0.4, CONFIRMED, dtype=torch.float64)
    steps = {"neurons": LAYERS * WIDTH, "associated": ASSOCIATED, "confirmed": CONFIRMED}
    return replace(
        make_selection(),
        neurons=torch.tensor(places[:CONFIRMED]),
        position=("last",) * CONFIRMED,
        attrition=steps,
        rows=rows,
        **dict.fromkeys(("r_explore", "r_confirm", "p", "q", "mean", "std"), numbers),
    )


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Of processor time: a busy machine is slow, and no test of ours fails for it."""
    start = time.process_time()
    yield
    taken = time.process_time() - start
    assert taken < seconds, f"{taken:.1f} s"


def test_scores_are_saved_and_printed(scores: Scores, tmp_path: Path) -> None:
    with within(5):
        folder = scores.save(tmp_path / "scores")
        back = ls.load(folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    held = [one for one in vars(scores).values() if isinstance(one, torch.Tensor)]
    assert size < 1.25 * sum(one.nbytes for one in held)
    with within(3):
        card = repr(back)
    assert "512,000 neurons → " in card
    assert len(card) < 10_000


def test_scores_are_tabled(scores: Scores) -> None:
    with within(6):
        frame = scores.frame(metric=METRIC)
    assert len(frame) == 2 * LAYERS * WIDTH
    assert frame["r"].abs().is_monotonic_decreasing
    first = frame.iloc[0]
    place = scores.places[int(first["layer"]), int(first["neuron"])]
    assert first["name"] == scores.names()[place]
    assert scores.positions[scores[METRIC].strongest_of(place)] == first["position"]
    other = frame[frame["position"] != first["position"]].iloc[0]
    unit = scores.places[int(other["layer"]), int(other["neuron"])]
    assert scores.positions[scores[METRIC].strongest_of(unit)] == other["position"]
    row = scores.metrics.index(METRIC)
    assert first["r"] == scores.r[row, scores.positions.index(first["position"]), place]
    with within(2):
        assert "| " in scores[METRIC].to_markdown()
        assert len(scores._repr_html_()) < 500_000


def test_figures_are_small(scores: Scores, selection: Selection, tmp_path: Path) -> None:
    verdict = make_verdict(12, n_control_neurons=110)
    parts = {"explore": scores, f"selection-{METRIC}": selection, "verdict-label_plural": verdict}
    with within(12):
        drawings = ls.figures.of(parts, metrics=[METRIC])
        kinds = {drawing.kind for drawing in drawings}
        for drawing in drawings:
            drawing.savefig(tmp_path / f"{drawing.name}.svg")
    wanted = {"r_distribution", "layer_profile", "correlation_by_position", "metric_heatmap"}
    assert wanted | {"attrition", "effect_against_r"} <= kinds
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert max(sizes.values()) < 300_000, sizes
    counted = next(one for one in drawings if one.kind == "r_distribution").frame
    assert counted.loc[counted["what"] == "neurons", "value"].sum() == 2 * (LAYERS * WIDTH - 1)


def test_the_report_holds_the_first_rows_and_the_strongest_neurons(
    scores: Scores, selection: Selection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lens_skills.reporting.gather.pictures", lambda *_: ((), ()))
    with within(10):
        path = ls.report({"explore": scores, "selection": selection}, tmp_path / "report.html")
    assert path.stat().st_size < 6 << 20
    page = path.read_text(encoding="utf-8")
    assert "in this file and need JavaScript" in page
    data = embedded(page)
    assert (len(data["rows"]), data["n_rows"]) == (MOST_ROWS, ASSOCIATED)
    assert [row[0] for row in data["rows"]] == [row["name"] for row in selection.rows[:MOST_ROWS]]
    every = data["every"]
    kept = np.unpackbits(np.frombuffer(base64.b64decode(every["held"]), np.uint8)).nonzero()[0]
    r = scores[METRIC].at_strongest(scores[METRIC].r)
    told = np.frombuffer(base64.b64decode(every["r"][0]), "<i2") / 10_000
    assert every["wide"] == WIDTH
    np.testing.assert_allclose(told[kept > 0], r[torch.from_numpy(kept[kept > 0])], atol=5.1e-5)


def embedded(page: str) -> Any:
    """What the page's script reads."""
    return json.loads(page.partition(' id="data">')[2].partition("</script>")[0])


def test_a_selection_is_saved_shown_and_exported(selection: Selection, tmp_path: Path) -> None:
    with within(8):
        folder = selection.save(tmp_path / "selection")
        shown = CliRunner().invoke(app.app, ["show", str(folder)])
    assert shown.exit_code == 0
    assert "12,000 associated → 9,000 confirmed" in shown.stdout
    assert len(shown.stdout) < 10_000
    with within(5):
        tables = ls.export({"selection": selection}, tmp_path / "paper") / "tables"
    assert max(path.stat().st_size for path in tables.iterdir()) < 20_000


def test_a_ranking_is_tabled() -> None:
    n = LAYERS * WIDTH
    r = torch.linspace(-1, 1, n)
    ranking = Ranking(
        "pearson", "entropy", torch.arange(LAYERS).repeat_interleave(WIDTH),
        torch.arange(WIDTH).repeat(LAYERS), r, r.abs(),
        "r", "Pearson's r", "no source", "mlp.hook_post", "last", 100, 1.0,
    )  # fmt: skip
    with within(3):
        assert "L0N0: -1 r" in repr(ranking)
        frame = ranking.frame()
    assert frame["name"].tolist()[:2] == ["L0N0", "L79N6399"]
    assert len(frame) == n


def test_the_card_of_a_thousand_metrics_shows_the_first() -> None:
    few, n = make_scores(nulls=False), 1000
    names = tuple(f"m{place}" for place in range(n))
    many = {part: getattr(few, part)[:1].repeat(n, 1, 1) for part in ("r", "low", "high")}
    card = repr(replace(few, metrics=names, thresholds=dict.fromkeys(names), **many))
    assert "m19 · " in card
    assert "m20 · " not in card
    assert "… and 980 more metrics: scores['m999'], .frame()" in card
