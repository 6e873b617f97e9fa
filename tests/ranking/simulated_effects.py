"""Effects that are made up, with what they are compared with: for simulations of a comparison."""

from collections.abc import Sequence

import numpy as np
import torch

from lens_skills.interventions.effects import Effects
from lens_skills.ranking.causal_hits import AblationEffects, LayerControls
from lens_skills.stats.effect_tests import smallest_effect


def made_up(
    total: np.ndarray,
    controls: np.ndarray,
    groups: Sequence[str],
    *,
    clean: float = 1.0,
    seed: int = 0,
) -> AblationEffects:
    """Neurons L0N0, L0N1 … with these effects [neuron, example] and other neurons as controls."""
    names = tuple(f"L0N{place}" for place in range(len(total)))
    drawn = tuple(f"L0N{1000 + place}" for place in range(len(controls)))
    effects = Effects(
        names=names,
        clean=torch.full((total.shape[1],), clean, dtype=torch.float64),
        total=torch.from_numpy(total),
        direct=None,
        example_ids=tuple(map(str, range(total.shape[1]))),
        groups=tuple(groups),
        metric="m",
        unit="nats",
        do="made up",
        site="mlp.hook_post",
        position="last",
    )
    others = torch.from_numpy(controls)
    tried = torch.stack([torch.zeros(len(total)), torch.arange(len(total))], dim=1).long()
    held = LayerControls(drawn, others, smallest_effect(others, groups, clean))
    return AblationEffects(effects, {0: held}, 0.01 * clean, True, seed, tried)
