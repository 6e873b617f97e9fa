"""`fit_prompt`: soft prompts trained on a frozen model."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from lens_skills.activations.encoding import encode_examples
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.models import as_lens, prompted
from lens_skills.prompts.batches import training_batches
from lens_skills.prompts.beginning import initial_prompt
from lens_skills.prompts.descent import Schedule, Settings, descend
from lens_skills.prompts.passes import Passes
from lens_skills.scoring.provenance import versions
from lens_skills.tasks import Task


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
    memory_mb: float = 2000,
    chat: bool = False,
    progress: bool | None = None,
) -> Any:
    """A trained soft prompt, or a tuple of them where ``seeds`` is above 1.

    Minimises the mean over examples of -ln p(answer | input, prompt), all of the answer's tokens
    together (nats), by Adam on the prompt's vectors alone; the model is frozen. After each epoch
    the held-out examples are looked at, and the prompt with the lowest loss there comes back.

    The prompt follows the input, so the input's keys and values do not depend on it: they are
    computed once, and each step runs the prompt's and the answer's columns only. Where that is
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
        memory_mb: How much of keys and values may be kept (MiB); what does not fit is computed
            anew in each epoch.
        chat: Put prompts through the tokenizer's chat template.
        progress: Show a progress bar (None: on a terminal only).

    Raises:
        LensSkillsError: A learning rate, clip or count out of range; an example without an
            answer; too few groups to hold some out; a prompt beyond the context; a loss that is
            not finite before the first epoch is over (later, training ends with a warning and the
            best prompt so far comes back).
    """
    lens: Any = as_lens(model)
    if lens.soft is not None:
        raise LensSkillsError(
            f"{lens.name} is read with a soft prompt already; train a bare model."
        )
    for name, number in (("seeds", seeds), ("batch_size", batch_size)):
        if number < 1:
            raise LensSkillsError(f"{name}={number}: at least 1 is needed.")
    settings = Settings(epochs, lr, schedule, clip, patience)
    settings.factor(1)  # an unknown schedule is refused before anything is run
    train, looked_at = _divided(examples, held_out)
    starts = [
        initial_prompt(lens, n_tokens, n_prefix=n_prefix, init=init, text=text, seed=seed + number)
        for number in range(seeds)
    ]
    spoken = prompted(lens, starts[0])
    both = encode_examples(
        spoken, [_ended(e, ending) for e in (*train, *looked_at)], answers=True, chat=chat
    )
    batches = training_batches(spoken, both[: len(train)], batch_size)
    held_batches = training_batches(spoken, both[len(train) :], batch_size)
    passes = Passes(lens, starts[0], memory_mb)
    chosen = {
        **asdict(replace(settings, schedule=_name(schedule))),
        **{"init": init, "text": text, "ending": ending, "batch_size": batch_size, "chat": chat},
    }
    found = []
    for start in starts:
        descent = descend(passes, start, batches, held_batches, settings, progress)
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


def _divided(
    examples: Sequence[Example], held_out: float | Sequence[Example]
) -> tuple[Sequence[Example], Sequence[Example]]:
    """What is trained on, and what is only looked at: the same for every seed."""
    task = examples if isinstance(examples, Task) else Task("examples", examples)
    if isinstance(held_out, float | int):
        if not 0 < held_out < 1:
            raise LensSkillsError(
                f"held_out={held_out}: the share of examples to stop by is between 0 and 1, e.g. "
                "0.2; or give those examples themselves."
            )
        train, looked_at = task.split(1 - held_out, held_out, seed=0)
    else:
        train, looked_at = task, Task("held out", held_out)
        shared = set(train.groups) & set(looked_at.groups)
        if shared:
            raise LensSkillsError(
                f"{len(shared)} groups are both trained on and held out ({min(shared)!r}): "
                "split the task by group, task.split(0.8, 0.2)."
            )
    for example in (*train, *looked_at):
        if example.answer is None:
            raise LensSkillsError(
                f"example {example.id!r} has no answer, so there is nothing to train a prompt for."
            )
    return train, looked_at


def _ended(example: Example, ending: str) -> Example:
    return replace(example, answer=f"{example.answer}{ending}", options=()) if ending else example


def _name(schedule: Schedule) -> str:
    return schedule if isinstance(schedule, str) else getattr(schedule, "__name__", "a function")
