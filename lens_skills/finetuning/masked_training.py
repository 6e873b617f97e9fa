"""AdamW on some of a model's weights, which moves no other number; ends by held-out loss."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations.forward import Encoded
from lens_skills.activations.halved_batches import HalvedBatches
from lens_skills.errors import LensSkillsError
from lens_skills.models import EditHook, ModelAdapter
from lens_skills.models.adapter import NO_EDITORS
from lens_skills.models.trainable import TrainedWeights
from lens_skills.progress import Progress
from lens_skills.soft_prompts.training_batches import Losses, TrainingBatch, training_batches


@dataclass(frozen=True)
class FineTuningPlan:
    """How to train; see `finetune`."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    clip: float | None
    patience: int

    def __post_init__(self) -> None:
        """Refuses numbers that nothing can be trained with, before anything is run."""
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise LensSkillsError(f"{name}={getattr(self, name)}: at least 1 is needed.")
        if not 0 < self.lr <= 10 or not 0 <= self.weight_decay * self.lr < 1:
            raise LensSkillsError(
                f"lr={self.lr:g}, weight_decay={self.weight_decay:g}: the learning rate is above 0 "
                "and at most 10, and each step takes lr * weight_decay of a weight off, which is "
                "from 0 to below 1. The defaults suit most models."
            )
        if self.clip is not None and not self.clip > 0:
            raise LensSkillsError(f"clip={self.clip}: a positive norm, or None for any.")


@dataclass(eq=False)
class TrainingState:
    """Where a training is between two epochs: enough to go on with the same numbers.

    Attributes:
        epoch: Epochs done.
        curve: One row for each of them, the first before any.
        live: The weights now, by name.
        best: As they were after the epoch with the lowest held-out loss.
        moments: AdamW's two moments of each.
        stopped: Why it ended; empty while it has not.
        diverged: Whether a number that is not finite ended it.
    """

    epoch: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    live: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    stopped: str = ""
    diverged: bool = False

    @property
    def best_row(self) -> dict[str, float]:
        """The row of the epoch with the lowest held-out loss."""
        return min(self.curve[1:], key=lambda row: row["held_out_loss"])

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As tensors and plain values, for a checkpoint."""
        tensors = {
            f"{kind}/{n}": t for kind in ("live", "best") for n, t in getattr(self, kind).items()
        }
        for name, pair in self.moments.items():
            tensors |= {f"moment{i}/{name}": part for i, part in enumerate(pair)}
        plain = {"epoch": self.epoch, "curve": self.curve, "stopped": self.stopped}
        return tensors, {**plain, "diverged": self.diverged}

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> "TrainingState":
        """What `packed` gave."""

        def under(kind: str) -> dict[str, Tensor]:
            return {n.partition("/")[2]: t for n, t in tensors.items() if n.startswith(f"{kind}/")}

        first, second = under("moment0"), under("moment1")
        moments = {name: (first[name], second[name]) for name in first}
        return cls(live=under("live"), best=under("best"), moments=moments, **plain)


class _Diverged(Exception):
    """A loss or a gradient is not finite; says which at which step."""


def train(
    adapter: ModelAdapter,
    weights: Sequence[TrainedWeights],
    rows: Sequence[Encoded],
    held_out: Sequence[Encoded],
    plan: FineTuningPlan,
    *,
    seed: int,
    rates: Float[Tensor, " neuron"] | None = None,
    state: TrainingState | None = None,
    keep: Callable[[TrainingState], None] = lambda state: None,
) -> TrainingState:
    """Trains the weights in place; the model is left with those of the best epoch.

    Each of them is a tensor of its own to AdamW, which decays and moves these numbers alone: all
    others of the model keep their bits.

    Args:
        adapter: A model of its own (`lens_skills.models.trainable.copied`).
        weights: What is trained.
        rows: What is learned; every example has an answer.
        held_out: What training stops by.
        plan: How.
        seed: Of the order of the examples.
        rates: A factor of the learning rate for each neuron, 0 to 1.
        state: Where an interrupted training was.
        keep: Called after each epoch.

    Raises:
        LensSkillsError: A loss that is not finite before the first epoch is over; no gradient
            reaches any of the weights.
    """
    state = state or TrainingState()
    device = weights[0].parameter.device
    exact = torch.promote_types(adapter.dtype, torch.float32)  # small steps are not rounded away
    if not state.live:
        state.live = {one.name: one.read().to(exact) for one in weights}
    live = [torch.nn.Parameter(state.live[one.name].to(device)) for one in weights]
    factors = [_factor(one, rates, like) for one, like in zip(weights, live, strict=True)]
    adam = torch.optim.AdamW(live, lr=plan.lr, weight_decay=plan.weight_decay)
    n_steps = math.ceil(len(rows) / plan.batch_size)
    for one, part in zip(weights, live, strict=True):
        if one.name in state.moments:
            first, second = (moment.to(part) for moment in state.moments[one.name])
            step = torch.tensor(float(state.epoch * n_steps))
            adam.state[part] = {"step": step, "exp_avg": first, "exp_avg_sq": second}
        one.write(part.detach())
    looked_at = training_batches(adapter, held_out, plan.batch_size)
    halves = HalvedBatches(adapter.device)
    wanted = _only_asked(adapter, weights)
    try:
        if not state.curve:
            before = _look(adapter, looked_at, halves)
            state.curve = [{"epoch": 0.0, "train_loss": math.nan, **before}]
        with Progress(
            plan.epochs * n_steps, "finetune", "steps", done=state.epoch * n_steps
        ) as bar:
            while not state.stopped:
                try:
                    row = _epoch(
                        adapter, weights, live, factors, adam, rows, plan, state, seed, bar, halves
                    )
                    row |= _look(adapter, looked_at, halves)
                    if not math.isfinite(row["held_out_loss"]):
                        raise _Diverged(f"the held-out loss is {row['held_out_loss']}")
                except _Diverged as reason:
                    state.stopped = f"{reason} in epoch {state.epoch + 1}"
                    state.diverged = True
                    break
                _close_epoch(state, row, weights, live, adam, plan)
                bar.note(f"epoch {state.epoch}, held-out loss {row['held_out_loss']:.3f}")
                keep(state)
    finally:
        for parameter, before in wanted:
            parameter.requires_grad_(before)
    if not state.best:
        raise LensSkillsError(
            f"training diverged before the first epoch was over: {state.stopped}. Lower lr (now "
            f"{plan.lr:g}) or clip gradients (clip=1.0)."
        )
    for one in weights:
        one.write(state.best[one.name].to(device))
    return state


def _epoch(
    adapter: ModelAdapter,
    weights: Sequence[TrainedWeights],
    live: Sequence[torch.nn.Parameter],
    factors: Sequence[Tensor | None],
    adam: torch.optim.AdamW,
    rows: Sequence[Encoded],
    plan: FineTuningPlan,
    state: TrainingState,
    seed: int,
    bar: Progress,
    halves: HalvedBatches,
) -> dict[str, float]:
    """One pass over the examples, in an order of seed and epoch alone."""
    total, reached = 0.0, 0.0
    owners = list({id(one.parameter): one.parameter for one in weights}.values())
    for chunk in _chunks(rows, plan.batch_size, seed, state.epoch):
        adam.zero_grad()

        def differentiate(some: Sequence[Encoded], n: int = len(chunk)) -> Tensor:
            """The losses of some of the batch's examples; their part of its gradient is added."""
            with torch.enable_grad():
                losses, _ = batch_losses(adapter, TrainingBatch.of(adapter, some))
                slopes = torch.autograd.grad(losses.sum() / n, owners, allow_unused=True)
            slope_of = {id(owner): slope for owner, slope in zip(owners, slopes, strict=True)}
            # All is made before any of it is added: who runs out of memory here has added nothing.
            found = []
            for one, part in zip(weights, live, strict=True):
                slope = slope_of[id(one.parameter)]
                found.append(None if slope is None else one.part_of(slope).to(part))
                if len(some) < n and part.grad is None:
                    part.grad = torch.zeros_like(part)
            for part, slope in zip(live, found, strict=True):
                if part.grad is None:
                    part.grad = torch.zeros_like(part) if slope is None else slope
                elif slope is not None:
                    part.grad.add_(slope)
            return losses.detach()

        losses = torch.cat(halves.run(chunk, differentiate))
        size = torch.nn.utils.clip_grad_norm_(live, math.inf if plan.clip is None else plan.clip)
        for what, number in (("loss", float(losses.mean())), ("gradient", float(size))):
            if not math.isfinite(number):
                raise _Diverged(f"the {what} is {number}")
        reached += float(size)
        before = [
            part.detach().clone() if f is not None else None
            for part, f in zip(live, factors, strict=True)
        ]
        adam.step()
        for one, part, old, factor in zip(weights, live, before, factors, strict=True):
            if old is not None and factor is not None:
                part.data.copy_(old + factor * (part.data - old))
            one.write(part.detach())
        total += float(losses.double().sum())
        bar.update()
    if reached == 0 and state.epoch == 0:
        raise LensSkillsError(
            "no gradient reaches any of the weights: the mask trains nothing. Its neurons are "
            "silent on these examples, or write nothing; choose others (ls.rank(…).top(100))."
        )
    return {"epoch": state.epoch + 1.0, "train_loss": total / len(rows)}


def _close_epoch(
    state: TrainingState,
    row: dict[str, float],
    weights: Sequence[TrainedWeights],
    live: Sequence[torch.nn.Parameter],
    adam: torch.optim.AdamW,
    plan: FineTuningPlan,
) -> None:
    """Takes an epoch into the state; says whether it was the last."""
    lowest = min((r["held_out_loss"] for r in state.curve[1:]), default=math.inf)
    state.curve.append(row)
    state.epoch += 1
    names = [one.name for one in weights]
    state.live = {n: part.detach().cpu().clone() for n, part in zip(names, live, strict=True)}
    state.moments = {
        n: (adam.state[part]["exp_avg"], adam.state[part]["exp_avg_sq"])
        for n, part in zip(names, live, strict=True)
    }
    if row["held_out_loss"] < lowest:
        state.best = {name: part.clone() for name, part in state.live.items()}
    since = state.epoch - int(state.best_row["epoch"])
    if since >= plan.patience:
        state.stopped = f"no lower held-out loss in {since} epochs"
    elif state.epoch >= plan.epochs:
        state.stopped = f"after {plan.epochs} epochs"


def _chunks(rows: Sequence[Encoded], size: int, seed: int, epoch: int) -> Iterator[list[Encoded]]:
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    order = torch.randperm(len(rows), generator=generator).tolist()
    for start in range(0, len(order), size):
        yield [rows[place] for place in order[start : start + size]]


def batch_losses(
    adapter: ModelAdapter, batch: TrainingBatch, editors: Mapping[str, EditHook] = NO_EDITORS
) -> Losses:
    """Loss (nats) and greedy success of each example, by a pass of the whole model."""
    logits = adapter.forward(
        batch.tokens,
        batch.mask,
        readers={},
        logits_at=batch.predicting,
        editors=editors,
        differentiable=torch.is_grad_enabled(),
    )
    assert logits is not None
    return batch.losses(logits)


def _look(
    adapter: ModelAdapter, batches: Sequence[TrainingBatch], halves: HalvedBatches
) -> dict[str, float]:
    loss, right = loss_and_accuracy(adapter, batches, halves)
    return {"held_out_loss": loss, "held_out_accuracy": right}


def loss_and_accuracy(
    adapter: ModelAdapter, batches: Sequence[TrainingBatch], halves: HalvedBatches | None = None
) -> tuple[float, float]:
    """Mean -ln p(answer) (nats), and the share of answers whose tokens are all first choices."""
    halves = halves or HalvedBatches(adapter.device)

    def read(batch: TrainingBatch, some: Sequence[Encoded]) -> Losses:
        return batch_losses(adapter, batch.part(adapter, some))

    with torch.no_grad():
        found = [p for batch in batches for p in halves.run(batch.encoded, partial(read, batch))]
    losses = torch.cat([loss.double() for loss, _ in found])
    return float(losses.mean()), float(torch.cat([right for _, right in found]).double().mean())


def _only_asked(
    adapter: ModelAdapter, weights: Sequence[TrainedWeights]
) -> list[tuple[torch.nn.Parameter, bool]]:
    """Asks gradients of the trained parameters alone; what was asked of each before."""
    trained = {id(one.parameter) for one in weights}
    before = [(parameter, parameter.requires_grad) for parameter in adapter.model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(id(parameter) in trained)
    return before


def _factor(
    one: TrainedWeights, rates: Float[Tensor, " neuron"] | None, like: Tensor
) -> Tensor | None:
    if rates is None or one.places is None:
        return None
    mine = rates[one.places].to(like)
    return mine.reshape(-1, *[1] * (like.ndim - 1))
