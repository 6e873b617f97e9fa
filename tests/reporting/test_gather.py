"""What a report says is what its results hold, whatever it is given."""

import importlib
import json
import math
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import lens_skills as ls
from lens_skills.cli import app
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.explanation import ActivatingExamples
from lens_skills.explanation.shortcut_report import no_shortcuts
from lens_skills.plotting import figures
from lens_skills.plotting.drawing import DRAWN as DRAWERS
from lens_skills.reporting.document import Document
from lens_skills.reporting.document_words import versions_of
from lens_skills.reporting.gather import gather
from lens_skills.reporting.neuron_pages import pages
from lens_skills.reporting.sources import open_sources
from lens_skills.results import write_asked
from lens_skills.scoring import Scores, Selection
from tests.plotting.conftest import evidence_row, make_scores, make_selection
from tests.plotting.results import make_curve, make_verdict
from tests.plotting.test_circuit_plots import make_circuit

TRIED = ("L0N1", "L1N1", "L2N1", "L3N1", "L0N2", "L1N2")
METRIC = "label:plural"
DRAWN = ("test_pictures", "test_a_figure")  # tests in which figures are drawn


def selection(names: tuple[str, ...] = TRIED) -> Selection:
    """`make_selection`, of the neurons that `make_verdict` tries, and of those it has."""
    places = [tuple(map(int, name[1:].split("N"))) for name in names]
    rows = tuple(
        evidence_row(k, "B", "", name=name, layer=places[k][0], neuron=places[k][1])
        for k, name in enumerate(names)
    )
    numbers = torch.full((len(names),), 0.8, dtype=torch.float64)
    made = make_selection()
    return replace(
        made,
        neurons=torch.tensor(places),
        position=("last",) * len(names),
        rows=(*rows, *made.rows[2:]),
        **dict.fromkeys(("r_explore", "r_confirm", "p", "q", "mean", "std"), numbers),
    )


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures have tests of their own, and take a second each."""
    if not request.node.name.startswith(DRAWN):
        monkeypatch.setattr("lens_skills.reporting.gather.pictures", lambda *_: ((), ()))


def whole() -> dict[str, Any]:
    return {
        "explore": make_scores(),
        "selection-label_plural": selection(),
        "verdict-label_plural": make_verdict(),
        "circuit-L28N907": make_circuit(),
        "dose": make_curve(),
    }


@pytest.fixture(scope="module")
def document() -> Document:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lens_skills.reporting.gather.pictures", lambda *_: ((), ()))
        return gather(whole())


def same(one: Any, other: Any) -> bool:
    if isinstance(other, float) and math.isnan(other):
        return one is None
    return bool(one == other)


def test_every_number_of_the_table_is_the_results(document: Document) -> None:
    graded = selection().graded(make_verdict())
    assert [row["neuron"] for row in document.rows] == graded["name"].tolist()
    keys = {"name": "neuron", "neuron": "index", "r_confirm": "r"}
    rulings = {one.name: one for one in make_verdict().singles}
    for row, (_, wanted) in zip(document.rows, graded.iterrows(), strict=True):
        for column in graded.columns.drop(["causal", "verdict"]):
            value = wanted[column]
            assert same(row[keys.get(str(column), str(column))], value), (column, value)
        ruling = rulings.get(str(row["neuron"]))
        assert row["verdict"] == ("" if ruling is None else ruling.label)
    named = {column.key for column in document.columns}
    assert {"neuron", "grade", "r", "r_explore", "effect", "q_control", "verdict"} <= named
    ends = {c.key: c.interval for c in document.columns if c.interval}
    assert ends == {"r": ("low", "high"), "r_explore": ("explore_low", "explore_high"),
                    "effect": ("effect_low", "effect_high")}  # fmt: skip
    assert all(column.help for column in document.columns)
    assert {c.key: c.unit for c in document.columns}["effect"] == "nats"


def test_the_way_down_and_the_grades_are_the_selections(document: Document) -> None:
    steps = {step.name: step.count for step in document.attrition}
    assert steps == {
        "neurons": 120, "associated": 7, "beat the control task": 4, "confirmed": 2,
        "tried": 6, "causal": len(make_verdict().causal),
    }  # fmt: skip
    assert all(step.note.endswith(".") for step in document.attrition)
    grades = [row["grade"] for row in document.rows]
    told = {fact.name: int(fact.value.split(":")[0]) for fact in document.grades}
    assert told == {g or "none": grades.count(g) for g in ("A", "B", "C", "")}


def test_all_neurons_are_those_of_the_scores(document: Document) -> None:
    scores, every = make_scores(), document.every
    assert every is not None
    assert every.layer == tuple(scores.layer.tolist())
    assert every.index == tuple(scores.neuron.tolist())
    assert dict(every.threshold) == scores.thresholds
    for place, metric in enumerate(scores.metrics):
        wanted = scores.r[place, 0].tolist()
        assert math.isnan(every.r[metric][0])  # it does not vary
        assert list(every.r[metric][1:]) == wanted[1:]


def test_of_several_positions_each_neuron_stands_at_its_strongest() -> None:
    scores = make_scores(positions=("-2", "last"))
    every = gather(scores).every
    assert every is not None
    view = scores["confidence"]
    wanted = view.at_strongest(view.r)
    assert list(every.r["confidence"][1:]) == wanted[1:].tolist()


def test_a_page_says_what_its_verdict_says(document: Document) -> None:
    verdict = make_verdict()
    assert [page.name for page in document.neurons][:6] == list(TRIED)
    for page in document.neurons[:6]:
        ruling, shown = verdict[page.name], page.controls
        assert shown is not None
        assert (shown.effect, shown.low, shown.high) == (ruling.effect, ruling.low, ruling.high)
        assert shown.effects == tuple(verdict.control_neuron_effect.tolist())
        assert (shown.delta, shown.unit) == (verdict.delta, "nats")
        assert page.verdict.startswith(ruling.label)
        assert page.row == next(row for row in document.rows if row["neuron"] == page.name)
        moves = "raises" if ruling.effect > 0 else "lowers"
        assert f"mean ablation of it alone {moves} logit_diff, by " in page.summary
    untried = document.neurons[6]
    assert untried.controls is None
    assert untried.verdict == ""
    assert any("Not tried" in text for text in untried.caveats)
    assert "not for quoting" in " ".join(document.neurons[-1].caveats)


def test_its_own_layers_controls_are_shown_where_those_were_compared() -> None:
    verdict = make_verdict()
    verdict = replace(verdict, provenance=verdict.provenance | {"control_neurons": "own layer"})
    found = gather({"s": selection(), "v": verdict})
    page = next(page for page in found.neurons if page.name == "L2N1")
    wanted = [
        effect
        for name, effect in zip(
            verdict.control_neurons, verdict.control_neuron_effect.tolist(), strict=True
        )
        if name.startswith("L2N")
    ]
    assert page.controls is not None
    assert list(page.controls.effects) == wanted


def test_a_circuit_is_a_graph_with_every_tested_edge(document: Document) -> None:
    (graph,), circuit = document.circuits, make_circuit()
    assert graph.anchor == "circuit-L28N907"
    assert len(graph.edges) == len(circuit.edges)
    ids = [node.id for node in graph.nodes]
    assert len(set(ids)) == len(ids)
    for shown, edge in zip(graph.edges, circuit.edges, strict=True):
        assert (shown.sender, shown.receiver) == (str(edge.sender), str(edge.receiver))
        assert {shown.sender, shown.receiver} <= set(ids)
        assert (shown.effect, shown.low, shown.high) == (edge.effect, edge.low, edge.high)
        assert (shown.share, shown.q, shown.verdict) == (edge.share, edge.q, edge.verdict)
    assert [node.label for node in graph.nodes if node.start] == ["L28N907"]
    columns = {node.column: node.place for node in graph.nodes}
    assert sorted(columns, key=lambda name: columns[name]) == sorted(columns, key=int)
    assert dict(graph.unit) == {"L28N907": "activation", "logit_diff": "nats"}
    assert "raises the target" in graph.sign


def test_a_neuron_in_a_circuit_is_linked_both_ways() -> None:
    found = gather({"circuit": make_circuit(), "selection": selection(("L28N907",))})
    (page,) = [page for page in found.neurons if page.name == "L28N907"]
    assert page.circuits == ("circuit-L28N907",)
    linked = {node.neuron for node in found.circuits[0].nodes if node.neuron}
    assert linked == {"L28N907"}  # L29N1010 stands in it and has no page
    twice = gather({"a/circuit": make_circuit(), "b/circuit": make_circuit()})
    anchors = [graph.anchor for graph in twice.circuits]
    assert len(set(anchors)) == 2


def test_cards_are_the_results_own_printing(document: Document) -> None:
    results = whole()
    assert {card.title: card.text for card in document.cards} == {
        name: repr(one) for name, one in results.items()
    }
    table = next(card.table for card in document.cards if card.title == "dose")
    frame = make_curve().frame()
    assert table[0] == tuple(frame.columns)
    assert len(table) == 1 + len(frame)
    assert not next(card.table for card in document.cards if card.title == "explore")


def test_who_gets_a_page() -> None:
    assert [p.name for p in gather(whole(), neurons=3).neurons] == list(TRIED[:3])
    assert gather(whole(), neurons=0).neurons == ()
    missing = {fact.name: fact.value for fact in gather(whole(), neurons=3).missing}
    assert "3 of 11 neurons" in missing["further pages"]
    with pytest.raises(LensSkillsError, match="0 or more, not -1"):
        gather(whole(), neurons=-1)


# ── nothing found, and much found ────────────────────────────────────────────────────────────────


def test_nothing_found_is_said() -> None:
    none = replace(
        make_selection(), neurons=torch.zeros(0, 2, dtype=torch.long), position=(), rows=(),
        attrition={"neurons": 120, "associated": 0, "confirmed": 0},
        **dict.fromkeys(("r_explore", "r_confirm", "p", "q", "mean", "std"), torch.zeros(0)),
    )  # fmt: skip
    found = gather({"scores": make_scores(), "selection": none})
    assert "Nothing was found: no neuron is associated with label:plural." in found.found
    assert found.rows == found.neurons == ()
    assert [step.count for step in found.attrition] == [120, 0, 0]
    assert found.every is not None
    unconfirmed = gather(replace(none, rows=make_selection().rows[4:]))
    assert "Nothing was found that holds: of 3 associated neurons" in " ".join(unconfirmed.found)
    assert len(unconfirmed.rows) == 3


def test_scores_without_a_null_claim_nothing() -> None:
    found = gather(make_scores(nulls=False))
    assert "without a null" in found.found[0]
    assert found.rows == ()
    assert all(value is None for value in found.every.threshold.values())  # type: ignore[union-attr]


def test_scores_alone_show_what_is_associated_on_explore() -> None:
    scores = make_scores()
    found = gather(scores[METRIC])
    view = scores[METRIC]
    own = [row for row in found.rows if str(row["analysis"]).endswith(METRIC)]
    beyond = view.associated.any(0).nonzero()[:, 0].tolist()
    assert len(own) == len(beyond)
    names = scores.names()
    for row in own:
        place = names.index(str(row["neuron"]))
        assert row["r_explore"] == float(view.r[0, place])
        assert (row["explore_low"], row["explore_high"]) == (
            float(view.low[0, place]), float(view.high[0, place]),
        )  # fmt: skip
    assert any("Correlates, not causes" in text for text in found.caveats)
    assert any(fact.name == "confirmation" for fact in found.missing)


def test_five_thousand_hits_take_seconds() -> None:
    rows = tuple(
        evidence_row(0, "B", "", name=f"L{k % 30}N{k}", layer=k % 30, neuron=k, r_confirm=0.5)
        for k in range(5000)
    )
    numbers = torch.full((5000,), 0.5, dtype=torch.float64)
    many = replace(
        make_selection(),
        neurons=torch.tensor([[k % 30, k] for k in range(5000)]),
        position=("last",) * 5000,
        rows=rows,
        **dict.fromkeys(("r_explore", "r_confirm", "p", "q", "mean", "std"), numbers),
    )
    begun = time.monotonic()
    found = gather(many)
    assert time.monotonic() - begun < 10
    assert len(found.rows) == 5000
    assert len(found.neurons) == 100
    assert not found.cards[0].table  # it is the table of neurons


def test_exploratory_results_carry_their_stamp() -> None:
    found = gather({"s": selection(), "v": make_verdict(exploratory=True)})
    assert any(text.startswith("EXPLORATORY") for text in found.caveats)
    assert all(any("Exploratory" in text for text in page.caveats) for page in found.neurons)


# ── sources ──────────────────────────────────────────────────────────────────────────────────────


def saved(folder: Path) -> Path:
    """A run of the shell: its manifest, and the results of its steps."""
    folder.mkdir(parents=True)
    manifest = {"format": 2, "command": "lens-skills score agreement --out old/place"}
    (folder / "run.json").write_text(json.dumps(manifest | {"task": "agreement"}))
    for name, one in whole().items():
        one.save(folder / name)
    asked = {"--fdr": 0.05, "--top": 200, "--grade": None, "the selection": "L0N1"}
    write_asked(folder / "selection-label_plural", asked)
    write_asked(folder / "circuit-L28N907", {"--edges": 60})
    (folder / "figures").mkdir()
    return folder


def test_a_run_folder_says_how_it_was_made(tmp_path: Path) -> None:
    run = saved(tmp_path / "run")
    found = gather(run)
    assert found.reproduce[0] == "lens-skills score agreement --out old/place"
    assert set(found.reproduce[1:]) == {
        f"lens-skills select {run} --metric label:plural --fdr 0.05 --top 200",
        f"lens-skills circuit {run} --neuron L28N907 --edges 60",
    }
    commands = {fact.name: fact.value for fact in found.missing}
    assert commands["explanations"] == f"lens-skills explain {run}"
    assert "verdict" not in commands
    assert {row["neuron"] for row in found.rows} >= set(TRIED)


def test_a_moved_folder_and_one_that_cannot_be_written_say_the_same(tmp_path: Path) -> None:
    run = saved(tmp_path / "run")
    before = gather(run)
    moved = Path(shutil.move(run, tmp_path / "elsewhere"))
    for path in (moved, *moved.iterdir()):
        os.chmod(path, 0o555 if path.is_dir() else 0o444)
    try:
        after = gather(moved)
    finally:
        for path in (moved, *moved.iterdir()):
            os.chmod(path, 0o755 if path.is_dir() else 0o644)
    assert (after.rows, after.neurons, after.cards) == (before.rows, before.neurons, before.cards)


def test_the_examples_of_each_of_several_splits_are_named() -> None:
    about = {"splits": ["explore split", "confirm split"], "examples": ["a1", "b2"]}
    facts = versions_of([], open_sources(no_shortcuts("correct", "none is strong", about)))
    assert [(fact.name, fact.value) for fact in facts] == [
        ("examples of the explore split (hash)", "a1"),
        ("examples of the confirm split (hash)", "b2"),
    ]


def test_a_damaged_part_is_named_and_the_rest_shown(tmp_path: Path) -> None:
    run = saved(tmp_path / "run")
    (run / "verdict-label_plural" / "result.safetensors").write_bytes(b"cut")
    older = run / "dose" / "result.json"
    older.write_text(json.dumps(json.loads(older.read_text()) | {"format": 1}))
    found = gather(run)
    missing = {fact.name: fact.value for fact in found.missing}
    assert "damaged" in missing["verdict-label_plural"]
    assert "format 1" in missing["dose"]
    assert missing["verdict"] == f"lens-skills verify {run}"
    assert len(found.rows) == 11
    assert all(page.controls is None for page in found.neurons)


def test_a_run_that_was_broken_off_says_so(tmp_path: Path) -> None:
    run = saved(tmp_path / "run")
    shutil.rmtree(run / "verdict-label_plural")
    (run / "verdict-checkpoint-label_plural").mkdir()
    missing = {fact.name: fact.value for fact in gather(run).missing}
    assert "goes on where it stopped" in missing["verdict of label_plural"]


def test_a_folder_of_studies_is_one_report(tmp_path: Path) -> None:
    for name in ("one", "two"):
        for kind, one in whole().items():
            one.save(tmp_path / name / kind)
    found = gather(tmp_path)
    assert {row["analysis"] for row in found.rows} == {"one", "two"}
    assert len(found.rows) == 22
    assert len({page.name for page in found.neurons}) == len(found.neurons)
    assert any(fact.name == "in agreement · label:plural" for fact in found.neurons[0].facts)
    titles = {f"{name}/{kind}" for name in ("one", "two") for kind in whole()}
    assert {card.title for card in found.cards} == titles


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({}, "the collection is empty"),
        ({"a": 3}, "'a' is a int, no result"),
        (3.5, "made of results, not of a float"),
        ("no/such/folder", "there is no such folder"),
    ],
)
def test_what_is_no_source(source: Any, says: str) -> None:
    with pytest.raises(LensSkillsError, match=says):
        gather(source)


def test_an_empty_folder_and_one_with_nothing_readable(tmp_path: Path) -> None:
    with pytest.raises(LensSkillsError, match=r"no result in .* that can be read"):
        gather(tmp_path)
    make_curve().save(tmp_path / "dose")
    (tmp_path / "dose" / "result.json").write_text("{")
    with pytest.raises(LensSkillsError, match=r"no result .*dose: .*damaged"):
        gather(tmp_path)


def test_one_saved_result_and_one_in_memory_say_the_same(tmp_path: Path) -> None:
    verdict = make_verdict()
    one, other = gather(verdict), gather(verdict.save(tmp_path / "Verdict"))
    assert one.rows == other.rows
    assert one.neurons == other.neurons
    assert [row["effect"] for row in one.rows] == sorted(
        (ruling.effect for ruling in verdict.singles), key=lambda effect: -abs(effect)
    )


# ── examples ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def task() -> Any:
    return ls.tasks.agreement()[:48]


@pytest.fixture(scope="module")
def scores(tiny_bridge: Any, task: Any) -> Scores:
    """Of the tiny model; every neuron passes for associated."""
    found = ls.score(tiny_bridge, task, metrics=[METRIC], n_permutations=20)
    return replace(found, p_family=torch.zeros_like(found.r))


def test_examples_are_shown_as_they_were_read(tiny_bridge: Any, task: Any, scores: Scores) -> None:
    names = scores[METRIC].top(4).names
    examples = ls.activating_examples(tiny_bridge, task, names, lenses=("logit", "jacobian"))
    found = gather(scores, neurons=4, examples=examples)
    assert sorted(page.name for page in found.neurons) == sorted(names)
    told = examples.examples.set_index("id")
    for page in found.neurons:
        kept, down = examples[page.name], page.quantiles
        if -kept["lowest"].low > kept["highest"].high:  # strongest below 0: shown from there
            assert down[0].rows[0].activation == kept["lowest"].excerpts[-1].activation
            down = tuple(replace(part, rows=part.rows[::-1]) for part in reversed(down))
        page = replace(page, quantiles=down)
        assert [part.name for part in page.quantiles] == [part.name for part in kept.quantiles]
        for shown, part in zip(page.quantiles, kept.quantiles, strict=True):
            assert (shown.low, shown.high, shown.n_examples) == (
                part.low, part.high, part.n_examples,
            )  # fmt: skip
            for row, excerpt in zip(shown.rows, part.excerpts, strict=True):
                assert (row.tokens, row.values) == (excerpt.tokens, excerpt.values)
                assert (row.read, row.activation) == (excerpt.read, excerpt.activation)
                assert row.group == told.loc[excerpt.id, "group"]
                assert row.labels == (f"plural = {told.loc[excerpt.id, 'label:plural']}",)
        lenses = {one.lens: one for one in page.written}
        last = page.name.startswith("L3")  # where both lenses are one
        assert list(lenses) == ["logit lens", *(["Jacobian lens"] if not last else [])]
        assert ("no layer follows" in lenses["logit lens"].how) == last
        assert lenses["logit lens"].promoted == kept.writes[0].promoted
        r = dict(examples.correlations()[page.name])
        wanted = {name: x for name, x in r.items() if abs(x) >= 0.3 and name != page.name}
        assert dict(page.correlated) == pytest.approx(wanted)
        sizes = [abs(x) for _, x in page.correlated]
        assert sizes == sorted(sizes, reverse=True)


def test_of_a_long_prompt_the_tokens_around_the_one_that_is_read(
    tiny_bridge: Any, scores: Scores
) -> None:
    words = " ".join(["the old key"] * 40)
    long = [Example(id=str(n), prompt=f"{words} {n}", group=str(n)) for n in range(8)]
    examples = ls.activating_examples(tiny_bridge, long, ["L1N2"], lenses=(), per_quantile=1)
    found = pages(["L1N2"], (), open_sources(scores), examples, (), ())
    for part in found[0].quantiles:
        for row in part.rows:
            assert len(row.tokens) == len(row.values) == 48
            assert row.tokens[0].startswith("…")
            assert row.read == 47
            assert row.values[row.read] == pytest.approx(row.activation, abs=1e-5)


def test_a_report_with_the_model_keeps_what_it_read(
    tiny_bridge: Any, task: Any, scores: Scores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores.save(tmp_path / "run" / "explore")
    path = ls.report(
        tmp_path / "run",
        tmp_path / "new" / "report.html",
        model=tiny_bridge,
        examples=task,
        neurons=3,
    )
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    kept = ls.load(tmp_path / "run" / "activating-examples")
    assert isinstance(kept, ActivatingExamples)
    assert sorted(kept) == sorted(one.name for one in gather(tmp_path / "run", neurons=3).neurons)
    monkeypatch.setattr(
        "lens_skills.reporting.written_report.activating_examples",
        lambda *_, **__: pytest.fail("read again"),
    )
    ls.report(tmp_path / "run", path, model=tiny_bridge, neurons=2)
    assert not list(path.parent.glob(".*"))


def test_a_result_writes_its_own_report(scores: Scores, tmp_path: Path) -> None:
    path = scores.report(tmp_path / "report.html", neurons=1)
    assert path == tmp_path / "report.html"
    assert "label:plural" in path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_what_a_report_cannot_be_made_of(
    tiny_bridge: Any, task: Any, scores: Scores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    with pytest.raises(LensSkillsError, match=r"is a folder\. Name the file"):
        ls.report(scores, tmp_path)
    with pytest.raises(LensSkillsError, match="give model="):
        ls.report(scores, path, examples=task)
    with pytest.raises(LensSkillsError, match="hold no examples to read it on"):
        ls.report(scores, path, model=tiny_bridge)
    other = replace(scores, provenance=scores.provenance | {"model_fingerprint": "f" * 64})
    with pytest.raises(LensSkillsError, match="of other weights"):
        ls.report(other, path, model=tiny_bridge, examples=task)
    soft = {"model_fingerprint": "f" * 64, "prompt": "abc"}
    with pytest.raises(LensSkillsError, match="Give it as prompt="):
        ls.report(replace(scores, provenance=scores.provenance | soft), path, model=tiny_bridge,
                  examples=task)  # fmt: skip
    inside = tmp_path / "file"
    inside.write_text("x")
    with pytest.raises(LensSkillsError, match="cannot be written"):
        ls.report(scores, inside / "report.html")
    monkeypatch.setattr(
        "lens_skills.reporting.written_report.render",
        lambda *_: 1 / 0,  # type: ignore[return-value]
    )
    with pytest.raises(ZeroDivisionError):
        ls.report(scores, path)
    assert not path.exists()


def test_pictures_have_words_and_numbers() -> None:
    found = gather({"selection": selection(), "verdict": make_verdict(), "dose-L0N1": make_curve()})
    kinds = [picture.anchor for picture in found.pictures]
    assert kinds == [
        "figure-attrition-label_plural", "figure-effect_forest-label_plural",
        "figure-effect_against_controls-label_plural", "figure-dose_response-L0N1",
    ]  # fmt: skip
    for picture in found.pictures:
        assert picture.svg.count("<svg") == 1
        assert "script" not in picture.svg
        assert len(picture.alt) > 60
        assert picture.title
        assert 1 < len(picture.table) <= 61
    attrition = figures.attrition(selection(), make_verdict())
    assert found.pictures[0].table[0] == tuple(attrition.frame.columns)
    assert found.pictures[0].alt.startswith("120 neurons → 7 associated")
    assert "6 neurons tried: " in found.pictures[1].alt
    assert not [fact for fact in found.missing if fact.name.startswith("figure")]


def test_a_figure_that_cannot_be_drawn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise LensSkillsError("nothing to draw")

    module = importlib.import_module("lens_skills.plotting.result_figures")
    monkeypatch.setattr(module, "attrition", refuse)
    monkeypatch.setitem(DRAWERS, "effect_forest", (lambda *_: 1 / 0, "column"))
    results = {"selection": selection(), "verdict": make_verdict()}
    found = gather(results)
    told = {fact.name: fact.value for fact in found.missing if fact.name.startswith("figure")}
    assert "nothing to draw" in told.values()
    assert any("ZeroDivisionError" in value for value in told.values())
    assert len(told) == 2
    assert [picture.anchor for picture in found.pictures] == [
        "figure-effect_against_controls-label_plural"
    ]
    monkeypatch.setattr(module, "effect_forest", lambda *_: 1 / 0)
    (failed,) = [fact for fact in gather(results).missing if fact.name == "figures"]
    assert "ZeroDivisionError" in failed.value


@pytest.fixture(scope="module")
def studied(tiny_bridge: Any) -> Any:
    return ls.study(
        tiny_bridge,
        ls.tasks.agreement()[:96],
        metric=METRIC,
        fractions=(0.5, 0.5),
        n_permutations=39,
    )


@pytest.mark.parametrize("text", ['{"format": 9, "asked": {}}', '{"format": 1'])
def test_a_command_that_cannot_be_read_is_named_and_not_made_up(text: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "run")
    whole_report = gather(folder)
    (folder / ".circuit-L28N907-asked.json").write_text(text)
    found = gather(folder)
    lost = set(whole_report.reproduce) - set(found.reproduce)
    assert [command.split()[1] for command in lost] == ["circuit"]
    assert "the command of circuit-L28N907" in {fact.name for fact in found.missing}


def test_a_study_beside_its_own_steps_is_shown_once(studied: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    parts = {"study": studied, "explore": studied.scores, "confirm-label_plural":
             studied.confirm_scores, "selection-label_plural": studied.selection}  # fmt: skip
    for name, part in parts.items():
        part.save(folder / name)
    make_curve().save(folder / "dose-L0N1")
    (folder / "run.json").write_text('{"command": "lens-skills study agreement --out run"}')
    for step in ("selection-label_plural", "dose-L0N1"):
        write_asked(folder / step, {"--limit": 8})
    found, alone = gather(folder), gather(studied)
    assert found.found == alone.found
    assert found.rows == alone.rows
    assert found.reproduce == (
        "lens-skills study agreement --out run",
        f"lens-skills dose {folder} --limit 8",
    )
    assert {card.title for card in found.cards} == {"study", "dose-L0N1"}
    assert {fact.name: fact.value for fact in found.asked}["looked for"] == METRIC
    assert any(fact.name == "explore split" for fact in found.data)


def test_a_study_gives_the_examples_itself(studied: Any, tiny_bridge: Any, tmp_path: Path) -> None:
    scores = replace(studied.scores, p_family=torch.zeros_like(studied.scores.r))
    rows = tuple(
        evidence_row(k, "", "", name=f"L{k}N2", layer=k, neuron=2, r_confirm=None) for k in range(2)
    )
    study = replace(studied, scores=scores, selection=replace(studied.selection, rows=rows))
    path = study.report(tmp_path / "report.html", model=tiny_bridge)
    page = path.read_text(encoding="utf-8")
    assert "examples on the neurons&#39; pages" in page
    assert "Jacobian lens" in page


def test_diagnostics_and_explanations_stand_on_their_neurons_pages(
    tiny_bridge: Any, task: Any
) -> None:
    names = ["L0N1", "L1N2", "L2N3"]
    results = {
        "explanations": ls.explain(tiny_bridge, task, names, n_permutations=0),
        "redundancy": ls.redundancy(tiny_bridge, task, names, threshold=0.9),
        "memorisation": ls.memorisation(tiny_bridge, task, names, n_draws=19, n_bins=4),
        "regulators": ls.confidence_regulators(
            tiny_bridge, task, names, n_effects=8, n_controls=19, n_null=2
        ),
    }
    found = gather(results)
    assert [page.name for page in found.neurons] == names
    for page in found.neurons:
        one = results["explanations"][page.name]
        assert page.explanation == one.sentences()
        assert [row[0] for row in page.features[1:]] == [row["feature"] for row in one.rows[:15]]
        explained = [row["variance_explained"] for row in one.rows[:15]]
        assert [row[1] for row in page.features[1:]] == explained
        told = {fact.name: fact.value for fact in page.diagnostics}
        regulator = results["regulators"][page.name]
        assert told["confidence regulator"].startswith(regulator["word"])
        row = results["memorisation"].frame().set_index("name").loc[page.name]
        assert f"entropy {row['entropy']:.2f} bits" in told["memorisation (of the set)"]
        assert "redundancy" in told
        whole = results["redundancy"]
        cluster = int(whole.cluster[whole.names.index(page.name)])
        assert {page.name, *page.cluster} == set(whole.members(cluster))
        ends = {part.name: part for part in page.quantiles}
        assert set(ends) == {"highest", "lowest"}
        assert ends["highest"].high == max(excerpt.activation for excerpt in one.top)
        (written,) = page.written
        assert written.promoted == one.writes.promoted


def shell(*arguments: object) -> Any:
    with ls.config():
        return CliRunner().invoke(app.app, [str(part) for part in arguments])


def test_the_shell_reports_a_run_whose_model_and_task_are_gone(tmp_path: Path) -> None:
    run = saved(tmp_path / "run")
    done = shell("report", run, "--neurons", 2)
    assert done.exit_code == 0, done.output
    assert "note: no examples are read: " in done.stderr
    assert done.stdout == f"open it in a browser: {(run / 'report.html').as_uri()}\n"
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "L0N1" in page
    elsewhere = shell("report", run, "--no-model", "--out", tmp_path / "other" / "page.html")
    assert elsewhere.exit_code == 0, elsewhere.output
    assert "note" not in elsewhere.stderr
    assert (tmp_path / "other" / "page.html").exists()


def test_the_shell_reports_any_folder_of_results(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_verdict().save(tmp_path / name / "verdict")
    done = shell("report", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["report"] == str(tmp_path / "report.html")
    assert any("--model names no model" in note for note in told["notes"])
    refused = shell("report", tmp_path / "nothing")
    assert refused.exit_code == 1
    assert "there is no such folder" in refused.output
