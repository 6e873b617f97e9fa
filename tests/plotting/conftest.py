"""Small results written by hand: no model, no pass."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from lens_skills.plotting import Drawing, figures
from lens_skills.scoring import Scores, Selection

METRICS = ("label:plural", "confidence", "correct")
LAYERS, WIDTH, N = 4, 30, 60


def make_scores(
    *,
    positions: tuple[str, ...] = ("last",),
    nulls: bool = True,
    seed: int = 0,
    spread: float = 0.2,
    layers: int = LAYERS,
    width: int = WIDTH,
) -> Scores:
    """Seeded scores of 4 layers of 30 neurons; the first neuron is constant, so excluded."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n_units = layers * width
    r = (spread * normal(len(METRICS), len(positions), n_units)).clamp(-1, 1)
    excluded = torch.zeros(n_units, dtype=torch.bool)
    excluded[0] = True
    r[:, :, excluded] = 0
    flat = len(positions) * n_units
    turned = {name: (0.12 * normal(2, flat)).clamp(-1, 1) for name in METRICS}
    bars = torch.rand(3, generator=generator, dtype=torch.float64) * 0.3 + 0.1
    thresholds = {
        name: bar if nulls else None for name, bar in zip(METRICS, bars.tolist(), strict=True)
    }
    family = torch.where(r.abs() > bars[:, None, None], 0.01, 0.6).double()
    q_control = torch.where(r.abs() > 0.35, 0.02, 0.7).double()
    excess = r.abs() / 0.12
    label = (torch.arange(N) % 2).double()
    p = torch.rand(r.shape, generator=generator, dtype=torch.float64) if nulls else None
    return Scores(
        metrics=METRICS,
        layer=torch.arange(layers).repeat_interleave(width),
        neuron=torch.arange(width).repeat(layers),
        positions=positions,
        r=r,
        low=r - 0.1,
        high=r + 0.1,
        p=p,
        p_family=family if nulls else None,
        q=p,
        p_control=q_control if nulls else None,
        q_control=q_control if nulls else None,
        excess=excess if nulls else None,
        p_basis=(-excess).exp() if nulls else None,
        q_basis=(-excess).exp() if nulls else None,
        thresholds=thresholds,
        null_max={},
        control_max={},
        rotated_r=turned if nulls else {},
        mean=normal(len(positions), n_units),
        std=normal(len(positions), n_units).abs(),
        class_means={},
        smd={},
        predictivity={},
        values={
            "label:plural": label,
            "confidence": torch.rand(N, generator=generator, dtype=torch.float64),
            "correct": label.flip(0),
        },
        excluded=excluded,
        site="mlp.hook_post",
        n_examples=N,
        n_groups=12,
        example_ids=tuple(f"e{i}" for i in range(N)),
        groups=tuple(f"g{i}" for i in range(12)),
        provenance={
            "model": "tiny",
            "task": "agreement",
            "units": {"label:plural": "column", "confidence": "probability", "correct": "0/1"},
        },
    )


def evidence_row(place: int, grade: str, stopped_by: str, **changed: Any) -> dict[str, Any]:
    """The evidence for one neuron."""
    r = 0.9 - 0.02 * place
    row: dict[str, Any] = {
        "name": f"L2N{place}", "layer": 2, "neuron": place, "position": "last",
        "r_confirm": r - 0.1, "low": r - 0.2, "high": r, "r_explore": r, "p_family": 0.01,
        "q_control": 0.02, "excess": 3.0, "q_basis": 0.4, "p_confirm": 0.001, "q_confirm": 0.002,
        "q_control_confirm": 0.03, "grade": grade, "badge": "", "stopped_by": stopped_by,
    }  # fmt: skip
    return row | changed


EVIDENCE = (
    evidence_row(0, "B", "", badge="basis-privileged", q_basis=0.01),
    evidence_row(1, "B", ""),
    evidence_row(2, "C", "control task on confirm", q_control_confirm=0.4),
    evidence_row(3, "C", "control task", q_control=0.5, q_control_confirm=None),
    evidence_row(4, "", "association on confirm", q_confirm=0.7, q_control=0.9),
    evidence_row(5, "", "sign on confirm", r_confirm=-0.5, low=-0.6, high=-0.4),
    evidence_row(6, "", "not tested on confirm", r_confirm=None, low=None, high=None),
)
"""One neuron stopped at each test, and two at none."""


def make_selection(exploratory: bool = False) -> Selection:
    """A selection of two neurons of seven that are associated."""
    numbers = torch.tensor([0.8, 0.78], dtype=torch.float64)
    return Selection(
        neurons=torch.tensor([[2, 0], [2, 1]]),
        position=("last", "last"),
        r_explore=numbers,
        r_confirm=numbers,
        p=numbers,
        q=numbers,
        mean=numbers,
        std=numbers,
        metric="label:plural",
        site="mlp.hook_post",
        positions=("last",),
        attrition={
            "neurons": 120,
            "associated": 7,
            "beat the control task": 4,
            "confirmed": 2,
            "basis-privileged": 1,
        },
        fdr=0.05,
        rows=EVIDENCE,
        exploratory=exploratory,
        provenance={
            "explore": {"model": "tiny", "task": "agreement"},
            "scored": {"neurons": 120},
            "example_ids": ["a", "b"],
            "groups": ["g"],
        },
    )


def draw_scatter(scores: Scores, metric: str, **options: Any) -> Drawing:
    return figures.activation_scatter(
        scores.values["confidence"] * 2 + 0.3 * scores.values[metric],
        scores.values[metric],
        name="L2N7",
        metric=metric,
        site=scores.site,
        position="last",
        exploratory=scores.exploratory,
        **options,
    )


def wide(drawing: Drawing, inches: float) -> Drawing:
    return drawing.styled(width=inches * 25.4)


# Every kind of figure, drawn from scores.
DRAW: dict[str, Callable[[Scores, float], Drawing]] = {
    "r_distribution": lambda s, width: wide(figures.r_distribution(s["confidence"]), width),
    "layer_profile": lambda s, width: wide(figures.layer_profile(s["confidence"]), width),
    "metric_heatmap": lambda s, width: wide(figures.metric_heatmap(s, k=5), width),
    "reliability": lambda s, width: wide(figures.reliability(s), width),
    "attrition": lambda s, width: wide(figures.attrition(make_selection(s.exploratory)), width),
    "scatter": lambda s, width: wide(draw_scatter(s, "confidence"), width),
    "strips": lambda s, width: wide(draw_scatter(s, "correct"), width),
}


@pytest.fixture(scope="session")
def scores() -> Scores:
    return make_scores()


@pytest.fixture(scope="session")
def exploratory(scores: Scores) -> Scores:
    return replace(scores, exploratory=True)


@pytest.fixture(params=DRAW)
def draw(request: pytest.FixtureRequest) -> Callable[[Scores, float], Drawing]:
    """Each kind of figure in turn."""
    return DRAW[request.param]
