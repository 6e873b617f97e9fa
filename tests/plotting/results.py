"""A verdict, a dose-response and a damage matrix written by hand: no model, no pass."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from lens_skills.finetuning import Continual
from lens_skills.interventions.damage_matrix import DamageMatrix
from lens_skills.interventions.dose_response import DoseResponse
from lens_skills.interventions.effects import Effects
from lens_skills.interventions.verdict import (
    COMPENSATED,
    MIXED,
    NO_EFFECT,
    OPPOSES,
    SUPPORTS,
    WORDS,
    Ruling,
    Verdict,
)
from tests.plotting.conftest import LAYERS, WIDTH


def make_verdict(
    n: int = 6,
    *,
    n_control_neurons: int = 110,
    direct: bool = True,
    together: bool = True,
    controls: bool = True,
    seed: int = 0,
    metric: str = "logit_diff",
    unit: str = "nats",
    set_scale: float = 1.0,
    **changes: Any,
) -> Verdict:
    """n neurons of `make_scores`, every word in turn; its control neurons are the others."""
    generator = torch.Generator().manual_seed(seed)
    delta, examples = 0.2, 24
    names = [f"L{place % LAYERS}N{1 + place // LAYERS}" for place in range(n)]
    means = {SUPPORTS: -0.9, OPPOSES: 0.7, MIXED: -0.35, COMPENSATED: -0.05, NO_EFFECT: 0.02}
    rulings = []
    jitter = 0.3 * torch.rand(n, generator=generator, dtype=torch.float64)
    for place, name in enumerate(names):
        word = WORDS[place % len(WORDS)]
        effect = means.get(word, 0.25) * (1 + float(jitter[place]))
        half = 0.04 if word in (COMPENSATED, NO_EFFECT) else 0.15
        n_others = n_control_neurons if controls else 0
        rulings.append(make_ruling(name, word, effect, half, n_controls=n_others))
    if n > 1 and together:
        total = set_scale * sum(ruling.effect for ruling in rulings)
        rulings.append(make_ruling("set", SUPPORTS, total, 0.3, n_controls=80 if controls else 0))
    if not direct:
        gone = dict.fromkeys(
            f"{kind}{end}" for kind in ("direct", "repair") for end in ("_low", "_high")
        )
        rulings = [replace(one, direct=None, self_repair=None, **gone) for one in rulings]
    units = [f"L{layer}N{index}" for layer in range(LAYERS) for index in range(WIDTH)]
    others = [unit for unit in units if unit not in names][:n_control_neurons]

    def normal(spread: float, size: int) -> torch.Tensor:
        return spread * torch.randn(size, generator=generator, dtype=torch.float64)

    several = n > 1 and controls
    total = torch.tensor([ruling.effect for ruling in rulings], dtype=torch.float64)
    return Verdict(
        rulings=tuple(rulings),
        effects=Effects(
            names=tuple(ruling.name for ruling in rulings),
            clean=torch.full((examples,), 2.0, dtype=torch.float64),
            total=total[:, None].repeat(1, examples),
            direct=None,
            example_ids=tuple(f"e{place}" for place in range(examples)),
            groups=tuple(f"g{place // 2}" for place in range(examples)),
            metric=metric,
            unit=unit,
            do="mean ablation over agreement, explore split, 384 examples",
            site="mlp.hook_post",
            position="last",
        ),
        control_neurons=tuple(others),
        control_neuron_effect=normal(0.08, len(others)),
        control_effect=normal(0.15, 80 if several else 0),
        important_effect=normal(0.3, 20 if several else 0),
        delta=delta,
        delta_from="declared",
        tables={"controls": ({"kind": "important", "p": 0.0476},)} if several else {},
        provenance={"model": "tiny", "task": "agreement", "control_neurons": "all layers"},
        **changes,
    )


def make_ruling(name: str, word: str, effect: float, half: float, *, n_controls: int) -> Ruling:
    """A ruling with everything known; rank and p belong to a first place."""
    p = 1 / (1 + n_controls)
    return Ruling(
        name=name,
        word=word,
        why="",
        effect=effect,
        low=effect - half,
        high=effect + 1.1 * half,
        low90=effect - 0.8 * half,
        high90=effect + 0.9 * half,
        size=effect,
        rank=1 if n_controls else None,
        n_controls=n_controls,
        p=p if n_controls else None,
        q=p if n_controls else None,
        direct=1.3 * effect - 0.3,
        direct_low=1.3 * effect - 0.3 - half,
        direct_high=1.3 * effect - 0.3 + half,
        self_repair=0.3 - 0.3 * effect,
        repair_low=0.2 - 0.3 * effect,
        repair_high=0.4 - 0.3 * effect,
    )


def make_curve(doses: Sequence[float] = (-4, -2, 0, 1, 2, 4), *, n_texts: int = 5) -> DoseResponse:
    """A curve that bends, with damage growing as the square of the dose."""
    amounts = torch.tensor(doses, dtype=torch.float64)
    means = 0.4 * amounts - 0.03 * amounts**2
    noise = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spread = torch.linspace(0.5, 1.5, n_texts, dtype=torch.float64)
    return DoseResponse(
        names=("L2N7", "L3N1"),
        doses=amounts,
        effects=means[:, None] + noise - noise.mean(),
        low=means - 0.2,
        high=means + 0.3,
        slope=0.38,
        slope_low=0.3,
        slope_high=0.45,
        monotonicity=1.0,
        damage=0.02 * amounts[:, None] ** 2 * spread,
        clean=noise,
        example_ids=tuple(f"e{place}" for place in range(20)),
        groups=tuple(f"g{place // 2}" for place in range(20)),
        metric="logit_diff",
        unit="nats",
        over="agreement, explore split, 384 examples",
        site="mlp.hook_post",
        position="last",
        provenance={"model": "tiny", "task": "agreement"},
    )


def make_matrix(skills: Sequence[str] = ("add", "sub", "mul")) -> DamageMatrix:
    """Each skill's neurons hurt their own task most; some intervals hold 0."""
    n = len(skills)
    generator = torch.Generator().manual_seed(0)
    effect = -0.2 * torch.rand(n, n, generator=generator, dtype=torch.float64)
    effect -= 1.1 * torch.eye(n, dtype=torch.float64)
    shared = torch.zeros(n, n, dtype=torch.long)
    shared[0, -1] = shared[-1, 0] = 3 if n > 1 else 0
    return DamageMatrix(
        skills=tuple(skills),
        n_units=tuple(10 + place for place in range(n)),
        n_examples=(64,) * n,
        n_groups=(40,) * n,
        clean=(2.0,) * n,
        effect=effect,
        low=effect - 0.1,
        high=effect + 0.1,
        damage=-effect / 1.7,
        dominance=0.61,
        p=1 / math.factorial(n),
        n_relabelings=math.factorial(n),
        shared=shared,
        jaccard=shared / 20.0,
        jaccard_chance=torch.full((n, n), 0.01),
        overlap_p=torch.full((n, n), 0.003),
        metric="logit_diff",
        unit="nats",
        do=("mean ablation over its own explore split",) * n,
        site="mlp.hook_post",
        position="last",
        provenance={"model": "tiny"},
    )


def make_bare(n: int, *, exploratory: bool = False) -> Verdict:
    """Nothing to compare with, no direct effects, and a long name."""
    return make_verdict(
        n,
        n_control_neurons=0,
        controls=False,
        direct=False,
        metric="first_token_correct",
        unit="0/1",
        removes=False,
        exploratory=exploratory,
    )


def make_continual() -> Continual:
    """Three tasks: all is forgotten with all parameters, nothing with the task's neurons."""
    accuracy = torch.zeros(2, 3, 4, 3, dtype=torch.float64)
    for task in range(3):
        accuracy[0, :, task + 1, task] = 0.9
        accuracy[1, :, task + 1 :, task] = torch.tensor([0.7, 0.8, 0.9])[:, None].double()
    zero = torch.zeros(3, 3, 3, dtype=torch.float64)
    return Continual(
        ("plus", "minus", "times"), ("full", "ncft"), (0, 1, 2), accuracy, 40, (900, 90),
        zero, zero, (25,) * 3, (60,) * 3, {"model": "planted"},
    )  # fmt: skip
