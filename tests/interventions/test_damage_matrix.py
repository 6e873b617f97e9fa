"""The damage matrix against ablation by hand; its p and its chance overlap against brute force."""

from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lens_skills.activations.components import Component
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.damage_matrix import (
    DamageMatrix,
    damage_matrix,
    dominance,
    dominance_p,
    overlap_of,
)
from lens_skills.interventions.edits import ablate
from tests.interventions.test_edits import WORDS
from tests.interventions.test_edits import examples as given

SETS = {"be": ["L1N5", "L2N7"], "have": ["L1N5", "L3N1"], "walk": ["L0H1"]}
PAIRS = {"be": (" is", " are"), "have": (" has", " have"), "walk": (" do", " does")}


def examples() -> list[Example]:
    """Ten, each its own group: an interval takes eight."""
    return given([*WORDS, *(f"hello {text}" for text in WORDS)])


def tasks() -> dict[str, list[Example]]:
    return {
        name: [replace(item, answer=answer, foil=foil) for item in examples()]
        for name, (answer, foil) in PAIRS.items()
    }


@pytest.fixture(scope="module")
def matrix(tiny: Any) -> DamageMatrix:
    return damage_matrix(tiny, tasks(), SETS, do=ablate("zero"), metric="logit_diff")


def test_every_cell_is_the_mean_effect_by_hand(tiny: Any, matrix: DamageMatrix) -> None:
    for i, units in enumerate(SETS.values()):
        hooks = ablate("zero").hooks(tiny, units)
        for j, (answer, foil) in enumerate(PAIRS.values()):
            wanted, other = (int(tiny.to_tokens(text)[0, -1]) for text in (answer, foil))
            clean, effects = [], []
            for item in examples():
                tokens = tiny.to_tokens(item.prompt)
                with torch.no_grad():
                    before = tiny(tokens)[0, -1]
                    after = tiny.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]
                clean.append(float(before[wanted] - before[other]))
                effects.append(float(after[wanted] - after[other]) - clean[-1])
            assert float(matrix.effect[i, j]) == pytest.approx(np.mean(effects), abs=1e-4)
            damage = -np.mean(effects) / np.std(clean)
            assert float(matrix.damage[i, j]) == pytest.approx(damage, abs=1e-3)
            assert matrix.clean[j] == pytest.approx(np.mean(clean), abs=1e-4)


def test_dominance_and_its_p_by_brute_force(matrix: DamageMatrix) -> None:
    damage = matrix.damage.numpy()
    off = damage[~np.eye(3, dtype=bool)]
    assert matrix.dominance == pytest.approx(damage.diagonal().mean() - off.mean())
    relabeled = [dominance(matrix.damage[list(order)]) for order in permutations(range(3))]
    reached = np.mean([value >= matrix.dominance - 1e-12 for value in relabeled])
    assert matrix.p == pytest.approx(reached)
    assert matrix.n_relabelings == 6


def test_the_p_goes_both_ways_and_is_uniform_without_dominance() -> None:
    assert dominance_p(torch.eye(5)) == (pytest.approx(1 / 120), 120)
    assert dominance_p(-torch.eye(5))[0] > 0.3  # 44 of 120 relabelings leave no fixed point
    assert dominance_p(torch.zeros(5, 5))[0] == 1
    p, n = dominance_p(torch.eye(9))
    assert n == 9999
    assert p == pytest.approx(1 / 10_000)
    generator = torch.Generator().manual_seed(0)
    draws = [dominance_p(torch.randn(4, 4, generator=generator))[0] for _ in range(600)]
    # Without dominance the p is uniform on 1/24, …, 1; standard error at 0.25 is 0.018.
    assert np.mean(np.array(draws) <= 0.25) == pytest.approx(0.25, abs=0.06)


def neurons(layer: int, indices: Any) -> list[Component]:
    return [Component(f"L{layer}N{i}", layer, "mlp.hook_post", i, i + 1) for i in indices]


def test_the_chance_overlap_is_that_of_random_sets() -> None:
    one = neurons(0, range(3)) + neurons(1, range(4))
    other = neurons(0, range(2, 6)) + neurons(1, range(2, 5))
    found = overlap_of([one, other], lambda kind: 8)
    assert found.shared[0, 1] == 3
    assert float(found.jaccard[0, 1]) == pytest.approx(3 / 11)
    random = np.random.default_rng(0)
    shared = sum(
        np.array(
            [
                len(
                    set(random.choice(8, a, replace=False).tolist())
                    & set(random.choice(8, b, replace=False).tolist())
                )
                for _ in range(4000)
            ]
        )
        for a, b in ((3, 4), (4, 3))
    )
    expected = np.mean(shared / (14 - shared))
    assert float(found.chance[0, 1]) == pytest.approx(expected, abs=0.01)
    assert float(found.p[0, 1]) == pytest.approx(np.mean(shared >= 3), abs=0.03)
    assert torch.equal(found.jaccard.diagonal(), torch.ones(2, dtype=torch.float64))


def test_units_of_other_layers_and_kinds_cannot_overlap() -> None:
    head = [Component("L0H0", 0, "attn.hook_z", 0, 8)]
    found = overlap_of([neurons(0, range(3)), neurons(1, range(3)), head, []], lambda kind: 8)
    off = ~torch.eye(4, dtype=torch.bool)
    assert float(found.chance[off].max()) == float(found.jaccard[off].max()) == 0
    assert torch.equal(found.p[off], torch.ones(12, dtype=torch.float64))


def test_the_matrix_prints_and_is_saved_whole(matrix: DamageMatrix, tmp_path: Path) -> None:
    assert len(matrix.frame()) == 9
    assert matrix.frame().query("own")["task"].tolist() == list(SETS)
    overlaps = matrix.overlaps()
    assert overlaps["shared"].tolist() == [1, 0, 0]
    text = repr(matrix)
    assert "none can be below 0.17" in " ".join(text.split())
    assert "units shared by be and have: 1; Jaccard 0.33" in text
    back = DamageMatrix.load(matrix.save(tmp_path / "damage"))
    assert repr(back) == text
    assert back.clean == matrix.clean


def test_each_task_may_have_its_own_source(tiny: Any) -> None:
    do = {name: ablate("mean", over=task[::-1][:3]) for name, task in tasks().items()}
    found = damage_matrix(tiny, tasks(), SETS, do=do)
    assert found.do == ("mean ablation over 3 examples",) * 3


def test_what_is_no_matrix_is_refused(tiny: Any) -> None:
    made, do = tasks(), ablate("zero")
    with pytest.raises(LensSkillsError, match="every skill needs both"):
        damage_matrix(tiny, made, {"be": ["L1N5"]}, do=do)
    with pytest.raises(LensSkillsError, match="two or more"):
        damage_matrix(tiny, {"be": made["be"]}, {"be": ["L1N5"]}, do=do)
    with pytest.raises(LensSkillsError, match="damage has no unit there"):
        damage_matrix(tiny, made, SETS, do=do, metric=lambda logits, _: logits[:, 0] * 0 + 1)
