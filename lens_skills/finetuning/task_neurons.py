"""Which neurons matter to a task, and the masks that fine-tuning on tasks in turn is tried with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations.forward import Encoded, encode_examples
from lens_skills.activations.halved_batches import HalvedBatches
from lens_skills.activations.locations import DEFAULT_SITE, find_site
from lens_skills.activations.metrics import causal_metric
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.finetuning.finetune import trained_units
from lens_skills.finetuning.masked_training import batch_losses
from lens_skills.interventions.control_neurons import random_neurons
from lens_skills.models import ModelAdapter
from lens_skills.ranking import rank
from lens_skills.soft_prompts.training_batches import TrainingBatch, training_batches

MASKS = {
    "full": "every parameter",
    "ncft": "the current task's neurons",
    "w_ncft": "the same, each at its share of the current task",
    "random": "as many random others of the same layers",
    "top_r": "as many with the largest |r|",
}
"""The built-in masks of `continual`, and what each trains."""


def importance(
    adapter: ModelAdapter, rows: Sequence[Encoded], batch_size: int = 32
) -> Float[Tensor, "layer neuron"]:
    """How much each MLP neuron matters to a task: the mean of |a · ∂L/∂a|, in nats.

    The mean is over examples, of each one's sum over its tokens; a is the neuron's activation
    (``mlp.hook_post``) and L the example's -ln p(answer). To first order it is how much L changes
    where the activation is set to 0 at single tokens.

    Args:
        adapter: The model.
        rows: The task's examples with answers, encoded for it.
        batch_size: Examples per pass.

    Source: Leng & Xiong 2024 (arXiv 2407.06488) score neurons by activation times gradient. They
    do not say here which tokens count; ours are all. ``rank(method="taylor")`` has the same
    product of another metric at one token.
    """
    site = find_site(adapter, DEFAULT_SITE)
    names = [site.hook_name(layer) for layer in site.layers]
    total = torch.zeros(len(names), adapter.mlp_widths[site.layers[0]], dtype=torch.float64)
    halves = HalvedBatches(adapter.device)

    def measure(part: Sequence[Encoded]) -> Float[Tensor, "layer neuron"]:
        batch, kept = TrainingBatch.of(adapter, part), dict[str, Tensor]()

        def keeper(name: str, kept: dict[str, Tensor] = kept) -> Any:
            def keep(activation: Tensor) -> Tensor:
                here = activation if activation.requires_grad else activation.requires_grad_()
                kept[name] = here
                return here

            return keep

        with torch.enable_grad():
            losses, _ = batch_losses(adapter, batch, {name: keeper(name) for name in names})
            slopes = torch.autograd.grad(losses.sum(), [kept[name] for name in names])
        sums = []
        for name, slope in zip(names, slopes, strict=True):
            product = (kept[name].detach().double() * slope.double()).abs()
            product = product * batch.mask[..., None].to(product)
            sums.append(reduce(product, "example pos neuron -> neuron", "sum").cpu())
        return torch.stack(sums)

    for batch in training_batches(adapter, rows, batch_size):
        for part in halves.run(batch.encoded, measure):
            total += part
    return total / len(rows)


def strongest(scores: Float[Tensor, "layer neuron"], k: int) -> Int[Tensor, "k 2"]:
    """Layer and index of the k neurons with the largest numbers, over all layers."""
    order = scores.flatten().argsort(descending=True, stable=True)[:k]
    width = scores.shape[1]
    return torch.stack([order // width, order % width], dim=1)


@dataclass(frozen=True, eq=False)
class Mask:
    """What one training may change.

    Attributes:
        units: The neurons, ``[neuron 2]``; None: every parameter.
        rates: A factor of the learning rate of each, 0 to 1; None: 1.
    """

    units: Int[Tensor, "neuron 2"] | None
    rates: Float[Tensor, " neuron"] | None = None


def mask_of(
    kind: str,
    own: Mapping[str, Any] | None,
    task: str,
    adapter: ModelAdapter,
    learned: Sequence[Example],
    *,
    scores: Float[Tensor, "layer neuron"],
    earlier: Sequence[Float[Tensor, "layer neuron"]],
    k: int,
    metric: Any,
    seed: int,
) -> Mask:
    """The mask of one kind for the task that comes next.

    Args:
        kind: One of `MASKS`, or the name of the user's own.
        own: The user's own neurons for each task.
        task: Its name.
        adapter: The model as it is before the task.
        learned: The examples it is to learn.
        scores: Their `importance` in this model.
        earlier: The importance of each task that was learned before, as it was then.
        k: How many neurons.
        metric: What ``"top_r"`` correlates with.
        seed: Of the random neurons.
    """
    if own is not None:
        return Mask(trained_units(adapter, own[task]))
    if kind == "full":
        return Mask(None)
    if kind == "top_r":
        metric = metric or causal_metric(learned)
        ranking = rank(adapter, learned, metric, method="pearson")
        if ranking.n_ranked < k:
            raise LensSkillsError(
                f"only {ranking.n_ranked} neurons vary on {task!r}, and {k} of largest |r| are to "
                "be trained. Give a smaller share, or masks without 'top_r'."
            )
        return Mask(ranking.top(k).rows)
    chosen = strongest(scores, k)
    if kind == "random":
        return Mask(random_neurons(chosen, k, width=scores.shape[1], seed=seed))
    if kind == "ncft" or not earlier:
        return Mask(chosen)
    return Mask(chosen, share_of_current(scores, earlier)[chosen[:, 0], chosen[:, 1]])


def share_of_current(
    scores: Float[Tensor, "layer neuron"], earlier: Sequence[Float[Tensor, "layer neuron"]]
) -> Float[Tensor, "layer neuron"]:
    """Each neuron's importance to the current task over that to this and all earlier ones, 0 to 1.

    Of each task the importance is taken as a share of all neurons', so that a task of large losses
    does not outweigh the others.

    >>> share_of_current(torch.tensor([[1.0, 3.0]]), [torch.tensor([[3.0, 1.0]])]).tolist()
    [[0.25, 0.75]]
    """
    current, *before = (each / each.sum().clamp(min=1e-30) for each in (scores, *earlier))
    return current / (current + sum(before)).clamp(min=1e-30)


def encoded(adapter: ModelAdapter, examples: Sequence[Example]) -> list[Encoded]:
    """The examples with their answers, in tokens."""
    return encode_examples(adapter, examples, answers=True)
