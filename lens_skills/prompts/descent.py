"""`descend`: Adam on a soft prompt's vectors, stopped where held-out examples say so."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from lens_skills.errors import LensSkillsError
from lens_skills.models import SoftPrompt
from lens_skills.prompts.batches import TrainingBatch
from lens_skills.prompts.passes import Passes

Schedule = str | Callable[[int], float]

_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
}


@dataclass(frozen=True)
class Settings:
    """How to descend; see `fit_prompt`."""

    epochs: int
    lr: float
    schedule: Schedule
    clip: float | None
    patience: int

    def __post_init__(self) -> None:
        """Refuses numbers that nothing can be trained with, before anything is run."""
        for name, least in (("epochs", 1), ("patience", 1)):
            if getattr(self, name) < least:
                raise LensSkillsError(f"{name}={getattr(self, name)}: at least 1 is needed.")
        # Adam's steps are about as long as lr, and the vectors are numbers of single precision.
        for name, most in (("lr", 1e6), ("clip", math.inf)):
            number = getattr(self, name)
            if number is not None and not 0 < number <= most:
                raise LensSkillsError(
                    f"{name}={number}: a positive number"
                    f"{f' up to {most:g}' if most < math.inf else ''} is needed; the default "
                    "suits most models."
                )

    def factor(self, n_steps: int) -> Callable[[int], float]:
        """The learning rate's factor, from the number of steps taken."""
        if callable(self.schedule):
            return self.schedule
        if self.schedule not in _SCHEDULES:
            raise LensSkillsError(
                f"no schedule {self.schedule!r}. Choose {', '.join(map(repr, _SCHEDULES))}, or "
                "give a function from the step to a factor of the learning rate."
            )
        shape = _SCHEDULES[self.schedule]
        return lambda step: shape(min(step / n_steps, 1.0))


@dataclass(frozen=True)
class Descent:
    """How one prompt's training went.

    Attributes:
        prompt: As it was after the epoch with the lowest held-out loss, with its curve.
        stopped: Why it ended.
        diverged: Whether a number that is not finite ended it.
    """

    prompt: SoftPrompt
    stopped: str
    diverged: bool


class _Diverged(Exception):
    """A loss or a gradient is not finite; says which at which step."""


def descend(
    passes: Passes,
    start: SoftPrompt,
    train: Sequence[TrainingBatch],
    held_out: Sequence[TrainingBatch],
    settings: Settings,
    progress: bool | None,
) -> Descent:
    """The prompt after the epoch with the lowest held-out loss.

    Raises:
        LensSkillsError: A loss or gradient was not finite before the first epoch was over.
    """
    live = replace(
        start,
        suffix=start.suffix.clone().to(passes.lens.device).requires_grad_(),
        prefix=start.prefix.clone().to(passes.lens.device).requires_grad_(),
    )
    vectors = [part for part in (live.suffix, live.prefix) if len(part)]
    adam = torch.optim.Adam(vectors, lr=settings.lr)
    factor = settings.factor(settings.epochs * len(train))
    generator = torch.Generator().manual_seed(start.seed)
    curve = [_look(passes, live, held_out, 0, 0, measured(passes, live, train)[0])]
    best: SoftPrompt | None = None
    lowest = math.inf
    step, since, stopped, diverged = 0, 0, f"after {settings.epochs} epochs", False
    disable = None if progress is None else not progress
    bar = tqdm(range(1, settings.epochs + 1), desc="fit prompt", unit=" epochs", disable=disable)
    for epoch in bar:
        total = 0.0
        try:
            for place in torch.randperm(len(train), generator=generator).tolist():
                step += 1
                for group in adam.param_groups:
                    group["lr"] = settings.lr * factor(step - 1)
                total += _step(passes, live, vectors, train[place], adam, settings.clip, step)
            row = _look(passes, live, held_out, step, epoch, total / sum(map(len, train)))
            if not math.isfinite(row["held_out_loss"]):
                raise _Diverged(f"the held-out loss is {row['held_out_loss']} after step {step}")
        except _Diverged as reason:
            stopped, diverged = str(reason), True
            break
        curve.append(row)
        bar.set_postfix(held_out_loss=f"{row['held_out_loss']:.3f}")
        since += 1
        if row["held_out_loss"] < lowest:
            best, lowest, since = _copied(live), row["held_out_loss"], 0
        if since >= settings.patience:
            stopped = f"no lower held-out loss in {since} epochs, at step {step}"
            break
    bar.close()
    if best is None:
        raise LensSkillsError(
            f"training diverged before the first epoch was over: {stopped}. No prompt was good. "
            f"Lower lr (now {settings.lr:g}), clip gradients (clip=1.0), or begin elsewhere (init)."
        )
    return Descent(replace(best, trained=True, curve=tuple(curve)), stopped, diverged)


def _step(
    passes: Passes,
    live: SoftPrompt,
    vectors: list[torch.Tensor],
    batch: TrainingBatch,
    adam: torch.optim.Adam,
    clip: float | None,
    step: int,
) -> float:
    """The batch's summed loss before one step of Adam on its mean."""
    with torch.enable_grad():
        losses, _ = passes.losses(batch, live)
        loss = losses.mean()
        # By the prompt alone: the model's parameters are given no gradient.
        slopes = torch.autograd.grad(loss, vectors)
    for part, slope in zip(vectors, slopes, strict=True):
        part.grad = slope
    size = torch.nn.utils.clip_grad_norm_(vectors, math.inf if clip is None else clip)
    for what, number in (("loss", float(loss.detach())), ("gradient's size", float(size))):
        if not math.isfinite(number):
            raise _Diverged(f"the {what} is {number} at step {step}")
    adam.step()
    return float(losses.detach().double().sum())


def _look(
    passes: Passes,
    live: SoftPrompt,
    held_out: Sequence[TrainingBatch],
    step: int,
    epoch: int,
    train_loss: float,
) -> dict[str, float]:
    loss, accuracy = measured(passes, live, held_out)
    return {
        "step": float(step),
        "epoch": float(epoch),
        "train_loss": train_loss,
        "held_out_loss": loss,
        "held_out_accuracy": accuracy,
    }


def measured(
    passes: Passes, prompt: SoftPrompt, batches: Sequence[TrainingBatch]
) -> tuple[float, float]:
    """Mean loss, and the share of answers whose tokens are all first choices."""
    with torch.no_grad():
        found = [passes.losses(batch, prompt) for batch in batches]
    losses = torch.cat([loss.double() for loss, _ in found])
    return float(losses.mean()), float(torch.cat([right for _, right in found]).double().mean())


def _copied(live: SoftPrompt) -> SoftPrompt:
    suffix, prefix = (part.detach().cpu().clone() for part in (live.suffix, live.prefix))
    return replace(live, suffix=suffix, prefix=prefix)
