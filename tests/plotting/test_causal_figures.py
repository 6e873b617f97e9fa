"""What holds for every figure of what interventions find; and the gallery of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lens_skills.interventions.verdict import CAUSAL, WORDS, Verdict
from lens_skills.plotting import Drawing, figures
from lens_skills.plotting.intervention_plots import LOOKS
from lens_skills.scoring import Scores
from tests.plotting.conftest import make_scores
from tests.plotting.probes import check_repeats, words
from tests.plotting.results import make_bare, make_curve, make_matrix, make_verdict
from tests.plotting.test_drawing import overlaps

MARKED = {"L1N1": "decoy", "L0N2": "writer"}
SKILLS = ("addition", "subtraction", "multiplication", "agreement", "sentiment", "translation")
SCORES = make_scores()

# Every figure of what interventions find: small, large, and with all that may be missing missing.
CASES: dict[str, Callable[..., Drawing]] = {
    "r": lambda **o: figures.effect_against_r(
        SCORES["confidence"],
        make_verdict(exploratory=o.pop("exploratory", False)),
        marked=MARKED,
        **o,
    ),
    "r, many": lambda **o: figures.effect_against_r(
        SCORES["confidence"],
        make_verdict(60, exploratory=o.pop("exploratory", False)),
        n_labels=15,
        **o,
    ),
    "r, bare": lambda **o: figures.effect_against_r(
        make_scores(nulls=False)["correct"],
        make_bare(2, exploratory=o.pop("exploratory", False)),
        **o,
    ),
    "r, crowded": lambda **o: figures.effect_against_r(
        SCORES["confidence"], crowded(o.pop("exploratory", False)), marked=MARKED, **o
    ),
    "controls": lambda **o: figures.effect_against_controls(
        make_verdict(exploratory=o.pop("exploratory", False)), **o
    ),
    "controls, one neuron": lambda **o: figures.effect_against_controls(
        make_verdict(1, exploratory=o.pop("exploratory", False)), **o
    ),
    "controls, bare": lambda **o: figures.effect_against_controls(
        make_bare(3, exploratory=o.pop("exploratory", False)), **o
    ),
    "forest": lambda **o: figures.effect_forest(
        make_verdict(exploratory=o.pop("exploratory", False)), **o
    ),
    "forest, many": lambda **o: figures.effect_forest(
        make_verdict(60, set_scale=3, exploratory=o.pop("exploratory", False)), **o
    ),
    "forest, bare": lambda **o: figures.effect_forest(
        make_bare(1, exploratory=o.pop("exploratory", False)), **o
    ),
    "dose": lambda **o: figures.dose_response(make_curve(), **o),
    "dose, two and one text": lambda **o: figures.dose_response(
        make_curve((-0.5, 1.5), n_texts=1), **o
    ),
    "damage": lambda **o: figures.damage_matrix(make_matrix(), **o),
    "damage, six": lambda **o: figures.damage_matrix(make_matrix(SKILLS), **o),
    "damage, twelve": lambda **o: figures.damage_matrix(
        make_matrix([f"skill {place}" for place in range(12)]), **o
    ),
}


def crowded(exploratory: bool) -> Verdict:
    """More neurons to compare with than are drawn one by one, and a long account of δ."""
    n = 12_000
    return replace(
        make_verdict(50, exploratory=exploratory),
        control_neurons=("L3N29",) * n,
        control_neuron_effect=torch.linspace(-1, 1, n, dtype=torch.float64),
        delta_from="95th percentile of |effect| of 200 other units, half of those compared with",
    )


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Callable[..., Drawing]:
    return CASES[request.param]


@pytest.mark.parametrize("name", [name for name in CASES if "," not in name])
def test_the_same_result_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    check_repeats(CASES[name], tmp_path)


def test_exploratory_is_stamped_and_only_then(case: Callable[..., Drawing]) -> None:
    for exploratory in (False, True):
        texts = case(exploratory=exploratory).figure.texts
        assert any(text.get_gid() == "exploratory" for text in texts) == exploratory
        assert any("EXPLORATORY: " in text.get_text() for text in texts) == exploratory


@pytest.mark.parametrize("width", ["column", "page"])
def test_no_text_is_cut_off_or_lies_on_another(case: Callable[..., Drawing], width: str) -> None:
    assert overlaps(case().styled(width=width).figure) == []


def test_exploratory_scores_stamp_a_picture_of_them(scores: Scores) -> None:
    found = replace(scores, exploratory=True)["confidence"]
    assert "EXPLORATORY" in words(figures.effect_against_r(found, make_verdict()))


def test_each_word_has_a_colour_and_a_marker_of_its_own() -> None:
    assert set(LOOKS) == set(WORDS)
    assert len({look.colour for word, look in LOOKS.items() if word in CAUSAL}) == len(CAUSAL)
    assert len({(look.marker, look.filled) for look in LOOKS.values()}) == len(WORDS)
