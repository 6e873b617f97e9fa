"""`fit_prompt`: soft prompts trained on a frozen model; `initial_prompt`: what they begin from."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lens_skills import settings
from lens_skills.activations.forward import encode_examples
from lens_skills.checkpoints import Checkpoint, resumable
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import Chat, SoftPrompt, as_adapter, with_soft_prompt
from lens_skills.models.adapter import EMBEDDING
from lens_skills.progress import Progress
from lens_skills.results import versions
from lens_skills.soft_prompts.training_batches import (
    TrainingBatch,
    TrainingPasses,
    training_batches,
    training_parts,
)

Schedule = str | Callable[[int], float]


@resumable()
def fit_prompt(
    model: Any,
    examples: Sequence[Example],
    *,
    n_tokens: int = 8,
    n_prefix: int = 0,
    init: str | float = "vocabulary",
    text: str | None = None,
    ending: str = "",
    seeds: int = 1,
    seed: int = 0,
    epochs: int = 40,
    batch_size: int = 32,
    lr: float = 1e-2,
    schedule: Schedule = "constant",
    clip: float | None = 1.0,
    patience: int = 10,
    held_out: float | Sequence[Example] = 0.2,
    chat: Chat = False,
    checkpoint: str | Path | None = None,
) -> Any:
    """A trained soft prompt, or a tuple of them where ``seeds`` is above 1.

    Minimises the mean over examples of -ln p(answer | input, prompt), all of the answer's tokens
    together (nats), by Adam on the prompt's vectors alone; the model is frozen. After each epoch
    the held-out examples are looked at, and the prompt with the lowest loss there comes back.

    The prompt follows the input, so the input's keys and values do not depend on it: they are
    computed once (as many as ``ls.config(memory_mb=…)`` keeps, the others anew in each epoch), and
    each step runs the prompt's and the answer's columns only. Where that is
    not exact (vectors before the input, an architecture that does not allow it) the whole model
    is run at each step; ``provenance["passes"]`` says so.

    Args:
        model: A HookedTransformer or TransformerBridge; it is left as it was, bit for bit.
        examples: A `Task` or any sequence of `Example` with answers.
        n_tokens: Vectors after the input: only their activations depend on it.
        n_prefix: Vectors before the input, trained along.
        init: See `initial_prompt`.
        text: Begin with the embeddings of this text's tokens instead.
        ending: Text that is to follow every answer, learned with it: ``"\\n"`` teaches the model
            to stop, which `correct` demands.
        seeds: How many prompts: with seed, seed + 1, … They share the held-out examples.
        seed: Of the beginning and of the order of the batches.
        epochs: At most so many.
        batch_size: Examples per step.
        lr: Adam's learning rate.
        schedule: ``"constant"``, ``"cosine"`` or ``"linear"`` (to 0 at the last epoch), or a
            function from the number of steps taken to a factor of the learning rate.
        clip: The gradient's largest norm (None: any).
        patience: Epochs without a lower held-out loss after which it ends.
        held_out: The share of the examples, in whole groups, that is only looked at; or examples
            of their own.
        chat: Read prompts in the tokenizer's chat template (a text: with this system prompt). The
            vectors after the input then stand between the opening of the assistant's turn and the
            answer, those before it in front of the template, after its beginning-of-sequence
            token. A prompt trained in a chat is read in that chat only.
        checkpoint: A folder that keeps the vectors and Adam's moments, about once a minute; the
            same call goes on at the step they are of, with the same numbers.

    Raises:
        LensSkillsError: A learning rate, clip or count out of range; an example without an
            answer; too few groups to hold some out; a prompt beyond the context; a loss that is
            not finite before the first epoch is over (later, training ends with a warning and the
            best prompt so far comes back).

    Source: prompt tuning, Lester et al. 2021 (arXiv 2104.08691), there before the input; neurons
    read on the prompt, Wang et al. 2022 (arXiv 2211.07349).
    """
    adapter: Any = with_soft_prompt(model, None, chat)
    if adapter.soft is not None:
        raise LensSkillsError(
            f"{adapter.name} is read with a soft prompt already; train a bare model."
        )
    for name, number in (("seeds", seeds), ("batch_size", batch_size)):
        if number < 1:
            raise LensSkillsError(f"{name}={number}: at least 1 is needed.")
    plan = TrainingSettings(epochs, lr, schedule, clip, patience)
    plan.factor(1)  # an unknown schedule is refused before anything is run
    train, looked_at = training_parts(examples, held_out)
    # As long as those that are trained, and made without a pass: what is too long is refused first.
    blank = initial_prompt(adapter, n_tokens, n_prefix=n_prefix, init=0.0)
    spoken = with_soft_prompt(adapter, blank)
    both = encode_examples(spoken, [_ended(e, ending) for e in (*train, *looked_at)], answers=True)
    batches = training_batches(spoken, both[: len(train)], batch_size)
    held_batches = training_batches(spoken, both[len(train) :], batch_size)
    starts = [
        initial_prompt(
            adapter, n_tokens, n_prefix=n_prefix, init=init, text=text, seed=seed + number
        )
        for number in range(seeds)
    ]
    passes = TrainingPasses(adapter, starts[0], settings.memory_mb(KEPT_MB))
    chosen = {
        **asdict(replace(plan, schedule=_name(schedule))),
        **{"init": init, "text": text, "ending": ending, "batch_size": batch_size},
        **adapter.reading,
    }
    found = []
    for start in starts:
        descent = descend(passes, start, batches, held_batches, plan)
        if descent.diverged:
            warnings.warn(
                f"training ended early, with the best prompt so far: {descent.stopped}.",
                RuntimeWarning,
                stacklevel=2,
            )
        provenance = {
            "task": getattr(examples, "name", "examples"),
            "split": getattr(examples, "split_name", "all"),
            "example_ids": sorted({e.id for e in (*train, *looked_at)}),
            "groups": sorted({e.group for e in (*train, *looked_at)}),
            "held_out_ids": sorted(e.id for e in looked_at),
            "settings": chosen,
            "stopped": descent.stopped,
            "passes": "from the prompt on" if passes.whole is None else f"whole: {passes.whole}",
            "kept_mb": round(passes.n_bytes / 2**20, 3),
            "versions": versions(),
        }
        found.append(replace(descent.prompt, provenance=provenance))
    return found[0] if seeds == 1 else tuple(found)


def _ended(example: Example, ending: str) -> Example:
    return replace(example, answer=f"{example.answer}{ending}", options=()) if ending else example


def _name(schedule: Schedule) -> str:
    return schedule if isinstance(schedule, str) else getattr(schedule, "__name__", "a function")


KEPT_MB = 2000  # of keys and values, where config(memory_mb=…) says nothing
_SAMPLE = 1000  # tokens whose embeddings give the scale of all


def initial_prompt(
    model: Any,
    n_tokens: int = 8,
    *,
    n_prefix: int = 0,
    init: str | float = "vocabulary",
    text: str | None = None,
    seed: int = 0,
) -> SoftPrompt:
    """An untrained soft prompt, as `fit_prompt` begins with the same arguments.

    Args:
        model: A HookedTransformer or TransformerBridge.
        n_tokens: Vectors after the input.
        n_prefix: Vectors before it.
        init: ``"vocabulary"``: embeddings of random tokens; ``"normal"``: normal numbers as large
            as the model's embeddings; a number: normal numbers with that standard deviation.
        text: Instead: the embeddings of this text's tokens, repeated or cut to the length.
        seed: Of the random numbers.

    Source: Wang et al. 2022 (arXiv 2211.07349) begin from N(0, 1)/30: ``init=1/30``.

    Raises:
        LensSkillsError: No vectors at all, an unknown beginning, a text without tokens.
    """
    adapter = as_adapter(model)
    if min(n_tokens, n_prefix) < 0 or n_tokens + n_prefix == 0:
        raise LensSkillsError(
            f"a soft prompt of {n_tokens} vectors after the input and {n_prefix} before it. Give "
            "n_tokens=8, or n_prefix= for vectors before the input."
        )
    n_vectors = n_tokens + n_prefix
    if n_vectors >= adapter.n_ctx:
        raise LensSkillsError(
            f"{n_vectors} soft tokens leave no room for an input: {adapter.name} reads at most "
            f"{adapter.n_ctx} tokens. Ask for fewer (n_tokens, n_prefix)."
        )
    generator = torch.Generator().manual_seed(seed)
    if text is not None:
        ids = adapter.encode_plain(text)
        if not ids:
            raise LensSkillsError(f"text={text!r} has no tokens to begin a soft prompt from.")
        after, before = _repeated(ids, n_tokens), _repeated(ids, n_prefix)
        vectors, name = embeddings(adapter, [*before, *after]), f"text {text!r}"
    elif init == "vocabulary":
        vectors, name = embeddings(adapter, _tokens(adapter, n_vectors, generator)), "vocabulary"
    elif init == "normal" or (isinstance(init, float | int) and not isinstance(init, bool)):
        if isinstance(init, str):
            # The same sample whatever the seed: the scale is the model's.
            sample = _tokens(adapter, _SAMPLE, torch.Generator().manual_seed(0))
            scale, name = float(embeddings(adapter, sample).double().std()), "normal"
        else:
            scale, name = float(init), f"normal {init:g}"
        vectors = scale * torch.randn(n_vectors, adapter.d_model, generator=generator)
    else:
        raise LensSkillsError(
            f"no beginning {init!r}. Choose 'vocabulary', 'normal', a standard deviation (1/30), "
            "or give text='…'."
        )
    # Trained in full precision, whatever the model's: small steps must not be rounded away.
    vectors = vectors.to("cpu", torch.promote_types(adapter.dtype, torch.float32))
    return SoftPrompt(
        suffix=vectors[n_prefix:].clone(),
        prefix=vectors[:n_prefix].clone(),
        model=adapter.name,
        model_fingerprint=adapter.fingerprint(),
        trained=False,
        init=name,
        seed=seed,
    )


def embeddings(adapter: Any, ids: list[int]) -> Float[Tensor, "token d_model"]:
    """What stands for each token where soft vectors enter."""
    seen: list[Tensor] = []
    tokens = rearrange(torch.tensor(ids), "token -> token 1")
    # Each on its own, so that none is beyond the context.
    adapter.forward(tokens, tokens >= 0, readers={EMBEDDING: seen.append}, logits_at=None)
    return rearrange(seen[0].detach(), "token 1 d_model -> token d_model").clone()


def _tokens(adapter: Any, n: int, generator: torch.Generator) -> list[int]:
    """Random words of the vocabulary, without special tokens and without the unused end."""
    n_words = min(adapter.d_vocab, len(adapter.tokenizer)) if adapter.tokenizer else adapter.d_vocab
    special = set(adapter.tokenizer.all_special_ids) if adapter.tokenizer else set()
    words = torch.tensor([word for word in range(n_words) if word not in special])
    return words[torch.randint(len(words), (n,), generator=generator)].tolist()


def _repeated(ids: list[int], n: int) -> list[int]:
    return (ids * (n // len(ids) + 1))[:n]


_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
}


@dataclass(frozen=True)
class TrainingSettings:
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


@dataclass(eq=False)
class _Place:
    """Where a training is; with its vectors and Adam's moments, enough to go on.

    Attributes:
        epoch: The one that runs.
        step: Steps done.
        total: The summed loss of this epoch's steps.
        curve: One row for each finished epoch, the first before any.
        lowest: The lowest held-out loss so far.
        since: Epochs without a lower one.
        best: The suffix and the prefix of that epoch.
        stopped: Why it ended; empty while it has not.
        diverged: Whether a number that is not finite ended it.
    """

    epoch: int = 1
    step: int = 0
    total: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    lowest: float = math.inf
    since: int = 0
    best: tuple[Tensor, Tensor] | None = None
    stopped: str = ""
    diverged: bool = False

    def packed(
        self, live: SoftPrompt, vectors: Sequence[Tensor], adam: torch.optim.Adam
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As tensors and plain values, for a checkpoint."""
        tensors = {"suffix": live.suffix.detach().cpu(), "prefix": live.prefix.detach().cpu()}
        if self.best is not None:
            tensors |= {"best/suffix": self.best[0], "best/prefix": self.best[1]}
        for place, part in enumerate(vectors):
            for name, number in adam.state.get(part, {}).items():
                tensors[f"adam/{place}/{name}"] = number.detach().cpu()
        plain = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "best"}
        return tensors, {"place": plain}

    def again(
        self,
        tensors: dict[str, Tensor],
        plain: dict[str, Any],
        live: SoftPrompt,
        vectors: Sequence[Tensor],
        adam: torch.optim.Adam,
    ) -> "_Place":
        """What `packed` gave; the vectors and Adam's moments are put back."""
        for part, name in ((live.suffix, "suffix"), (live.prefix, "prefix")):
            part.data.copy_(tensors[name])
        for place, vector in enumerate(vectors):
            begin = f"adam/{place}/"
            state = {n.removeprefix(begin): t for n, t in tensors.items() if n.startswith(begin)}
            if state:
                adam.state[vector] = {
                    name: number if name == "step" else number.to(vector)
                    for name, number in state.items()
                }
        best = tensors.get("best/suffix")
        pair = None if best is None else (best, tensors["best/prefix"])
        return _Place(best=pair, **plain["place"])


class _Diverged(Exception):
    """A loss or a gradient is not finite; says which at which step."""


def descend(
    passes: TrainingPasses,
    start: SoftPrompt,
    train: Sequence[TrainingBatch],
    held_out: Sequence[TrainingBatch],
    plan: TrainingSettings,
) -> Descent:
    """The prompt after the epoch with the lowest held-out loss.

    Raises:
        LensSkillsError: A loss or gradient was not finite before the first epoch was over.
    """
    live = replace(
        start,
        suffix=start.suffix.clone().to(passes.adapter.device).requires_grad_(),
        prefix=start.prefix.clone().to(passes.adapter.device).requires_grad_(),
    )
    vectors = [part for part in (live.suffix, live.prefix) if len(part)]
    adam = torch.optim.Adam(vectors, lr=plan.lr)
    factor = plan.factor(plan.epochs * len(train))
    generator = torch.Generator().manual_seed(start.seed)
    at = _Place()
    saved = Checkpoint.at({"seed": start.seed}, name="prompt")
    if saved is not None and (kept := saved.read()) is not None:
        at = at.again(kept[0], kept[1], live, vectors, adam)
        if at.stopped:
            passes.whole, passes.n_bytes = kept[1]["whole"], max(passes.n_bytes, kept[1]["n_bytes"])
    else:
        at.curve = [_look(passes, live, held_out, 0, 0, measured(passes, live, train)[0])]
    best = None if at.best is None else replace(start, suffix=at.best[0], prefix=at.best[1])
    stopped, diverged = at.stopped or f"after {plan.epochs} epochs", at.diverged
    first = plan.epochs + 1 if at.stopped else at.epoch
    steps = plan.epochs * len(train)
    with Progress(steps, "fit prompt", "steps", done=at.step) as bar:
        for epoch in range(1, plan.epochs + 1):
            order = torch.randperm(len(train), generator=generator).tolist()
            if epoch < first:
                continue
            done = at.step - (epoch - 1) * len(train)
            at.epoch = epoch
            try:
                for place in order[done:]:
                    at.step += 1
                    for group in adam.param_groups:
                        group["lr"] = plan.lr * factor(at.step - 1)
                    loss = _step(passes, live, vectors, train[place], adam, plan.clip, at.step)
                    at.total += loss
                    bar.update()
                    if saved is not None and saved.due():
                        saved.write(*at.packed(live, vectors, adam))
                mean = at.total / sum(map(len, train))
                row = _look(passes, live, held_out, at.step, epoch, mean)
                if not math.isfinite(row["held_out_loss"]):
                    raise _Diverged(
                        f"the held-out loss is {row['held_out_loss']} after step {at.step}"
                    )
            except _Diverged as reason:
                stopped, diverged = str(reason), True
                break
            at.curve.append(row)
            at.total = 0.0
            bar.note(f"epoch {epoch} of {plan.epochs}, held-out loss {row['held_out_loss']:.3f}")
            at.since += 1
            if row["held_out_loss"] < at.lowest:
                best, at.lowest, at.since = _copied(live), row["held_out_loss"], 0
                at.best = best.suffix, best.prefix
            at.epoch = epoch + 1
            if at.since >= plan.patience:
                stopped = f"no lower held-out loss in {at.since} epochs, at step {at.step}"
                break
    at.stopped, at.diverged = stopped, diverged
    if saved is not None:
        tensors, plain = at.packed(live, vectors, adam)
        saved.finish(tensors, {**plain, "whole": passes.whole, "n_bytes": passes.n_bytes})
    if best is None:
        raise LensSkillsError(
            f"training diverged before the first epoch was over: {stopped}. No prompt was good. "
            f"Lower lr (now {plan.lr:g}), clip gradients (clip=1.0), or begin elsewhere (init)."
        )
    return Descent(replace(best, trained=True, curve=tuple(at.curve)), stopped, diverged)


def _step(
    passes: TrainingPasses,
    live: SoftPrompt,
    vectors: list[torch.Tensor],
    batch: TrainingBatch,
    adam: torch.optim.Adam,
    clip: float | None,
    step: int,
) -> float:
    """The batch's summed loss before one step of Adam on its mean."""

    def differentiate(part: TrainingBatch) -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.enable_grad():
            losses, _ = passes.losses(part, live)
            # By the prompt alone: the model's parameters are given no gradient.
            slopes = torch.autograd.grad(losses.sum() / len(batch), vectors)
        return losses.detach(), slopes

    found = passes.run(batch, differentiate)
    losses = torch.cat([losses for losses, _ in found])
    for vector, slopes in zip(vectors, zip(*(own for _, own in found), strict=True), strict=True):
        vector.grad = torch.stack(slopes).sum(0)
    size = torch.nn.utils.clip_grad_norm_(vectors, math.inf if clip is None else clip)
    for what, number in (("loss", float(losses.mean())), ("gradient's size", float(size))):
        if not math.isfinite(number):
            raise _Diverged(f"the {what} is {number} at step {step}")
    adam.step()
    return float(losses.double().sum())


def _look(
    passes: TrainingPasses,
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
    passes: TrainingPasses, prompt: SoftPrompt, batches: Sequence[TrainingBatch]
) -> tuple[float, float]:
    """Mean loss, and the share of answers whose tokens are all first choices."""
    with torch.no_grad():
        read = partial(passes.losses, prompt=prompt)
        found = [pair for batch in batches for pair in passes.run(batch, read)]
    losses = torch.cat([loss.double() for loss, _ in found])
    return float(losses.mean()), float(torch.cat([right for _, right in found]).double().mean())


def _copied(live: SoftPrompt) -> SoftPrompt:
    suffix, prefix = (part.detach().cpu().clone() for part in (live.suffix, live.prefix))
    return replace(live, suffix=suffix, prefix=prefix)
