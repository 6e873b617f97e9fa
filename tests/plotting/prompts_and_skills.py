"""Soft prompts, stabilities and skill matrices written by hand: no model, no pass."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lens_skills.data import Example
from lens_skills.models import SoftPrompt
from lens_skills.plotting import Drawing, figures
from lens_skills.resampling import Stability, stability
from lens_skills.scoring import ScoreComparison, Scores, SkillMatrix, compare_scores, skill_matrix
from lens_skills.tasks import Task
from tests.plotting.conftest import make_scores, wide

PROMPT_POSITIONS = tuple(str(place) for place in range(-8, 0))


def make_prompt(seed: int = 0, *, n_looks: int = 14, n_tokens: int = 8) -> SoftPrompt:
    """A prompt that learned, and in the end forgot a little."""
    random = np.random.default_rng(seed)
    steps = 10 * np.arange(n_looks)
    held_out = 1.2 + 2.5 * np.exp(-steps / 35) + 0.002 * steps + 0.05 * random.normal(size=n_looks)
    curve = tuple(
        {
            "step": float(step),
            "epoch": float(step) / 5,
            "train_loss": float(loss - 0.3 + 0.1 * random.normal()),
            "held_out_loss": float(loss),
            "held_out_accuracy": float(np.clip(0.7 - 0.2 * loss, 0, 1)),
        }
        for step, loss in zip(steps, held_out, strict=True)
    )
    return SoftPrompt(
        suffix=torch.zeros(n_tokens, 4),
        prefix=torch.zeros(0, 4),
        model="tiny",
        model_fingerprint="f",
        trained=bool(curve),
        init="text",
        seed=seed,
        curve=curve,
        provenance={"task": "arithmetic"},
    )


def make_seeds(n: int = 3, *, nulls: bool = True, exploratory: bool = False) -> ScoreComparison:
    """n prompts whose r have half of their variance in common."""
    common = make_scores(positions=("-2", "-1"), nulls=nulls, spread=0.3)
    several: list[Scores] = []
    for seed in range(n):
        own = make_scores(positions=("-2", "-1"), nulls=nulls, seed=seed + 1, spread=0.2)
        mixed = (0.9 * common.r + 0.6 * own.r).clamp(-1, 1)
        several.append(replace(own, r=mixed, exploratory=exploratory))
    return compare_scores(several, "confidence", top=20)


def make_stability(over: str = "groups", *, exploratory: bool = False) -> Stability:
    """Three neurons that return, and others that seldom do."""
    examples = [
        Example(id=f"{group}-{k}", prompt=f"{group} {k}", group=str(group))
        for group in range(24)
        for k in range(2)
    ]
    task = Task("arithmetic", examples).with_paraphrases(
        {word: lambda text, word=word: f"{word} {text}" for word in ("now", "then", "often")}
    )
    random = np.random.default_rng(0)
    found = stability(
        lambda _: [f"L{k % 3}N{k}" for k in (1, 2, 3, *(4 + random.permutation(30)[:7]))],
        task,
        over=over,
        n=20 if over == "groups" else None,
        among=600,
    )
    return replace(found, exploratory=exploratory)


def make_skills(names: tuple[str, ...] = (), *, exploratory: bool = False) -> SkillMatrix:
    """Metrics of which the second half repeat the first, with noise."""
    scores = replace(make_scores(positions=("-2", "-1"), spread=0.25), exploratory=exploratory)
    if not names:
        return skill_matrix(scores, top=12)
    generator = torch.Generator().manual_seed(5)
    half = -(-len(names) // 2)
    shape = (half, *scores.r.shape[1:])
    base = 0.28 * torch.randn(shape, generator=generator, dtype=torch.float64)
    noise = 0.12 * torch.randn((len(names), *shape[1:]), generator=generator, dtype=torch.float64)
    r = (torch.cat([base, -base])[: len(names)] + noise).clamp(-1, 1)
    r[:, :, scores.excluded] = 0
    values = torch.rand(len(names), scores.n_examples, generator=generator, dtype=torch.float64)
    wide = replace(
        scores,
        metrics=names,
        r=r,
        low=r - 0.1,
        high=r + 0.1,
        **dict.fromkeys(
            ("p", "p_family", "q", "p_control", "q_control", "excess", "p_basis", "q_basis")
        ),
        thresholds=dict.fromkeys(names, 0.5),
        values=dict(zip(names, values, strict=True)),
    )
    return skill_matrix(wide, top=10)


def draw_curves(n: int = 3, **options: Any) -> Drawing:
    options.pop("exploratory", None)
    return figures.learning_curves([make_prompt(seed) for seed in range(n)], **options)


def draw_positions(
    positions: tuple[str, ...] = PROMPT_POSITIONS, nulls: bool = True, **options: Any
) -> Drawing:
    scores = make_scores(positions=positions, nulls=nulls)
    scores = replace(scores, exploratory=options.pop("exploratory", False))
    return figures.correlation_by_position(scores["label:plural"], **options)


def draw_classes(names: tuple[str, ...], width: float = 3.4, **options: Any) -> Drawing:
    random = np.random.default_rng(0)
    classes = random.integers(len(names), size=400)
    drawing = figures.activation_by_class(
        random.gamma(2.0, size=400) + 0.5 * classes,
        [names[place] for place in classes],
        name="L17N635",
        metric="heuristic",
        site="mlp.hook_post",
        position="-1",
        groups=[str(place % 30) for place in range(400)],
        **options,
    )
    return wide(drawing, width)


def draw_certainty(width: float = 3.4, **options: Any) -> Drawing:
    random = np.random.default_rng(0)
    sure = random.normal(-2, 1, size=300)
    right = random.random(300) < 1 / (1 + np.exp(-sure - 1.5))
    drawing = figures.confidence_against_correctness(
        sure, right, metric="mean_log_probability", unit="nats", about="tiny · skill mix", **options
    )
    return wide(drawing, width)


def draw_scores_certainty(width: float = 3.4, **options: Any) -> Drawing:
    scores = replace(make_scores(), exploratory=options.pop("exploratory", False))
    return wide(figures.confidence_against_correctness(scores), width)


RULES = ("lexical_overlap", "subsequence", "constituent")
SKILLS = (
    "metaphor",
    "red herring",
    "modus ponens",
    "irony",
    "folk physics",
    "statistical syllogism",
)

# Every figure of the setting: small, large, and with all that may be missing missing.
CASES: dict[str, Callable[..., Drawing]] = {
    "curves": draw_curves,
    "curves, one": lambda **o: draw_curves(1, **o),
    "curves, six": lambda **o: draw_curves(6, baselines={"no prompt": 0.02}, **o),
    "positions": draw_positions,
    "positions, one without a null": lambda **o: draw_positions(("last",), False, **o),
    "positions, long": lambda **o: draw_positions(
        ("span(keys to the cabinets, last)", "-2", "-1"), **o
    ),
    "classes": lambda **o: draw_classes(RULES, **o),
    "classes, two": lambda **o: draw_classes(("no", "yes"), **o),
    "classes, twelve": lambda **o: draw_classes(
        tuple(f"a rather long sub-case {place}" for place in range(12)), **o
    ),
    "skills": lambda **o: figures.skill_matrix(
        make_skills(exploratory=o.pop("exploratory", False)), **o
    ),
    "skills, six": lambda **o: figures.skill_matrix(
        make_skills(SKILLS, exploratory=o.pop("exploratory", False)), **o
    ),
    "compared scores": lambda **o: figures.compare_scores(
        make_seeds(exploratory=o.pop("exploratory", False)), **o
    ),
    "compared scores, five without a null": lambda **o: figures.compare_scores(
        make_seeds(5, nulls=False, exploratory=o.pop("exploratory", False)), **o
    ),
    "stability": lambda **o: figures.stability(
        make_stability(exploratory=o.pop("exploratory", False)), **o
    ),
    "stability, paraphrases": lambda **o: figures.stability(
        make_stability("paraphrases", exploratory=o.pop("exploratory", False)), **o
    ),
    "certainty": draw_certainty,
    "certainty, scores": draw_scores_certainty,
}
