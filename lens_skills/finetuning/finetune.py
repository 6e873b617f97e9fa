"""`finetune`: the weights of chosen neurons trained on a copy of a model; all others stay."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from lens_skills.activations.components import Components, parse_components
from lens_skills.activations.forward import encode_examples
from lens_skills.activations.locations import DEFAULT_SITE
from lens_skills.checkpoints import Checkpoint, resumable
from lens_skills.data import Example, field_of
from lens_skills.errors import LensSkillsError
from lens_skills.finetuning.masked_training import FineTuningPlan, TrainingState, train
from lens_skills.models import Chat, ModelAdapter, as_adapter, with_soft_prompt
from lens_skills.models.identity import identity
from lens_skills.models.trainable import (
    TrainedWeights,
    copied,
    neuron_weights,
    put_weights,
    whole_weights,
)
from lens_skills.results import Result, numbers_hash, provenance
from lens_skills.soft_prompts.training_batches import training_parts


@dataclass(frozen=True, eq=False)
class FineTuned(Result):
    """Trained weights of some neurons of a model, or of all of it; `apply` puts them in a copy.

    Attributes:
        neurons: Layer and index of each trained neuron, ``[neuron 2]``; no rows where every
            parameter was trained.
        weights: The trained numbers, float32 or finer. Of neurons: ``"3.W_in"`` and its kin of
            layer 3, one row for each of its neurons in their order; else a parameter's own name.
        curve: One row per epoch, the first before any: ``epoch``, ``train_loss``,
            ``held_out_loss`` (mean -ln p(answer), nats), ``held_out_accuracy`` (share of answers
            whose tokens are all first choices).
        stopped: Why training ended.
        n_trained: How many numbers were trained.
        n_weights: How many the model has.
        n_examples: How many examples were learned from, and how many only looked at.
        seed: Of the order of the examples.
        provenance: Model, task, split, settings and versions behind the numbers.
    """

    neurons: Int[Tensor, "neuron 2"]
    weights: dict[str, Tensor]
    curve: tuple[dict[str, float], ...]
    stopped: str
    n_trained: int
    n_weights: int
    n_examples: tuple[int, int]
    seed: int
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> dict[str, float]:
        """The row of the epoch whose weights these are: the lowest held-out loss."""
        return min(self.curve[1:], key=lambda row: row["held_out_loss"])

    @property
    def units(self) -> Components:
        """The trained neurons, as any verb takes them; none where all was trained."""
        return Components.of(self.neurons, DEFAULT_SITE, self.provenance)

    def frame(self) -> pd.DataFrame:
        """One row per epoch: epoch train_loss held_out_loss held_out_accuracy."""
        return pd.DataFrame(list(self.curve))

    def apply(self, model: Any) -> Any:
        """A copy of the model with the trained weights; the model itself stays as it is.

        Args:
            model: The HookedTransformer or TransformerBridge that was trained. Weights of neurons
                fit either library, those of a whole model the one it was trained in.

        Raises:
            LensSkillsError: Another model.
        """
        given = as_adapter(model)
        if given.fingerprint() != self.provenance["weights"]:
            raise LensSkillsError(
                f"these weights were trained from another model ({self.provenance['model']}) than "
                f"{given.name}, or it was changed since. Open that one."
            )
        adapter = copied(given)
        if not len(self.neurons):
            put_weights(adapter, self.weights)
        else:
            for one in neuron_weights(adapter, self.neurons):
                one.write(self.weights[one.name])
        return adapter.model

    def __repr__(self) -> str:
        first, best, about = self.curve[0], self.best, self.provenance
        layers = sorted(set(self.neurons[:, 0].tolist()))
        what = (
            f"{len(self.neurons):,} neurons of {len(layers)} "
            f"{'layer' if len(layers) == 1 else 'layers'}"
            if layers
            else "every parameter"
        )
        n_train, n_held = self.n_examples
        return "\n".join(
            [
                f"{about['task']} · {what} of {about['model']} trained · seed {self.seed}",
                f"  {self.n_trained:,} of {self.n_weights:,} weights, on {n_train:,} examples; all "
                "others are as they were",
                f"  loss {first['held_out_loss']:.3f} -> {best['held_out_loss']:.3f} nats, "
                f"accuracy {first['held_out_accuracy']:.1%} -> {best['held_out_accuracy']:.1%} on "
                f"{n_held:,} held-out examples",
                f"  epoch {best['epoch']:.0f} of {self.curve[-1]['epoch']:.0f} ({self.stopped}); "
                "chosen by these examples: measure on others",
                "  .apply(model) gives the trained copy; the model itself is untouched",
            ]
        )


@resumable()
def finetune(
    model: Any,
    examples: Sequence[Example],
    neurons: Any,
    *,
    seeds: int = 1,
    seed: int = 0,
    epochs: int = 40,
    batch_size: int = 32,
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    clip: float | None = 1.0,
    patience: int = 5,
    held_out: float | Sequence[Example] = 0.2,
    chat: Chat = False,
    checkpoint: str | Path | None = None,
) -> Any:
    """Chosen neurons trained on a task, as a `FineTuned`; a tuple of them where ``seeds`` > 1.

    Minimises the mean over examples of -ln p(answer | prompt), all of the answer's tokens together
    (nats), by AdamW on the neurons' rows of W_in and W_gate, columns of W_out and own biases, on a
    deep copy of the model. Every other number keeps its bits: moments and weight decay exist for
    the trained ones alone. After each epoch the held-out examples are looked at, and the weights
    with the lowest loss there come back.

    A bias that is 0 throughout is not trained: HookedTransformer adds such to models that have
    none.

    Args:
        model: A HookedTransformer or TransformerBridge; it is left as it was, bit for bit.
        examples: A `Task` or any sequence of `Example` with answers.
        neurons: MLP neurons: names, (layer, index) rows, a `Selection`, ``ranking.top(100)``,
            ``"all"`` for all of them; None trains every parameter of the model.
        seeds: How many trainings: with seed, seed + 1, … They share the held-out examples.
        seed: Of the order of the examples.
        epochs: At most so many.
        batch_size: Examples per step.
        lr: AdamW's learning rate, constant.
        weight_decay: A step takes lr * weight_decay of each trained weight off.
        clip: The largest norm of the trained weights' gradient (None: any).
        patience: Epochs without a lower held-out loss after which it ends.
        held_out: The share of the examples, in whole groups, that is only looked at; or examples
            of their own.
        chat: As in `score`.
        checkpoint: A folder that keeps the work so far, about once a minute at the end of an
            epoch; the same call goes on there with the same numbers.

    Raises:
        LensSkillsError: No neurons, or none that a gradient reaches; a neuron that is not there,
            or is named twice; an example without an answer; packed weights; a number out of
            range; too few groups to hold some out; a loss that is not finite before the first
            epoch is over (later, training ends with a warning and the best weights come back).

    Source: Leng & Xiong 2024 (arXiv 2407.06488) train task-specific neurons alone. AdamW:
    Loshchilov & Hutter 2019 (arXiv 1711.05101).
    Does not show: that the neurons held the task before, nor that others could not learn it as
    well; `continual` trains random ones beside.

    >>> import lens_skills as ls
    >>> model = ls.load_model("arithmetic-small")
    >>> task = ls.tasks.arithmetic("/")
    >>> ls.finetune(model, task, ["L1N3", "L2N7"], epochs=1).n_trained
    768
    """
    given: Any = with_soft_prompt(model, None, chat)
    if given.soft is not None:
        raise LensSkillsError(f"{given.name} is read with a soft prompt; train a bare model.")
    if seeds < 1:
        raise LensSkillsError(f"seeds={seeds}: at least 1 is needed.")
    plan = FineTuningPlan(epochs, batch_size, lr, weight_decay, clip, patience)
    units = trained_units(given, neurons)
    learned, looked_at = training_parts(examples, held_out)
    about = {
        **identity(given),
        **provenance(examples),
        "implementation": given.implementation,
        "example_ids": sorted({*field_of(learned, "id"), *field_of(looked_at, "id")}),
        "groups": sorted({*field_of(learned, "group"), *field_of(looked_at, "group")}),
        "held_out_ids": sorted(field_of(looked_at, "id")),
        "settings": asdict(plan),
    }
    asked = {
        "model": about["model_fingerprint"],
        "implementation": given.implementation,
        "examples": [about["examples"], about["held_out_ids"]],
        "neurons": None if units is None else numbers_hash(units),
        "settings": about["settings"],
        "seeds": [seed, seeds],
        **given.reading,
    }
    saved = Checkpoint.at(asked, name="training")
    tensors, plain = (saved.read() if saved else None) or ({}, {"trainings": {}})
    states = {
        int(number): TrainingState.unpacked(_under(tensors, number), each)
        for number, each in plain["trainings"].items()
    }
    rows = encode_examples(given, [*learned, *looked_at], answers=True)

    def keep(state: TrainingState) -> None:
        if saved is not None and saved.due():
            packed = {number: one.packed() for number, one in states.items()}
            saved.write(
                {f"{n}/{name}": t for n, (parts, _) in packed.items() for name, t in parts.items()},
                {"trainings": {str(n): values for n, (_, values) in packed.items()}},
            )

    found = []
    for number in range(seed, seed + seeds):
        adapter = copied(given)
        weights = weights_of(adapter, units)
        state = states.setdefault(number, TrainingState())
        train(
            adapter, weights, rows[: len(learned)], rows[len(learned) :], plan,
            seed=number, state=state, keep=keep,
        )  # fmt: skip
        state.live, state.moments = {}, {}
        if state.diverged:
            warnings.warn(
                f"training ended early, with the best weights so far: {state.stopped}.",
                RuntimeWarning,
                stacklevel=2,
            )
        found.append(
            FineTuned(
                neurons=torch.empty(0, 2, dtype=torch.long) if units is None else units,
                weights=state.best,
                curve=tuple(state.curve),
                stopped=state.stopped,
                n_trained=sum(part.numel() for part in state.best.values()),
                n_weights=sum(p.numel() for p in adapter.model.parameters() if bool(p.any())),
                n_examples=(len(learned), len(looked_at)),
                seed=number,
                provenance=about,
            )
        )
    return found[0] if seeds == 1 else tuple(found)


def _under(tensors: dict[str, Tensor], number: str) -> dict[str, Tensor]:
    begin = f"{number}/"
    return {name.removeprefix(begin): t for name, t in tensors.items() if name.startswith(begin)}


def trained_units(adapter: ModelAdapter, neurons: Any) -> Int[Tensor, "neuron 2"] | None:
    """Rows of the MLP neurons named; None for the whole model.

    Raises:
        LensSkillsError: None at all, a unit that is no MLP neuron, one that is not there.
    """
    if neurons is None:
        return None
    adapter.check_site(DEFAULT_SITE)
    units = parse_components(adapter, neurons)
    if not units:
        raise LensSkillsError(
            "no neurons are named: the mask trains nothing. Name some ('L2N7'), or neurons=None "
            "for every parameter of the model."
        )
    others = [unit.name for unit in units if unit.site != DEFAULT_SITE]
    if others:
        raise LensSkillsError(
            f"{others[0]} is no MLP neuron: what is trained are rows and columns of W_in, "
            "W_gate and W_out. Name neurons ('L2N7')."
        )
    return units.rows


def weights_of(
    adapter: ModelAdapter, units: Int[Tensor, "neuron 2"] | None
) -> tuple[TrainedWeights, ...]:
    """What is trained of a copy: the weights of the neurons, or (None) all of it."""
    return whole_weights(adapter) if units is None else neuron_weights(adapter, units)
