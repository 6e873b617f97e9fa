"""`compare_prompts`: what a soft prompt adds to the model, beside its controls.

The controls: the prompt before training, random vectors, its own in another order, no prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations import Metric, correct, evaluate, first_token_correct, logit_diff
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import Chat, SoftPrompt, as_adapter
from lens_skills.progress import progress
from lens_skills.results import Result
from lens_skills.scoring.leakage import check_prompt
from lens_skills.soft_prompts.fit_prompt import initial_prompt
from lens_skills.stats.effect_tests import FEW_GROUPS, cluster_interval
from lens_skills.stats.intervals import share_interval


@dataclass(frozen=True, eq=False)
class PromptComparison(Result):
    """Every way of asking, measured on the same examples.

    Attributes:
        names: The ways: trained prompts, their controls, no prompt, hard prompts.
        metrics: ``correct`` (the whole answer greedily, and then the stop), ``greedy`` (without
            the stop), ``first_token`` (the answer's first token is the first choice),
            ``log_probability`` (ln p(answer), nats) and, where every example has a foil,
            ``over_foil`` (the answer is likelier than the foil; chance 1/2).
        values: Per example.
        low, high: The 95 % interval of each mean over groups.
        groups: Of each example.
        exploratory: Whether a prompt was trained on some of these examples.
    """

    names: tuple[str, ...]
    metrics: tuple[str, ...]
    values: Float[Tensor, "prompt metric example"]
    low: Float[Tensor, "prompt metric"]
    high: Float[Tensor, "prompt metric"]
    groups: tuple[str, ...]
    exploratory: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> Float[Tensor, "prompt metric"]:
        """The mean of each metric with each prompt."""
        return self.values.mean(-1)

    def frame(self) -> pd.DataFrame:
        """One row per way and metric: prompt metric mean low high n_examples n_groups."""
        size = {"n_examples": self.values.shape[-1], "n_groups": len(set(self.groups))}
        return pd.DataFrame(
            [
                {
                    "prompt": name,
                    "metric": metric,
                    "mean": float(self.mean[row, column]),
                    "low": float(self.low[row, column]),
                    "high": float(self.high[row, column]),
                    **size,
                }
                for row, name in enumerate(self.names)
                for column, metric in enumerate(self.metrics)
            ]
        )

    def __repr__(self) -> str:
        width = max(map(len, self.names))
        n_groups = len(set(self.groups))
        lines = [
            f"{self.provenance.get('task', 'examples')}: {self.values.shape[-1]} examples in "
            f"{n_groups} groups, mean [95 % interval]",
            " " * width + "".join(f"  {metric:>21}" for metric in self.metrics),
        ]
        for row, name in enumerate(self.names):
            cells = [
                f"{self.mean[row, c]:.3f} [{self.low[row, c]:.2f}, {self.high[row, c]:.2f}]"
                for c in range(len(self.metrics))
            ]
            lines.append(f"{name:<{width}}" + "".join(f"  {cell:>21}" for cell in cells))
        if n_groups < FEW_GROUPS:
            lines.append(f"Fewer than {FEW_GROUPS} groups: the intervals are too narrow.")
        if self.exploratory:
            lines.append("Exploratory: a prompt was trained on some of these examples.")
        return "\n".join(lines)


def _answer(readout: Any) -> Any:
    assert readout.answer is not None, "the plan reads the answer"
    return readout.answer


_LOG_PROBABILITY = Metric(
    "log_probability", lambda r, _: _answer(r).log_probability, frozenset({"answer"})
)

_GREEDY = Metric("greedy", lambda r, _: _answer(r).greedy.double(), frozenset({"answer"}))


def compare_prompts(
    model: Any,
    examples: Sequence[Example],
    prompts: SoftPrompt | Sequence[SoftPrompt],
    *,
    hard: Sequence[str] = (),
    seed: int = 0,
    chat: Chat = False,
    exploratory: bool = False,
) -> PromptComparison:
    """How well the model answers with each soft prompt and with everything it is to beat.

    Beside each trained prompt: itself before training, random vectors of the same lengths and its
    own vectors in another order. Once: no prompt, and each hard prompt. Accuracies need no
    threshold; log-probabilities show what accuracies of 0 hide.

    Args:
        model: A HookedTransformer or TransformerBridge.
        examples: Examples that no prompt was trained or stopped on.
        prompts: One or several.
        hard: Texts to put after the input instead, just before the answer. The best of them is
            the honest baseline: a model that is asked nothing rarely answers.
        seed: Of the random and the shuffled vectors, and of the bootstrap.
        chat: As in `fit_prompt`: what the prompts were trained with.
        exploratory: Allow examples that a prompt was trained on; the result is marked.

    Assumes: hard prompts that were not chosen on these examples; the best of many is optimistic.

    Raises:
        LensSkillsError: A prompt trained on these examples; an example without an answer.
    """
    given = (prompts,) if isinstance(prompts, SoftPrompt) else tuple(prompts)
    if not given:
        raise LensSkillsError("no prompt to compare. Train one: fit_prompt(model, train).")
    for example in examples:
        if example.answer is None:
            raise LensSkillsError(f"example {example.id!r} has no answer to compare prompts by.")
    seen = [check_prompt(prompt, examples, exploratory) for prompt in given]
    metrics = [correct(), _GREEDY, first_token_correct(), _LOG_PROBABILITY]
    if all(example.foil is not None for example in examples):
        metrics.append(logit_diff())

    ways: dict[str, tuple[Sequence[Example], SoftPrompt | None]] = {}
    for prompt in given:
        kind = "trained" if prompt.trained else f"untrained, {prompt.init}"
        ways[_unused(f"{kind}, seed {prompt.seed}", ways)] = examples, prompt
    for place, prompt in enumerate(given):
        of = "" if len(given) == 1 else f", as long as seed {prompt.seed}'s"
        controls = {
            f"before training, seed {prompt.seed}": beginning_of(model, prompt),
            f"random vectors{of}": random_like(prompt, seed + place),
            f"vectors shuffled, seed {prompt.seed}": shuffled_like(prompt, seed + place),
        }
        for name, control in controls.items():
            if control is not None:
                ways[_unused(name, ways)] = examples, control
    ways["no prompt"] = examples, None
    for text in hard:
        asked = [replace(e, prompt=e.prompt + text) for e in examples]
        ways[_unused(f"hard: {text!r}", ways)] = asked, None

    rows = []
    for asked, prompt in progress(ways.values(), len(ways), "compare prompts", "prompts"):
        found = evaluate(model, asked, metrics, prompt=prompt, chat=chat)
        rows.append(torch.stack([_number(name, numbers) for name, numbers in found.items()]))
    values = torch.stack(rows)
    groups = tuple(example.group for example in examples)
    low, high = cluster_interval(values, groups, seed=seed)
    shares = [place for place, metric in enumerate(metrics) if metric is not _LOG_PROBABILITY]
    low[:, shares], high[:, shares] = share_interval(values[:, shares], groups)
    labels = {"first_token_correct": "first_token", "logit_diff": "over_foil"}
    return PromptComparison(
        names=tuple(ways),
        metrics=tuple(labels.get(metric.name, metric.name) for metric in metrics),
        values=values,
        low=low,
        high=high,
        groups=groups,
        exploratory=any(seen),
        provenance={
            "task": getattr(examples, "name", "examples"),
            "split": getattr(examples, "split_name", "all"),
            "model": as_adapter(model).name,
            "chat": chat,
            "prompts": [prompt.digest for prompt in given],
            "seed": seed,
        },
    )


def _number(name: str, numbers: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    return (numbers > 0).double() if name == "logit_diff" else numbers


def _unused(name: str, ways: dict[str, Any]) -> str:
    """The name, numbered where two prompts would share it."""
    count = 2
    unique = name
    while unique in ways:
        unique, count = f"{name} ({count})", count + 1
    return unique


def beginning_of(model: Any, prompt: SoftPrompt) -> SoftPrompt | None:
    """The prompt as it was before training; None where its provenance does not tell."""
    settings = prompt.provenance.get("settings", {})
    if not prompt.trained or "init" not in settings:
        return None
    return initial_prompt(
        model,
        len(prompt.suffix),
        n_prefix=len(prompt.prefix),
        init=settings["init"],
        text=settings.get("text"),
        seed=prompt.seed,
    )


def random_like(prompt: SoftPrompt, seed: int) -> SoftPrompt:
    """Random directions, each as long as the vector in its place."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(vectors: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        noise = torch.randn(vectors.shape, generator=generator, dtype=vectors.dtype)
        return noise * vectors.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)

    return _control(prompt, drawn(prompt.suffix), drawn(prompt.prefix), "random", seed)


def shuffled_like(prompt: SoftPrompt, seed: int) -> SoftPrompt | None:
    """The same vectors in another order; None where there is no other."""
    generator = torch.Generator().manual_seed(seed)

    def mixed(vectors: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        n_vectors = len(vectors)
        if n_vectors < 2:
            return vectors
        order = torch.randperm(n_vectors, generator=generator)
        while bool((order == torch.arange(n_vectors)).all()):
            order = torch.randperm(n_vectors, generator=generator)
        return vectors[order]

    if max(len(prompt.suffix), len(prompt.prefix)) < 2:
        return None
    return _control(prompt, mixed(prompt.suffix), mixed(prompt.prefix), "shuffled", seed)


def _control(
    prompt: SoftPrompt,
    suffix: Float[Tensor, "suffix d_model"],
    prefix: Float[Tensor, "prefix d_model"],
    init: str,
    seed: int,
) -> SoftPrompt:
    # What a shuffled prompt was trained on, it may know by heart: the provenance stays.
    return replace(
        prompt, suffix=suffix, prefix=prefix, trained=False, init=init, seed=seed, curve=()
    )
