"""Directions of a rotated basis are ablated exactly, and only where that means something."""

from typing import Any

import pytest
import torch

import lens_skills as ls
from lens_skills.models import as_adapter
from lens_skills.ranking import compare_methods
from lens_skills.ranking.causal_hits import direction_effects
from lens_skills.stats.rotations import Rotation
from tests.ranking.conftest import WIDTH, Plain


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", ["mean", "zero"])
def test_a_direction_is_ablated_as_plain_pytorch_does_it(
    tiny: Any, nouns: ls.Task, plain: Plain, kind: str, scaled: bool
) -> None:
    rotation = Rotation.of(WIDTH, seed=1)
    directions = torch.tensor([[0, 4], [2, 30], [2, 1], [3, 7]])
    over, some = nouns[:20], nouns[20:30]
    mean = plain.activations(over, "post").mean(0)
    scale = {layer: torch.ones(WIDTH) for layer in range(4)}
    if scaled:
        generator = torch.Generator().manual_seed(2)
        scale = {layer: torch.rand(WIDTH, generator=generator) + 0.1 for layer in range(4)}
    effects = direction_effects(
        as_adapter(tiny), some, directions, rotation,
        ls.ablate(kind, over=over if kind == "mean" else None),
        metric=ls.logit_diff(), site="mlp.hook_post", position="last",
        scale=scale if scaled else None,
    )  # fmt: skip
    for row, (layer, column) in enumerate(directions.tolist()):
        direction = rotation.direction(column)
        own = scale[layer]
        level = mean[layer * WIDTH : (layer + 1) * WIDTH].float() / own @ direction
        level = level if kind == "mean" else torch.zeros(())

        def edit(
            post: torch.Tensor, d: torch.Tensor = direction, m: Any = level, s: Any = own
        ) -> torch.Tensor:
            new, standard = post.clone(), post[0, -1] / s
            new[0, -1] = s * (standard - (standard @ d - m) * d)
            return new

        for place, example in enumerate(some):
            with torch.no_grad():
                _, clean = plain.run(example)
                _, edited = plain.run(example, ablate=(layer, edit))
            wanted = plain.odds(example, edited) - plain.odds(example, clean)
            assert float(effects[row, place]) == pytest.approx(float(wanted), abs=1e-4)
    assert float(effects.abs().min(dim=1).values.max()) > 1e-4


def test_other_edits_have_no_rotated_row_and_need_not_be_ablations(
    tiny: Any, nouns: ls.Task
) -> None:
    explore, intervene = nouns.split(0.34, 0.66, seed=0)
    found = compare_methods(
        tiny, explore, "label:plural", intervene=intervene, methods=["pearson"], k=3,
        do=ls.steer(by=2, over=explore), n_random=1,
    )  # fmt: skip
    assert [row.method for row in found.rows] == ["pearson", "random"]
    assert "steering by 2 std" in found.do
