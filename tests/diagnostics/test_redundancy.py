"""Redundancy and memorisation: SciPy's clusters, scikit-learn's information, planted copies."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.feature_selection import mutual_info_regression
from sklearn.metrics import mutual_info_score

import lens_skills as ls
from lens_skills.diagnostics import Redundancy, memorisation, redundancy
from lens_skills.diagnostics.memorisation import pairwise
from lens_skills.errors import LensSkillsError
from tests.planted import plant, separating_direction

NAMES = [f"L{layer}N{index}" for layer in (0, 2, 3) for index in (1, 5, 9, 20)]


@pytest.fixture(scope="module")
def task() -> ls.Task:
    return ls.Task("some", list(ls.tasks.arithmetic("+-", digits=1))[::5])


def activations(model: Any, task: Any, names: list[str]) -> np.ndarray:
    """At the last token, one prompt at a time."""
    rows = []
    wanted = {f"blocks.{name[1]}.mlp.hook_post" for name in names}
    for example in task:
        tokens = model.to_tokens(example.prompt)
        _, cache = model.run_with_cache(tokens, names_filter=lambda name: name in wanted)
        rows.append(
            [
                cache[f"blocks.{name[1]}.mlp.hook_post"][0, -1, int(name[3:])].item()
                for name in names
            ]
        )
    return np.array(rows, dtype=np.float64).T


def test_clusters_are_those_of_scipy(tiny: Any, task: ls.Task) -> None:
    r = np.corrcoef(activations(tiny, task, NAMES))
    for threshold in (0.3, 0.5, 0.8):
        found = redundancy(tiny, task, NAMES, threshold=threshold)
        check_clusters(found, r, threshold)


def check_clusters(found: Redundancy, r: np.ndarray, threshold: float) -> None:
    np.testing.assert_allclose(found.r, r, atol=1e-4)
    distance = 1 - np.abs(r)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average")
    np.testing.assert_allclose(found.linkage[:, 2], tree[:, 2], atol=1e-4)
    wanted = fcluster(tree, threshold, "distance")
    same = wanted[:, None] == wanted[None]
    assert (same == (found.cluster[:, None] == found.cluster[None]).numpy()).all()
    sizes = found.cluster.bincount().tolist()
    assert sizes == sorted(sizes, reverse=True)
    for place, first in enumerate(found.representative.tolist()):
        inside = [k for k in range(len(NAMES)) if found.cluster[k] == place]
        best = max(inside, key=lambda k: np.abs(r[k, inside]).sum())
        assert first in inside
        assert abs(np.abs(r[first, inside]).sum() - np.abs(r[best, inside]).sum()) < 1e-3
        assert found.members(place)[0] == NAMES[first]
        for k in inside:
            assert found.sign[k] == np.sign(r[k, first])


def test_a_planted_copy_and_an_opposite_are_one_cluster(tiny: Any, task: ls.Task) -> None:
    model = copy.deepcopy(tiny)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    mlp = model.blocks[2].mlp
    plant(model, 2, 3, direction=direction)
    plant(model, 2, 4, direction=direction)
    with torch.no_grad():  # the opposite: the same gate, the other sign of what it lets through
        mlp.W_in[:, 4].neg_()
    found = redundancy(model, task, ["L3N7", "L2N3", "L2N4"], threshold=0.2)
    assert found.members(0) == ["L2N3", "L2N4"]
    assert found.sign.tolist() == [1, 1, -1]
    assert len(found) == 2
    assert "-L2N4" in repr(found)
    frame = found.frame().set_index("name")
    assert frame.loc["L2N4", "representative"] == "L2N3"
    assert frame.loc["L2N4", "r"] == pytest.approx(-1, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neurons": ["L0N1"]}, "2 to 2,000"),
        ({"threshold": 1.0}, "between 0 and 1"),
        ({"examples": []}, "no examples"),
        ({"position": [0, 1]}, "several numbers per example"),
        ({"neurons": ["L0N1", "L9N1"]}, "no neuron L9N1"),
    ],
)
def test_clusters_refuse_what_they_cannot_do(
    tiny: Any, task: ls.Task, changes: dict[str, Any], message: str
) -> None:
    asked: dict[str, Any] = {"examples": task, "neurons": NAMES} | changes
    with pytest.raises(LensSkillsError, match=message):
        redundancy(tiny, asked.pop("examples"), asked.pop("neurons"), **asked)


def test_a_table_gives_what_the_model_gives(tiny: Any, task: ls.Task, tmp_path: Any) -> None:
    table = ls.capture(tiny, task, tmp_path / "table", dtype="float32")
    one, other = redundancy(tiny, task, NAMES), redundancy(table, task, NAMES)
    torch.testing.assert_close(one.r, other.r, atol=1e-4, rtol=0)
    assert one.representatives == other.representatives


def test_entropy_and_information_are_those_of_scikit_learn(tiny: Any, task: ls.Task) -> None:
    found = memorisation(tiny, task, NAMES[:3], n_bins=7, n_draws=2)
    values = activations(tiny, task, NAMES[:3])
    for row, name in zip(values, NAMES[:3], strict=True):
        codes = np.clip(((row - row.min()) / np.ptp(row) * 7).astype(int), 0, 6)
        wanted = mutual_info_score(codes, codes) / np.log(2)  # of a thing with itself: its entropy
        assert found.frame().set_index("name").loc[name, "entropy"] == pytest.approx(wanted, 1e-9)
    wanted = [
        mutual_info_regression(values[j][:, None], values[i], n_neighbors=3, random_state=0)[0]
        for i in range(3)
        for j in range(3)
        if i != j
    ]
    assert found.information == pytest.approx(float(np.mean(wanted)), abs=1e-2)
    assert "cannot tell" in found.word


def test_planted_shortcut_memory_is_said(tiny: Any) -> None:
    """Neurons that copy one two-valued input: few values, all shared."""
    task = ls.Task("some", list(ls.tasks.arithmetic("+-", digits=1))[::5])
    model = copy.deepcopy(tiny)
    tokens = [model.to_tokens(example.prompt)[0].tolist() for example in task]
    plus = [row for row, example in zip(tokens, task, strict=True) if "plus" in example.prompt]
    minus = [row for row in tokens if row not in plus]
    direction = separating_direction(model, 2, plus, minus)
    for neuron in range(4):
        plant(model, 2, neuron, direction=direction, strength=4.0 + neuron)
    found = memorisation(model, task, [f"L2N{k}" for k in range(4)], n_bins=20, n_draws=19)
    assert found.p["information_high"] <= 0.05
    assert "information above" in found.word or "few values" in found.word


def test_pairs_are_symmetric_means() -> None:
    values = torch.randn(3, 60, generator=torch.Generator().manual_seed(0)).double()
    values[1] += 3 * values[0]
    found = pairwise(values, 3)
    assert found[0] > found[2]
    both = pairwise(values[:2], 3)
    assert both[0] == both[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neurons": ["L0N1"]}, "2 to 200"),
        ({"examples": list(ls.tasks.arithmetic("+", digits=1))[:20]}, "too few"),
        ({"neurons": [(0, k) for k in range(48)]}, "hold only"),
    ],
)
def test_memorisation_refuses_what_it_cannot_do(
    tiny: Any, task: ls.Task, changes: dict[str, Any], message: str
) -> None:
    asked: dict[str, Any] = {"examples": task, "neurons": NAMES[:3]} | changes
    with pytest.raises(LensSkillsError, match=message):
        memorisation(tiny, asked.pop("examples"), asked.pop("neurons"), **asked)
