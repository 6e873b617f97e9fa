"""`study(by=…)`: what knows and what does, found and graded alike; a cause that is only that."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import lens_skills as ls
from lens_skills.cli import app
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.scoring.predicted_evidence import Predicted, smallest_seen
from lens_skills.stats.multiple_testing import group_codes
from lens_skills.studies import Study, study
from lens_skills.tasks import Task, pairs
from tests.planted import planted

NOUNS = (" key", " girl", " boy", " author", " doctor", " cabinet")  # one token each, with s too
FRAMES = ("hello {0} and the{1}", "to the {0} near the{1}", "when {0} or the{1}", "we saw {0}{1}")
BOTH, DECOY, GENERAL, NOTHING = "L0N11", "L0N5", "L0N30", "L0N20"


def crossed_task(n: int = 240) -> Task:
    """Whether the noun is plural decides the answer, and which noun it is decides the foil.

    So a neuron that tells nouns apart may do as much for the answer over the foil as one that
    tells numbers apart, and knows nothing of number.
    """
    random = np.random.default_rng(0)
    rows = []
    for pair in range(n // 2):
        noun = int(random.integers(len(NOUNS)))
        text = FRAMES[pair % 4].format(f"{pair}", NOUNS[noun])
        for plural in (0, 1):
            rows.append(
                {
                    "text": text + "s" * plural,
                    "verb": " was" if plural else " here",
                    "other": " near" if noun < 3 else " and",
                    "plural": plural,
                    "coin": int(random.integers(2)),
                    "pair": str(pair),
                    "kind": f"kind {pair % 20} {random.integers(2)}",
                }
            )
    return pairs(
        pd.DataFrame(rows), clean="text", answer="verb", foil="other", group="pair",
        labels=("plural", "coin"), kind="kind", name="crossed",
    )  # fmt: skip


@pytest.fixture(scope="module")
def crossed(tiny_bridge: Any) -> Iterator[Any]:
    """The tiny model with one neuron that knows and does, one that knows, and one that does."""

    def first(text: str) -> int:
        return tiny_bridge.tokenizer.encode(text, add_special_tokens=False)[0]

    def toward(right: str, wrong: str) -> torch.Tensor:
        return (tiny_bridge.W_U[:, first(right)] - tiny_bridge.W_U[:, first(wrong)]).detach()

    plural, singular = ([first(noun + end) for noun in NOUNS] for end in ("s", ""))
    some, others = (
        [first(n + e) for n in part for e in ("", "s")] for part in (NOUNS[:3], NOUNS[3:])
    )
    with ExitStack() as stack:
        for neuron, sides, writes in (
            (11, (plural, singular), toward(" was", " here")),
            (5, (plural, singular), 0.0),
            (30, (some, others), toward(" and", " near")),
        ):
            stack.enter_context(planted(tiny_bridge, 0, neuron, *sides, writes=writes))
        yield tiny_bridge


def run(model: Any, task: Task | None = None, **options: Any) -> Study:
    few = ls.controls(sets=0, neurons=60)
    defaults: dict[str, Any] = {"metric": "label:plural", "n_permutations": 60, "n_intervene": 64}
    defaults |= {"most": 2, "by": "both", "controls": few}
    with ls.config(batch_size=80, progress=False):
        return study(model, crossed_task() if task is None else task, **defaults | options)


@pytest.fixture(scope="module")
def found(crossed: Any) -> Study:
    return run(crossed)


def grades(result: Study) -> dict[str, str]:
    return {row["name"]: row["grade"] for row in result.evidence().to_dict("records")}


def test_each_planted_neuron_gets_its_word(found: Study) -> None:
    """Knows and does: A by both doors. Knows only: C, by one. Does only: general, by the other."""
    table = found.evidence().set_index("name")
    assert found.verdict is not None
    assert dict(table.loc[[BOTH, DECOY, GENERAL], "grade"]) == {
        BOTH: "A", DECOY: "C", GENERAL: "general",
    }  # fmt: skip
    assert dict(table.loc[[BOTH, DECOY, GENERAL], "found_by"]) == {
        BOTH: "both", DECOY: "association", GENERAL: "prediction",
    }  # fmt: skip
    assert [found.verdict[name].word for name in (BOTH, GENERAL)] == ["supports"] * 2
    assert not found.verdict[DECOY].causal
    # Both are removed by the edit, as was predicted on either split before.
    for column in ("predicted_explore", "predicted_confirm", "effect"):
        assert (table.loc[[BOTH, GENERAL], column] < 0).all()
    assert float(table.loc[DECOY, "predicted_explore"]) == 0
    assert table.loc[GENERAL, "stopped_by"] == "no association"
    # What neither knows nor does is tested by prediction (here all are), and through no door.
    nothing = table.loc[NOTHING]
    assert (nothing["grade"], nothing["found_by"], nothing["verdict"]) == ("", "", "")


def test_the_card_tells_both_doors(found: Study) -> None:
    first = found.attrition_line()
    assert first.startswith("192 neurons → ")
    assert "; by prediction 192 largest predicted effects → " in first
    assert "→ 2 tried → 1 causal (1 supports); by prediction" in first
    assert "→ 2 tried → 2 causal (2 supports), 1 of them general; " in first
    both = sum(row["found_by"] == "both" for row in found.selection.rows)
    assert first.endswith(f"; {both} through both doors")
    card = repr(found)
    assert " ".join(card.split()).startswith(first)
    (row,) = [line for line in card.splitlines() if line.startswith("G ")]
    assert GENERAL in row
    assert row.endswith("supports")
    assert any(line.split()[:2] == ["A*", f"{BOTH}+"] for line in card.splitlines())
    assert max(map(len, card.split("\nPreflight\n")[0].splitlines())) <= 80


def test_what_general_does_not_say_stands_beside_it(found: Study) -> None:
    bar = found.scores["label:plural"].threshold
    assert bar is not None
    caution = found.caution()
    assert caution.startswith("1 general: they move logit_diff, and no association with")
    assert f"one of |r| > {bar:.2f} is, a true " in caution
    assert "they may serve every task alike" in caution
    counts = found.selection.steps(found.verdict)
    skilled = replace(found, preflight=replace(found.preflight, competences=()))
    text = skilled.conclusion()
    assert text.startswith(f"{counts['association']['confirmed']} neurons carry this metric on ")
    assert f"Of {counts['prediction']['confirmed']} an effect on logit_diff is predicted" in text
    # It is only said where something is called so.
    assert "general" not in replace(found, verdict=None).caution()


def test_by_prediction_alone(crossed: Any, found: Study) -> None:
    result = run(crossed, by="prediction", fractions=(0.4, 0.2))
    assert set(result.selection.names) == {
        row["name"] for row in found.selection.rows if row["found_by"] in ("prediction", "both")
    }
    assert DECOY not in result.selection.names
    assert result.selection.to_try(2).names == [GENERAL, BOTH]
    assert result.attrition_line().startswith("192 neurons → 192 largest predicted effects → ")
    # What they know is measured all the same.
    row = result.evidence().set_index("name").loc[BOTH]
    assert row["grade"] == "B"
    assert row["r_confirm"] > 0.8
    figure = ls.figures.attrition(result.selection)
    assert figure.frame["count"].iloc[0] == 192


def test_by_association_nothing_is_differentiated(
    crossed: Any, found: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("differentiated")

    monkeypatch.setattr(sys.modules["lens_skills.studies"], "predicted_means", refuse)
    result = run(crossed, by="association", fractions=(0.4, 0.2))
    assert result.selection.predicted == {}
    assert "found_by" not in result.evidence()
    # The same neurons as by both, whose rows of other neurons change nothing of theirs.
    theirs = [
        row["name"] for row in found.selection.rows if row["found_by"][:5] in ("assoc", "both")
    ]
    assert set(theirs) >= {BOTH, DECOY}
    assert set(result.selection.names) <= set(theirs)
    with pytest.raises(AssertionError, match="differentiated"):
        run(crossed, fractions=(0.4, 0.2))


def test_the_numbers_are_those_of_prescreen(crossed: Any, found: Study) -> None:
    """Which is held against hooks written by hand and against finite differences elsewhere."""
    do = ls.ablate("mean", over=found.scores)
    for part, column in (
        (found.explore, "predicted_explore"),
        (found.confirm, "predicted_confirm"),
    ):
        other = ls.prescreen(crossed, part, metric="logit_diff", do=do)
        assert other.predicted is not None
        expected = dict(zip(other.names, other.predicted.mean(1).tolist(), strict=True))
        for row in found.selection.rows:
            assert row[column] == pytest.approx(expected[row["name"]], abs=1e-6)


def test_at_most_so_many_of_each_door_are_tried(found: Study) -> None:
    for most in (1, 2, 4):
        tried = found.selection.to_try(most)
        rows = {row["name"]: row["found_by"] for row in found.selection.rows}
        doors = [rows[name] for name in tried.names]
        assert sum(door in ("association", "both") for door in doors) >= most
        assert len(doors) <= 2 * most
        assert tried.attrition["tried"] == len(doors) == len(tried.r_confirm) == len(tried.position)
        assert tried.to_try(1) is tried
    assert {BOTH, DECOY, GENERAL} == set(found.selection.to_try(2).names)


def test_an_association_on_confirm_alone_keeps_a_cause_from_being_general(found: Study) -> None:
    changed = [
        row | {"stopped_by": "association on explore"} if row["name"] == GENERAL else row
        for row in found.selection.rows
    ]
    selection = replace(found.selection, rows=tuple(changed))
    assert grades(replace(found, selection=selection))[GENERAL] == ""


def test_a_saved_study_is_opened_again(found: Study, tmp_path: Path) -> None:
    again = ls.load(found.save(tmp_path / "study"))
    assert repr(again) == repr(found)
    assert (again.selection.by, again.selection.predicted) == ("both", found.selection.predicted)
    pd.testing.assert_frame_equal(again.evidence(), found.evidence())
    table = pd.read_csv(tmp_path / "study" / "neurons.csv").set_index("name")
    assert table.loc[GENERAL, "grade"] == "general"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"causal_metric": "correct"}, "'correct' has no gradient.*causal_metric=….*'association'"),
        ({"by": "effect"}, "no way by='effect' to find neurons. Choose from: association"),
        ({"position": "mean"}, "mean"),
        ({"fractions": (0.8, 0.05)}, "a prediction confirmed needs 8 groups at least"),
    ],
    ids=["no gradient", "no door", "pooled", "few groups"],
)
def test_what_cannot_be_predicted(
    crossed: Any, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before anything is read that takes time."""
    import sys

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("scored")

    monkeypatch.setattr(sys.modules["lens_skills.studies"], "score", refuse)
    monkeypatch.setattr(sys.modules["lens_skills.studies"], "run_preflight", refuse)
    with pytest.raises(LensSkillsError, match=message):
        run(crossed, **options)


def test_a_task_without_answers_has_no_effects_to_predict(crossed: Any) -> None:
    bare = Task(
        "bare",
        [
            Example(e.id, e.prompt, labels=e.labels, group=e.group, kind=e.kind)
            for e in crossed_task(80)
        ],
    )
    with pytest.raises(LensSkillsError, match="by='both' predicts effects, and the task has no"):
        run(crossed, bare)


@pytest.mark.parametrize(("draw", "most"), [("normal", 7), ("heavy", 7), ("skewed", 23)])
def test_what_has_no_mean_effect_is_not_confirmed(draw: str, most: int) -> None:
    """The 40 largest of 1,000 on explore, whose means are noise, in uneven groups.

    Of 60 studies at 5 % more than 7 find something with a probability of 1.5 %; exponential group
    effects are worse (.27 in the worst case simulated), which the docstring says.
    """
    random = np.random.default_rng(0)
    draws = {
        "normal": lambda *size: random.normal(size=size),
        "heavy": lambda *size: random.standard_t(2, size=size),
        "skewed": lambda *size: random.exponential(size=size) - 1,
    }[draw]
    confirmed, n_studies, n_groups = 0, 60, 16
    for _ in range(n_studies):
        sizes = random.integers(2, 9, n_groups)
        groups = np.repeat(np.arange(n_groups), sizes).astype(str).tolist()
        explore = torch.from_numpy(draws(1000, 2 * n_groups).mean(1))
        top = explore.abs().argsort(descending=True)[:40]
        values = draws(40, n_groups)[:, group_codes(groups)] + 0.5 * random.normal(
            size=(40, len(groups))
        )
        found = of_values(top, explore[top], values, groups)
        confirmed += bool(found.confirmed.any())
    assert confirmed <= most


def of_values(places: torch.Tensor, explore: torch.Tensor, values: Any, groups: list[str]) -> Any:
    rows = torch.stack([torch.zeros_like(places), places], dim=1)
    return Predicted.of(
        rows, explore, torch.as_tensor(values), groups, fdr=0.05, metric="m", unit="nats", do="edit"
    )


def test_what_is_there_is_confirmed_where_its_sign_stays() -> None:
    random = np.random.default_rng(1)
    groups = [str(k) for k in range(16) for _ in range(4)]
    values = random.normal(size=(40, 64))
    values[:10] += 1.0
    values[10:20] -= 1.0
    explore = torch.ones(40, dtype=torch.float64)
    found = of_values(torch.arange(40), explore, values, groups)
    assert found.confirmed[:10].all()
    assert not found.confirmed[10:20].any()  # of the other sign than on explore
    assert (found.q[10:20] < 0.05).all()
    assert int(found.confirmed[20:].sum()) <= 2


def test_the_power_behind_the_word_general() -> None:
    """Of neurons that are truly so correlated, about 80 % are beyond the bar."""
    random = np.random.default_rng(2)
    n, bar = 100, 0.35
    z = np.arctanh(random.normal(0, 0.3, 400).clip(-0.9, 0.9))
    half = 1.984 / (n - 3) ** 0.5
    # Those that hardly go with the metric may be known much better.
    half = np.where(np.abs(z) < 0.2, 0.2 * half, half)
    ends = (torch.from_numpy(np.tanh(z + side * half)) for side in (0, -1, 1))
    r = smallest_seen(*ends, bar=bar, groups=[str(k) for k in range(n)])
    x = random.normal(size=(4000, n))
    y = r * x + (1 - r**2) ** 0.5 * random.normal(size=(4000, n))
    x, y = (part - part.mean(1, keepdims=True) for part in (x, y))
    seen = (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1)) > bar
    assert seen.mean() == pytest.approx(0.8, abs=0.03)


def test_every_consumer_tells_of_both_doors(found: Study, tmp_path: Path) -> None:
    from lens_skills.reporting.found_analyses import Analysis
    from lens_skills.reporting.neuron_facts import caveats_of
    from lens_skills.reporting.notebook_view import html
    from lens_skills.reporting.paper_columns import paper_table

    table = paper_table(found, most=60)
    assert "general: causal, and no association with the metric found" in table.caption
    assert {"found by", "q predicted"} <= set(table.heads)
    row = next(row for row in table.rows if row[0] == GENERAL)
    assert {"general", "prediction", "supports"} <= {*row}
    assert "general" in found.to_latex(most=60)
    drawings = {drawing.kind: drawing for drawing in ls.figures.of(found, metrics=["label:plural"])}
    steps = drawings["attrition"].frame.set_index("gate")["count"]
    assert (steps["predicted and causal"], steps["general"]) == (2, 1)
    cells = drawings["attrition"].frame.query("name == @GENERAL").set_index("gate")
    assert dict(cells["passed"].dropna()) == {
        "associated": False, "confirmed": False, "confirmed as predicted": True,
        "basis-privileged": False, "causal": True,
    }  # fmt: skip
    marks = dict(drawings["effect_against_r"].frame[["name", "mark"]].to_numpy())
    assert marks[GENERAL] == "general"
    assert not marks[BOTH]
    for drawing in (drawings["attrition"], drawings["effect_against_r"]):
        drawing.save(tmp_path)
    text = found.report(tmp_path / "report.html").read_text(encoding="utf-8")
    for words in (
        "by prediction: tested",
        "causal, and no association with the metric found; one of |r|",
        "found_by",
        "predicted_confirm",
    ):
        assert words in text
    assert "2 causal (2 supports), 1 of them general" in html(found)
    own = Analysis("", found.metric, selection=found.selection, verdict=found.verdict)
    general = next(row for row in own.rows if row["name"] == GENERAL)
    assert "General means no more than that." in " ".join(
        caveats_of(GENERAL, general, own, None, ())
    )


def test_the_shell_finds_by_both(
    crossed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shell(*arguments: object) -> Any:
        with ls.config():
            return CliRunner().invoke(app.app, [str(part) for part in arguments])

    monkeypatch.setattr("lens_skills.models.load_model", lambda *_, **__: crossed)
    asked = ["study", "agreement", "--limit", 160, "--permutations", 39, "--by", "both"]
    asked += ["--metric", "label:plural", "--delta", 0.5, "--most", 1, "--control-sets", 0]
    asked += ["--control-neurons", 25, "--intervene", 16, "--out", tmp_path / "run"]
    told = shell(*asked)
    assert told.exit_code == 0, told.output
    result = ls.load(tmp_path / "run" / "study")
    assert told.stdout == f"{result!r}\n"
    assert "by prediction 192 largest predicted effects" in " ".join(told.stdout.split())
    assert ls.load(tmp_path / "run" / "selection-label_plural").by == "both"
    assert "found_by" in (tmp_path / "run" / "evidence-label_plural.csv").read_text()
    assert told.stdout in shell("show", tmp_path / "run").stdout
    assert "holds this study. Nothing was run" in shell(*asked).stderr
    other = shell(*[part if part != "both" else "prediction" for part in asked])
    assert "--by was" in other.stderr
    wrong = shell(*[part if part != "both" else "predicton" for part in asked])
    assert wrong.exit_code == 1
    assert "Did you mean 'prediction'?" in wrong.stderr


@pytest.mark.slow
def test_the_passes_with_gradients_are_estimated(crossed: Any) -> None:
    told = ls.estimate(
        "study", crossed, crossed_task(), metric="label:plural", by="both", most=2,
        n_intervene=16, n_permutations=40, controls=ls.controls(0, neurons=24),
    )  # fmt: skip
    names = [what for what, _ in told.parts]
    assert names[1:5] == [
        "scoring explore", "scoring confirm", "predicting on explore", "predicting on confirm",
    ]  # fmt: skip
    assert names[5] in ("the verdict on 3 neurons", "the verdict on 4 neurons")
    with pytest.raises(LensSkillsError, match="no way by='effect'"):
        ls.estimate("study", crossed, crossed_task(), by="effect")
