"""What is printed of every result fits a terminal, and holds nothing of the inside."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import pandas as pd
import pytest
import torch

import lens_skills as ls
from lens_skills.activations import ActivationTable
from lens_skills.cards import CARD_WIDTH, fold
from lens_skills.circuits import Faithfulness
from lens_skills.data import Example
from lens_skills.explanation import Rationales
from lens_skills.finetuning import FineTuned
from lens_skills.interventions import Audit, Verdict, ablate
from lens_skills.interventions.attribution import Prescreen
from lens_skills.interventions.baselines import describe_source
from lens_skills.interventions.effects import Effects
from lens_skills.interventions.screening import Screening
from lens_skills.results import Result
from lens_skills.studies import Study
from lens_skills.tasks import Preflight, Task, few
from tests.plotting.conftest import make_scores, make_selection
from tests.plotting.prompts_and_skills import make_prompt, make_seeds, make_skills
from tests.plotting.results import make_continual, make_curve, make_matrix, make_verdict
from tests.plotting.test_competition_plots import make_dissection
from tests.plotting.test_diagnostic_plots import (
    make_memorisation,
    make_minimal,
    make_segmentation,
)
from tests.test_saved import Maker, result_classes

# A memory address, a name of nothing, the place in a list, 16 hex digits or more.
INSIDE = re.compile(r"0x[0-9a-f]{4}|<lambda>|lambda|<function|object at|#\d|\b[0-9a-f]{16,}\b")
LABEL = "label:a label of a name that is quite long, of which there are some=and its category"
NUMBERS = """
k bits description balanced_accuracy auroc random control norm log_variance null_share frequency
r_task r_neutral q_task p_neutral mediated variance_explained direction information overlap_top base
p q accepted
"""


class CardMaker(Maker):
    """Values that a card can be made of: the columns and the provenance that verbs write."""

    def of(self, hint: Any) -> Any:
        if get_origin(hint) in (dict, Mapping) and get_args(hint)[1] is Any:
            about = {"model": "a-model-of-some-billion-parameters-instruct", "task": "agreement"}
            return {**about, "split": "explore split", "given": [], **self.row()}
        return LABEL if hint is str and next(self.count) % 3 == 0 else super().of(hint)

    def table(self) -> pd.DataFrame:
        return pd.DataFrame([self.row()] * self.size)

    def row(self) -> dict[str, Any]:
        row = {name: 0.25 for number in NUMBERS.split() for name in _with_ends(number)}
        texts = dict.fromkeys(("name", "word", "why", "feature", "kind", "group"), LABEL)
        return (
            row
            | texts
            | {
                "low": 0.2,
                "high": 0.3,
                "stands_for": "",
                "ranked_first": True,
                "k": 1,
                "direction": 1,
                "accepted": True,
            }
        )


def _with_ends(name: str) -> list[str]:
    return [name, f"{name}_low", f"{name}_high", f"{name}_percentile"]


def made(kind: type[Result]) -> Result:
    by_hand: dict[str, Callable[[], Result]] = {
        "Audit": lambda: Audit((), _verdict(), "agreement", "explore split"),
        "Continual": make_continual,
        "DamageMatrix": make_matrix,
        "Dissection": make_dissection,
        "DoseResponse": make_curve,
        "Effects": _screened,
        "Faithfulness": _faithfulness,
        "FineTuned": _fine_tuned,
        "Memorisation": make_memorisation,
        "MinimalSet": lambda: replace(make_minimal(), metric=LABEL),
        "Rationales": _rationales,
        "ScoreComparison": make_seeds,
        "Scores": make_scores,
        "Segmentation": make_segmentation,
        "Selection": make_selection,
        "SkillMatrix": make_skills,
        "SoftPrompt": make_prompt,
        "Study": _study,
        "Verdict": _verdict,
    }
    return by_hand.get(kind.__name__, lambda: CardMaker(2).fields(kind))()


def _screened() -> Effects:
    found = CardMaker(2).fields(Effects)
    names, number = ("L0N1", "L0N2", "L3N4"), torch.tensor([0.5, -0.25, 0.125])
    chosen, drawn = torch.tensor([True, False, False]), torch.tensor([False, False, True])
    screening = Screening(names, number, number.abs(), chosen, drawn, 0.3, 0)
    return replace(found, screening=screening)


def _faithfulness() -> Faithfulness:
    found = CardMaker(2).fields(Faithfulness)
    curves = tuple(replace(curve, sizes=(1, 4)) for curve in found.curves)
    return replace(found, curves=curves)


def _fine_tuned() -> FineTuned:
    names = ("epoch", "train_loss", "held_out_loss", "held_out_accuracy")
    curve = tuple(dict.fromkeys(names, float(epoch)) for epoch in range(3))
    return replace(CardMaker(2).fields(FineTuned), curve=curve, n_examples=(60, 20))


def _rationales() -> Rationales:
    row = {
        "id": LABEL, "group": LABEL, "margin": 2.0, "start": 3, "length": 1, "text": LABEL,
        "corrupted_margin": -1.0, "effect": -0.5, "matched_effect": -0.25,
    }  # fmt: skip
    return Rationales(pd.DataFrame([row] * 2), "donors", 3, ("L0N1",), LABEL, 2.0, 1.5, 2.5, 2, {
        "model": "a-model-of-some-billion-parameters-instruct", "task": "agreement",
    })  # fmt: skip


def _verdict() -> Verdict:
    return replace(make_verdict(), tables={})


def _study() -> Study:
    maker, selection = CardMaker(2), make_selection()
    task = maker.of(Task)
    preflight = maker.fields(Preflight)
    scores = replace(make_scores(), provenance={"model": "tiny", "given": []})
    metric = selection.metric if selection.metric in scores.metrics else scores.metrics[0]
    return Study(preflight, scores, scores, selection, metric, task, task, task, _verdict())


def check_card(card: str) -> None:
    wide = [line for line in card.splitlines() if len(line) > CARD_WIDTH]
    assert wide == []
    inside = INSIDE.search(card)
    assert inside is None, f"{inside[0]!r} in\n{card}"


@pytest.mark.parametrize("kind", result_classes(), ids=lambda kind: kind.__name__)
def test_the_card_of_every_result(kind: type[Result]) -> None:
    with np.errstate(invalid="ignore"):  # made-up numbers need not divide
        check_card(repr(made(kind)))


def test_a_long_line_goes_on_further_in() -> None:
    line = "  name   " + "word " * 30
    folded = fold(f"short\n{line}\nshort").split("\n")
    assert folded[0] == folded[-1] == "short"
    assert folded[1].startswith("  name  word")  # what stood apart stays apart
    assert all(part.startswith("      word") for part in folded[2:-1])
    assert " ".join(folded[1:-1]).split() == line.split()


def effects(n_sets: int, n: int = 6, *, direct: bool = True) -> Effects:
    total = torch.arange(float(n_sets * n)).reshape(n_sets, n) / 100
    return Effects(
        names=tuple(f"L{place // 64}N{place % 64}" for place in range(n_sets)),
        clean=torch.ones(n).double(),
        total=total.double(),
        direct=total.double() / 2 if direct else None,
        example_ids=tuple(map(str, range(n))),
        groups=tuple("aabbcc"[:n]),
        metric="logit_diff",
        unit="nats",
        do="mean ablation over agreement, explore split, 384 examples",
        site="mlp.hook_post",
        position="last",
    )


@pytest.mark.parametrize("direct", [True, False])
def test_the_card_of_a_sweep_of_all_neurons(direct: bool) -> None:
    found = effects(20_000, direct=direct)
    card = repr(found)
    check_card(card)
    assert len(card.splitlines()) <= 20
    strongest = found.frame().sort_values("effect", key=abs, ascending=False).iloc[0]
    rows = [line.split() for line in card.splitlines() if line.startswith("    L")]
    assert rows[0][0] == strongest["name"]
    assert float(rows[0][1]) == pytest.approx(strongest["effect"], rel=0.01)
    assert "… 19,990 more: .frame()" in card
    assert "6 examples in 3 groups" in card
    assert "No controls and no test" in card
    assert repr(effects(0))


def test_the_card_of_a_prescreen_of_all_neurons() -> None:
    found = Prescreen(
        names=tuple(f"L{place // 64}N{place % 64}" for place in range(20_000)),
        taylor=torch.arange(20_000.0).double(),
        predicted=torch.ones(20_000, 4).double(),
        metric="logit_diff",
        do="mean ablation over agreement, explore split, 384 examples",
        position="last",
    )
    card = repr(found)
    check_card(card)
    assert len(card.splitlines()) <= 20
    assert "An estimate, not an effect" in card
    plain = repr(replace(found, predicted=None))
    check_card(plain)
    assert next(line for line in plain.splitlines() if " L" in line).split()[0] == "L312N31"


def test_the_card_of_a_table_of_activations(tmp_path: Path) -> None:
    about = {
        "model": "tiny", "site": "mlp.hook_post", "positions": ["last"], "layers": [*range(30)],
    }  # fmt: skip
    examples = [ls.Example(str(number), "x") for number in range(5000)]
    table = ActivationTable.of(torch.zeros(5000, 30, 1), examples, about)
    card = repr(replace(table, folders=(tmp_path,)))
    check_card(card.replace(str(tmp_path), "folder"))
    assert len(card.splitlines()) <= 5
    assert "layers 0 to 29, 5,000 examples" in " ".join(card.split())


def test_a_task_and_an_edit_say_where_their_examples_come_from_in_words() -> None:
    explore, _ = ls.tasks.agreement().split(0.4, 0.6, names=("explore", "rest"))
    for task in (explore, few(explore, 96), explore.where(lambda example: example.answer == " is")):
        check_card(repr(task))
        edit = ablate("mean", over=task)
        assert INSIDE.search(edit.name) is None
    assert describe_source(explore) == f"agreement, explore split, {len(explore)} examples"
    assert describe_source(few(explore, 96)) == "agreement, 96 examples of the explore split"
    assert describe_source([Example("a", "x")]) == "1 examples"
    long = Task("long", [Example("a", "shot. " * 500, " yes")])
    assert len(repr(long)) < 400
