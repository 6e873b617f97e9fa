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
from lens_skills.activations.activation_reader import NeuronValues
from lens_skills.diagnostics import Redundancy, memorisation, redundancy
from lens_skills.diagnostics.memorisation import _tried_alone, pairwise
from lens_skills.errors import LensSkillsError
from lens_skills.stats.information import entropy, equal_width_codes
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


def test_a_neurons_own_p_is_its_rank_in_its_layer(tiny: Any, task: ls.Task) -> None:
    names = ["L1N3", "L1N7", "L2N11"]
    found = memorisation(tiny, task, names, n_bins=9, n_draws=1, n_controls=19)
    assert found.controls.groupby("layer").size().to_dict() == {1: 19, 2: 19}
    own, others = (activations(tiny, task, some) for some in (names, list(found.controls["name"])))

    def bits(row: np.ndarray) -> float:
        counts = np.histogram(row, bins=9)[0]
        return float(-sum(c / len(row) * np.log2(c / len(row)) for c in counts if c))

    def nats(x: np.ndarray, y: np.ndarray) -> float:
        return float(mutual_info_regression(x[:, None], y, n_neighbors=3, random_state=0)[0])

    for place, name in enumerate(names):
        rest = [other for other in range(3) if other != place]
        alike = [at for at, layer in enumerate(found.controls["layer"]) if layer == int(name[1])]
        h, mi = bits(own[place]), np.mean([nats(own[place], own[other]) for other in rest])
        null_h = np.array([bits(others[at]) for at in alike])
        null_mi = np.array([np.mean([nats(others[at], own[o]) for o in rest]) for at in alike])
        row = found.table.set_index("name").loc[name]
        shortcut = max(1 + (null_h <= h + 1e-9).sum(), 1 + (null_mi >= mi).sum()) / 20
        example = max(1 + (null_h >= h - 1e-9).sum(), 1 + (null_mi <= mi).sum()) / 20
        assert row["shortcut_p"] == pytest.approx(shortcut, abs=0.051)  # equal counts round apart
        assert row["example_p"] == pytest.approx(example, abs=0.051)


def neuron_values(values: np.ndarray, first: int) -> NeuronValues:
    """Values as if read from layer 0, the neurons numbered from ``first``."""
    numbers = torch.arange(first, first + len(values))
    return NeuronValues(
        neurons=torch.stack([torch.zeros_like(numbers), numbers], dim=1),
        values=torch.from_numpy(values),
        metrics={},
        groups=tuple(map(str, range(values.shape[1]))),
        site="mlp.hook_post",
        position="last",
        about={},
        width=1000,
        layers=(0,),
    )


def tried(own: np.ndarray, others: np.ndarray) -> dict[str, torch.Tensor]:
    found = neuron_values(own, 0)
    h = entropy(equal_width_codes(found.values, n_bins=20))
    mi = pairwise(found.values, 3)
    null = neuron_values(others, len(own))
    return _tried_alone(found, null, h, mi, n_bins=20, k=3)[1]


def test_the_p_of_a_neuron_by_itself_holds_its_level() -> None:
    """Neurons of a layer that share a common part: as many are flagged as the level says."""
    random = np.random.default_rng(0)
    p: dict[str, list[float]] = {"shortcut": [], "example": []}
    for _ in range(15):
        loads = random.normal(size=(23, 1))
        values = loads * random.normal(size=(1, 60)) + random.normal(size=(23, 60))
        for kind, found in tried(values[:4], values[4:]).items():
            p[kind] += found.tolist()
    for kind in p:
        assert np.mean(np.array(p[kind]) <= 0.05) <= 0.1  # 60 of them, at 5 %


def test_neurons_that_carry_a_planted_shortcut_are_told_and_decoys_are_not() -> None:
    random = np.random.default_rng(1)
    cue = random.integers(0, 2, size=80)
    carriers = cue + 0.01 * random.normal(size=(3, 80))
    decoys, others = random.normal(size=(2, 80)), random.normal(size=(39, 80))
    p = tried(np.concatenate([carriers, decoys]), others)["shortcut"]
    assert p[:3].max() <= 0.05
    assert p[3:].min() > 0.05


def test_carriers_are_named_only_where_they_were_tried(tiny: Any, task: ls.Task) -> None:
    found = memorisation(tiny, task, NAMES[:3], n_draws=2, n_bins=8)
    with pytest.raises(LensSkillsError, match="n_controls=99"):
        found.carriers()
    without = found
    found = memorisation(tiny, task, NAMES[:3], n_draws=2, n_bins=8, n_controls=19)
    # The random sets are the same, whether or not each neuron is tried by itself.
    assert torch.equal(found.random_entropy, without.random_entropy)
    assert torch.equal(found.random_information, without.random_information)
    flagged = found.table.loc[found.table["example_q"] <= 0.05, "name"]
    assert set(found.carriers("example")) == set(flagged)
    assert "by themselves" in repr(found)
    with pytest.raises(LensSkillsError, match="shortcut, example"):
        found.carriers("both")
    with pytest.raises(LensSkillsError, match="19 or more"):
        memorisation(tiny, task, NAMES[:3], n_draws=2, n_controls=5)


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
