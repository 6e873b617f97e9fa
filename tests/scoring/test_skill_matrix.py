"""The neuron × skill matrix: planted shared and specific neurons, chance, groups, the folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import hypergeom

from lens_skills.errors import LensSkillsError
from lens_skills.scoring import Scores, Selection, SkillMatrix, score, select, skill_matrix
from lens_skills.scoring.scores import EXPLORATORY
from tests.scoring.test_handmade import examples_with, handmade

N, LAYERS, WIDTH = 200, 3, 60
SKILLS = ("label:a", "label:b", "label:c")
ONLY = {"a": (0, 3), "b": (1, 7), "c": (2, 11)}
BOTH = (1, 15)  # follows a and b


def passes(folder: Path) -> tuple[list[Selection], Scores]:
    random = np.random.default_rng(0)
    scores = {}
    for part in ("explore", "confirm", "last"):
        labels = {name: random.permutation(np.arange(N) % 2) for name in "abc"}
        acts = random.normal(size=(N, LAYERS, WIDTH))
        for name, (layer, neuron) in ONLY.items():
            acts[:, layer, neuron] += 3 * labels[name]
        acts[:, BOTH[0], BOTH[1]] += 4 * labels["a"] - 4 * labels["b"]
        examples = examples_with(N, prefix=part, labels=labels)
        table = handmade(folder / part, acts, examples)
        scores[part] = score(table, examples, metrics=list(SKILLS), n_permutations=200)
    chosen = [select(scores["explore"][name], scores["confirm"][name]) for name in SKILLS]
    return chosen, scores["last"]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Selection], Scores]:
    return passes(tmp_path_factory.mktemp("skills"))


@pytest.fixture(scope="module")
def matrix(case: tuple[list[Selection], Scores]) -> SkillMatrix:
    return skill_matrix(case[1], case[0])


def test_shared_and_specific_neurons_are_told_apart(matrix: SkillMatrix) -> None:
    kinds = dict(zip(map(tuple, matrix.neurons.tolist()), matrix.kinds, strict=True))
    assert kinds == {BOTH: "shared", **dict.fromkeys(ONLY.values(), "specific")}
    assert matrix.skills == SKILLS
    by_name = {
        tuple(neuron): row for neuron, row in zip(matrix.neurons.tolist(), matrix.r, strict=True)
    }
    assert float(by_name[BOTH][0]) > 0.4 > -0.4 > float(by_name[BOTH][1])
    assert abs(float(by_name[BOTH][2])) < 0.3
    assert "3 specific, 1 shared, 0 unclear" in repr(matrix)
    assert matrix.chosen == "confirmed"
    assert not matrix.exploratory


def test_cells_are_those_of_the_scores(
    matrix: SkillMatrix, case: tuple[list[Selection], Scores]
) -> None:
    found = case[1]
    frame = matrix.frame()
    assert len(frame) == 4 * 3
    for row in frame.itertuples():
        unit, column = found.places[row.layer, row.neuron], found.metrics.index(row.skill)
        assert row.r == float(found.r[column, 0, unit])
        assert (row.low, row.high) == (
            float(found.low[column, 0, unit]),
            float(found.high[column, 0, unit]),
        )
        assert row.beyond == (abs(row.r) > found[row.skill].threshold)
        assert row.position == "last"
    strongest = frame.groupby("name", sort=False)["r"].apply(lambda r: r.abs().max())
    assert (strongest.diff().dropna() <= 0).all()


def test_overlap_is_held_against_chance(matrix: SkillMatrix) -> None:
    assert matrix.shared.tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 1]]
    # a has one neuron in layer 0 and one in layer 1, b two in layer 1.
    assert float(matrix.expected[0, 1]) == pytest.approx(1 * 2 / WIDTH)
    assert float(matrix.p[0, 1]) == pytest.approx(hypergeom.sf(0, WIDTH, 1, 2))
    assert float(matrix.jaccard[0, 1]) == pytest.approx(1 / 3)
    assert torch.equal(matrix.p, matrix.p.T)
    row = matrix.overlaps().iloc[0]
    assert (row["skill"], row["other"], row["shared"]) == ("label:a", "label:b", 1)


def test_groups_are_scipys(case: tuple[list[Selection], Scores]) -> None:
    """Two metrics that are one and its opposite belong together; the third does not."""
    found = case[1]
    r = found.r.clone()
    random = torch.Generator().manual_seed(0)
    noise = 0.02 * torch.randn(r[0].shape, generator=random, dtype=torch.float64)
    r[2] = -r[0] + noise
    matrix = skill_matrix(replace(found, r=r), top=10)
    assert matrix.groups() == [("label:a", "label:c"), ("label:b",)]
    assert matrix.groups(least=0.999) == [("label:a",), ("label:b",), ("label:c",)]
    assert matrix.groups(least=0) == [SKILLS]
    oracle = np.corrcoef(r.reshape(3, -1).numpy())
    np.testing.assert_allclose(matrix.likeness, oracle, atol=2e-12)
    distance = 1 - np.abs(oracle)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average")
    np.testing.assert_allclose(matrix.linkage, tree, atol=2e-12)
    assert len(set(fcluster(tree, 0.5, "distance"))) == 2
    assert abs(matrix.order.index(0) - matrix.order.index(2)) == 1


def test_without_selections_the_strongest_beyond_the_null_count(
    case: tuple[list[Selection], Scores],
) -> None:
    found = case[1]
    matrix = skill_matrix(found, metrics=["label:b", "label:a"], top=1)
    assert matrix.skills == ("label:b", "label:a")
    assert matrix.chosen == "the 1 strongest beyond the null"
    assert matrix.selected.sum(dim=0).tolist() == [1, 1]
    for name, column in zip(matrix.skills, matrix.selected.T, strict=True):
        assert matrix.neurons[column].tolist() == found[name].top(1).rows.tolist()
    every = skill_matrix(found, top=60)
    beyond = (found.r.abs()[:, 0] > torch.tensor([[found[name].threshold] for name in SKILLS])).sum(
        dim=1
    )
    assert every.shared.diagonal().tolist() == beyond.tolist()


def test_an_unclear_neuron(case: tuple[list[Selection], Scores]) -> None:
    """Of one set, but beyond the null of another skill: not specific."""
    chosen, found = case
    kept = (chosen[1].neurons != torch.tensor(BOTH)).any(dim=1)
    fewer = [chosen[0], _keep(chosen[1], kept), chosen[2]]
    matrix = skill_matrix(found, fewer)
    kinds = dict(zip(map(tuple, matrix.neurons.tolist()), matrix.kinds, strict=True))
    assert kinds[BOTH] == "unclear"
    assert kinds[ONLY["a"]] == "specific"


def _keep(selection: Selection, rows: torch.Tensor) -> Selection:
    names = ("neurons", "r_explore", "r_confirm", "p", "q", "mean", "std")
    parts: dict[str, Any] = {name: getattr(selection, name)[rows] for name in names}
    position = tuple(p for p, row in zip(selection.position, rows.tolist(), strict=True) if row)
    return replace(selection, position=position, **parts)


def test_nobody_selected_is_a_matrix_too(case: tuple[list[Selection], Scores]) -> None:
    none = [_keep(s, torch.zeros(len(s), dtype=torch.bool)) for s in case[0]]
    matrix = skill_matrix(case[1], none)
    assert len(matrix.neurons) == len(matrix.frame()) == 0
    assert matrix.shared.sum() == 0
    assert "0 neurons × 3 skills" in repr(matrix)


def test_saved_and_loaded(matrix: SkillMatrix, tmp_path: Path) -> None:
    again = SkillMatrix.load(matrix.save(tmp_path / "m"))
    for name, value in vars(matrix).items():
        other = getattr(again, name)
        same = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
        assert same, name
    assert repr(again) == repr(matrix)
    with pytest.raises(LensSkillsError, match="no saved SkillMatrix"):
        SkillMatrix.load(tmp_path)


def test_what_does_not_fit_is_refused(case: tuple[list[Selection], Scores]) -> None:
    chosen, found = case
    with pytest.raises(LensSkillsError, match="two metrics or more, not 1"):
        skill_matrix(found, chosen[:1])
    with pytest.raises(LensSkillsError, match="two selections are of 'label:a'"):
        skill_matrix(found, [chosen[0], chosen[0], chosen[1]])
    with pytest.raises(LensSkillsError, match="no selection of 'label:c'"):
        skill_matrix(found, chosen[:2], metrics=["label:a", "label:c"])
    with pytest.raises(LensSkillsError, match=r"is of mlp\.hook_pre"):
        skill_matrix(found, [replace(chosen[0], site="mlp.hook_pre"), chosen[1]])
    stranger = replace(chosen[0], neurons=torch.tensor([[9, 9]] * len(chosen[0])))
    with pytest.raises(LensSkillsError, match="L9N9 was selected for 'label:a' and not scored"):
        skill_matrix(found, [stranger, chosen[1]])
    bare = replace(
        found,
        thresholds=dict.fromkeys(found.thresholds),
    )
    with pytest.raises(LensSkillsError, match="neither a selection nor a null"):
        skill_matrix(bare)
    marked = skill_matrix(found, [replace(chosen[0], exploratory=True), *chosen[1:]])
    assert marked.exploratory
    assert repr(marked).startswith(EXPLORATORY)
    # A skill without a null says nothing of what is specific.
    assert set(skill_matrix(bare, chosen).kinds) == {"shared", "unclear"}
