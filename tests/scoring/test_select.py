"""What is confirmed, what is dropped at which gate, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from lens_skills.errors import LensSkillsError
from lens_skills.scoring import EXPLORATORY, Scores, Selection, score, select
from tests.scoring.test_handmade import examples_with, handmade

N, LAYERS, WIDTH = 120, 3, 20
SIGNAL = {(0, 3): 3.0, (1, 7): -2.5, (2, 11): 2.0}  # neuron: shift where the label is 1
TURNED = (2, 19)  # follows the label in explore and turns round in confirm


def splits(folder: Path, *, flip: bool = False, **options: Any) -> tuple[Scores, Scores]:
    """Scores of explore and confirm, with three true neurons and one that turns round."""
    random = np.random.default_rng(0)
    found = []
    for part in ("explore", "confirm"):
        label = random.permutation(np.arange(N) % 2)
        acts = random.normal(size=(N, LAYERS, WIDTH))
        for (layer, neuron), shift in SIGNAL.items():
            acts[:, layer, neuron] += shift * label
        acts[:, TURNED[0], TURNED[1]] += (3 if part == "explore" else -3) * label
        if flip and part == "confirm":
            label = 1 - label
        examples = examples_with(
            N, prefix=part, labels={"y": label}, kinds=[f"{part}{i % 40}" for i in range(N)]
        )
        table = handmade(folder / part, acts, examples)
        found.append(score(table, examples, metrics="label:y", n_permutations=200, **options))
    return found[0], found[1]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scores, Scores]:
    return splits(tmp_path_factory.mktemp("select"))


def chosen(selection: Selection) -> list[tuple[int, ...]]:
    return [tuple(row) for row in selection.neurons.tolist()]


def test_true_neurons_are_confirmed_and_a_turncoat_is_not(pair: tuple[Scores, Scores]) -> None:
    explore, confirm = pair
    found = select(explore["label:y"], confirm["label:y"])
    assert set(chosen(found)) == set(SIGNAL)
    assert found.names == [f"L{layer}N{neuron}" for layer, neuron in chosen(found)]
    strength = found.r_explore.abs()
    assert (strength.diff() <= 0).all()
    assert (found.r_explore.sign() == found.r_confirm.sign()).all()
    passed = explore["label:y"].passing()["beat the rotated basis"][0]
    assert passed[TURNED[0] * WIDTH + TURNED[1]], "the turncoat must reach the last gate"
    assert not found.exploratory
    assert EXPLORATORY not in repr(found)
    assert "correlates, not causes" in repr(found)
    assert repr(select(explore, confirm)) == repr(found), "one metric needs no name"


def test_flipped_labels_in_confirm_reject_all_but_the_turncoat(tmp_path: Path) -> None:
    explore, confirm = splits(tmp_path, flip=True)
    assert chosen(select(explore["label:y"], confirm["label:y"])) == [TURNED]


def test_attrition_falls_gate_by_gate(pair: tuple[Scores, Scores]) -> None:
    explore, confirm = pair
    found = select(explore["label:y"], confirm["label:y"])
    assert list(found.attrition) == [
        "neurons",
        "associated",
        "beat the control task",
        "beat the rotated basis",
        "confirmed",
    ]
    counts = list(found.attrition.values())
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == LAYERS * WIDTH
    r = explore.r[0, 0].abs()
    bars = explore.thresholds["label:y"]
    for gate, bar in zip(
        ("associated", "beat the control task", "beat the rotated basis"),
        (bars.permutation, bars.control, bars.rotated),
        strict=True,
    ):
        r = torch.where(r > bar, r, 0.0)
        assert found.attrition[gate] == int((r > 0).sum())
    assert counts[-1] == len(found) == 3
    assert repr(found).startswith("60 neurons → ")
    assert "→ 3 confirmed" in found.attrition_line()


def test_q_is_benjamini_hochberg_over_the_tested_family(pair: tuple[Scores, Scores]) -> None:
    explore, confirm = pair
    bar = explore.thresholds["label:y"].permutation
    tested = (explore.r[0, 0].abs() > bar).nonzero()[:, 0].tolist()
    assert len(tested) == 4
    # Chances that one adjustment over the tested neurons, and over no others, tells apart.
    chances = torch.full_like(confirm.r, 0.001)
    chances[0, 0, tested] = torch.tensor([0.01, 0.05, 0.02, 0.2]).double()
    confirm = replace(confirm, p=chances)
    assert confirm.p is not None
    found = select(explore["label:y"], confirm["label:y"], gates=("associated",), fdr=0.06)
    q = dict(
        zip(tested, stats.false_discovery_control(confirm.p[0, 0, tested].numpy()), strict=True)
    )
    same = explore.r[0, 0].sign() == confirm.r[0, 0].sign()
    expected = {unit for unit in tested if q[unit] <= 0.06 and same[unit]}
    assert len(expected) == 2  # the chance of 0.05 is below the level, its q is not
    units = [layer * WIDTH + neuron for layer, neuron in chosen(found)]
    assert set(units) == expected
    np.testing.assert_allclose(found.q, [q[unit] for unit in units], rtol=1e-12)
    np.testing.assert_allclose(found.p, confirm.p[0, 0, units], rtol=0)
    np.testing.assert_allclose(found.r_confirm, confirm.r[0, 0, units], rtol=0)


def test_only_the_strongest_may_be_confirmed(tmp_path: Path) -> None:
    explore, _ = splits(tmp_path)
    few = explore["label:y"].top(3)
    _, confirm = splits(tmp_path / "few", neurons=few)
    found = select(explore["label:y"], confirm["label:y"])
    assert found.attrition["tested"] == 3
    assert found.attrition["beat the rotated basis"] == 4
    assert set(chosen(found)) <= {tuple(row) for row in few.tolist()} & set(SIGNAL)


def test_nothing_found_is_an_answer(pair: tuple[Scores, Scores]) -> None:
    explore, confirm = pair
    bars = replace(explore.thresholds["label:y"], permutation=2.0)
    none = replace(explore, thresholds={"label:y": bars})
    found = select(none["label:y"], confirm["label:y"])
    assert len(found) == 0
    assert found.neurons.shape == (0, 2)
    assert found.attrition["confirmed"] == found.attrition["associated"] == 0
    assert "no neuron passed every gate" in repr(found)
    assert len(found.frame()) == 0


def test_several_positions_stand_for_the_strongest_that_passes(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    found = []
    for part in ("explore", "confirm"):
        label = random.permutation(np.arange(N) % 2)
        acts = random.normal(size=(N, 2, 1, 12))
        acts[:, 1, 0, 4] += 3 * label
        acts[:, 0, 0, 6] += 3 * label
        examples = examples_with(N, prefix=part, labels={"y": label})
        table = handmade(tmp_path / part, acts, examples)
        found.append(score(table, examples, metrics="label:y", position=[0, 1], n_controls=0))
    selection = select(found[0]["label:y"], found[1]["label:y"], gates=("associated",))
    where = dict(zip(chosen(selection), selection.position, strict=True))
    assert where == {(0, 4): "1", (0, 6): "0"}


# Refusals: what would make a confirmation worthless.


def changed(scores: Scores, **provenance: Any) -> Scores:
    return replace(scores, provenance={**scores.provenance, **provenance})


def test_shared_examples_and_groups_are_refused(pair: tuple[Scores, Scores]) -> None:
    explore, confirm = pair
    with pytest.raises(LensSkillsError, match="share 120 examples"):
        select(explore["label:y"], explore["label:y"])
    overlap = replace(confirm, example_ids=(*confirm.example_ids[1:], explore.example_ids[0]))
    with pytest.raises(LensSkillsError, match="share 1 examples"):
        select(explore["label:y"], overlap["label:y"])
    grouped = replace(confirm, groups=(*confirm.groups, explore.groups[5]))
    with pytest.raises(LensSkillsError, match="share 1 groups"):
        select(explore["label:y"], grouped["label:y"])


@pytest.mark.parametrize(
    ("what", "value"),
    [("model_fingerprint", "another"), ("task", "other"), ("given", ["z"]), ("chat", True)],
)
def test_another_pass_is_refused(pair: tuple[Scores, Scores], what: str, value: Any) -> None:
    explore, confirm = pair
    with pytest.raises(LensSkillsError, match=f"do not fit together: {what} is"):
        select(explore["label:y"], changed(confirm, **{what: value})["label:y"])


def test_another_site_position_or_metric_is_refused(pair: tuple[Scores, Scores]) -> None:
    explore, confirm = pair
    for what, other in (
        ("site", replace(confirm, site="hook_resid_post")),
        ("positions", replace(confirm, positions=("mean",))),
    ):
        with pytest.raises(LensSkillsError, match=f"do not fit together: {what} is"):
            select(explore["label:y"], other["label:y"])
    renamed = replace(confirm, metrics=("label:z",))
    with pytest.raises(LensSkillsError, match="metric is 'label:y' on explore and 'label:z'"):
        select(explore["label:y"], renamed["label:z"])


def test_a_missing_null_is_refused(pair: tuple[Scores, Scores]) -> None:
    explore, confirm = pair
    with pytest.raises(LensSkillsError, match="the confirm scores have no null"):
        select(explore["label:y"], replace(confirm, p=None)["label:y"])
    for gate, null in (
        ("associated", "permutation"),
        ("beat the control task", "control"),
        ("beat the rotated basis", "rotated"),
    ):
        bars = replace(explore.thresholds["label:y"], **{null: None})
        without = replace(explore, thresholds={"label:y": bars})
        with pytest.raises(LensSkillsError, match=f"'{gate}' needs the {null} null"):
            select(without["label:y"], confirm["label:y"])


def test_a_level_or_gate_that_means_nothing_is_refused(pair: tuple[Scores, Scores]) -> None:
    explore, confirm = (scores["label:y"] for scores in pair)
    for fdr in (0.0, 1.0, 5.0):
        with pytest.raises(LensSkillsError, match="fdr must lie between 0 and 1"):
            select(explore, confirm, fdr=fdr)
    with pytest.raises(LensSkillsError, match="no gate 'confirmed'"):
        select(explore, confirm, gates=("confirmed",))


def test_reuse_is_allowed_where_it_is_said_and_stamped(
    pair: tuple[Scores, Scores], tmp_path: Path
) -> None:
    explore, confirm = pair
    found = select(explore["label:y"], explore["label:y"], exploratory=True)
    assert found.exploratory
    assert repr(found).startswith(EXPLORATORY)
    loaded = Selection.load(found.save(tmp_path / "s"))
    assert loaded.exploratory
    assert repr(loaded) == repr(found)
    # The stamp is inherited from scores that were exploratory themselves, and put where a gate
    # was left out; the order in which gates are named does not matter.
    marked = replace(explore, exploratory=True)
    assert select(marked["label:y"], confirm["label:y"]).exploratory
    assert select(explore["label:y"], confirm["label:y"], gates=("associated",)).exploratory
    gates = ("beat the rotated basis", "associated", "beat the control task")
    assert not select(explore["label:y"], confirm["label:y"], gates=gates).exploratory


def test_a_selection_comes_back_as_it_was_saved(
    pair: tuple[Scores, Scores], tmp_path: Path
) -> None:
    explore, confirm = pair
    found = select(explore["label:y"], confirm["label:y"])
    loaded = Selection.load(found.save(tmp_path / "deep" / "s"))
    assert list(loaded.attrition.items()) == list(found.attrition.items())
    for name in ("neurons", "r_explore", "r_confirm", "p", "q"):
        assert torch.equal(getattr(loaded, name), getattr(found, name))
    for name in ("position", "positions", "metric", "site", "fdr", "exploratory", "provenance"):
        assert getattr(loaded, name) == getattr(found, name)
    assert loaded.frame().equals(found.frame())
    assert {path.suffix for path in (tmp_path / "deep" / "s").iterdir()} == {
        ".safetensors",
        ".json",
    }
    with pytest.raises(LensSkillsError, match="no saved Selection in"):
        Selection.load(tmp_path)
