"""The weights of chosen neurons, of any model, as what a step of training reads and changes.

`copied` is a model to train instead of the user's. `neuron_weights` are the rows and columns of
some MLP neurons, `whole_weights` every parameter.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.models.adapter import ModelAdapter
from lens_skills.models.backends import as_adapter

PARTS = ("W_in", "W_gate", "W_out", "b_in", "b_gate")
"""Of a neuron, by TransformerLens's names: what it reads by, what it writes, its biases."""

_NEEDED = ("W_in", "W_out")


@dataclass(frozen=True, eq=False)
class TrainedWeights:
    """Some entries of one parameter, which are read, differentiated and changed by themselves.

    Attributes:
        name: What they are called in results: ``"3.W_in"`` (of layer 3), or a parameter's own name.
        parameter: What holds them, and all others that stay.
        view: The parameter's numbers as TransformerLens lays them out, the same memory.
        axis: The axis of neurons of ``view``; None: all of the parameter.
        neurons: Which of them; None: all.
        entries: Where in the flattened parameter they stand, neuron by neuron; None: everywhere.
        places: Which of the neurons asked for these are; None: no single neurons.
    """

    name: str
    parameter: torch.nn.Parameter
    view: Tensor
    axis: int | None = None
    neurons: Int[Tensor, " here"] | None = None
    entries: Int[Tensor, "here *numbers"] | None = None
    places: Int[Tensor, " here"] | None = None

    def read(self) -> Tensor:
        """A copy of the numbers, neuron by neuron."""
        if self.neurons is None or self.axis is None:
            return self.view.clone(memory_format=torch.contiguous_format)
        return self.view.index_select(self.axis, self.neurons).movedim(self.axis, 0).contiguous()

    def write(self, values: Tensor) -> None:
        """Puts numbers in place; no other number of the parameter is touched."""
        with torch.no_grad():
            if self.neurons is None or self.axis is None:
                self.view.copy_(values)
            else:
                self.view.index_copy_(
                    self.axis, self.neurons, values.movedim(0, self.axis).to(self.view)
                )

    def part_of(self, gradient: Tensor) -> Tensor:
        """Of a gradient by the parameter, what belongs to the numbers."""
        return gradient if self.entries is None else gradient.reshape(-1)[self.entries]


def copied(model: Any) -> ModelAdapter:
    """A deep copy of the model, behind an adapter that reads as the given one does.

    Raises:
        LensSkillsError: Weights that cannot be trained (packed), or a model that cannot be copied.
    """
    adapter = as_adapter(model)
    if adapter.packed:
        raise LensSkillsError(
            f"the weights of {adapter.name} are packed (quantised) and cannot be trained. Open the "
            "model it was quantised from."
        )
    try:
        own = copy.deepcopy(adapter.model)
    except Exception as error:  # what a user's own modules and hooks raise has no bounds
        raise LensSkillsError(
            f"{adapter.name} cannot be copied, and is not to be trained itself ({error!r:.120}). "
            "Remove hooks that hold open files or locks (model.reset_hooks())."
        ) from error
    found = as_adapter(own)
    return found.in_chat(adapter.chat) if adapter.chat else found


def neuron_weights(
    adapter: ModelAdapter, neurons: Int[Tensor, "neuron 2"]
) -> tuple[TrainedWeights, ...]:
    """The weights of MLP neurons: rows of W_in and W_gate, columns of W_out, their own biases.

    A bias that is 0 for the whole layer is left out: HookedTransformer adds such to models that
    have none.

    Raises:
        LensSkillsError: A layer whose matrices are not a view of the model's parameters.
    """
    found = []
    owners = {}
    for parameter in adapter.model.parameters():
        owners.setdefault(parameter.untyped_storage().data_ptr(), parameter)
    for layer in sorted(set(neurons[:, 0].tolist())):
        places = (neurons[:, 0] == layer).nonzero()[:, 0]
        chosen = neurons[places, 1]
        block = getattr(adapter.model.blocks[layer], "mlp", None)
        for part in PARTS:
            view = adapter.weight_of(block, part)
            if not isinstance(view, Tensor):
                if part in _NEEDED:
                    raise _unreachable(adapter, layer, part)
                continue
            if part.startswith("b_") and not bool(view.any()):
                continue
            owner = owners.get(view.untyped_storage().data_ptr())
            if owner is None:
                raise _unreachable(adapter, layer, part)
            axis = _neuron_axis(adapter, view, layer, part)
            where = chosen.to(view.device)
            entries = _entries(owner, view.detach()).index_select(axis, where).movedim(axis, 0)
            found.append(
                TrainedWeights(
                    f"{layer}.{part}", owner, view.detach(), axis, where, entries, places
                )
            )
    return tuple(found)


def whole_weights(adapter: ModelAdapter) -> tuple[TrainedWeights, ...]:
    """Every parameter that is not 0 throughout, by its own name."""
    return tuple(
        TrainedWeights(name, parameter, parameter.detach())
        for name, parameter in adapter.model.named_parameters()
        if bool(parameter.detach().any())
    )


def put_weights(adapter: ModelAdapter, values: Mapping[str, Tensor]) -> None:
    """Puts whole parameters in place, by the names of `whole_weights`.

    Raises:
        LensSkillsError: A parameter this model does not have, or has in another shape.
    """
    own = dict(adapter.model.named_parameters())
    for name, value in values.items():
        if name not in own or own[name].shape != value.shape:
            raise LensSkillsError(
                f"{adapter.name} ({adapter.implementation}) has no parameter {name!r} of shape "
                f"{tuple(value.shape)}: all weights were trained in the other library, whose "
                "parameters have other names. Open the model there (implementation=…)."
            )
        with torch.no_grad():
            own[name].copy_(value.to(own[name]))


def _neuron_axis(adapter: ModelAdapter, view: Tensor, layer: int, part: str) -> int:
    width = adapter.mlp_widths[layer]
    shapes = {
        "W_in": (adapter.d_model, width),
        "W_gate": (adapter.d_model, width),
        "W_out": (width, adapter.d_model),
        "b_in": (width,),
        "b_gate": (width,),
    }
    shape = tuple(view.shape)
    # A square matrix says nothing of its own layout: TransformerLens's is taken.
    if shape == shapes[part]:
        return {"W_in": 1, "W_gate": 1}.get(part, 0)
    if shape == shapes[part][::-1]:
        return {"W_in": 0, "W_gate": 0}.get(part, 1)
    raise _unreachable(adapter, layer, part)


def _entries(parameter: Tensor, view: Tensor) -> Int[Tensor, "*shape"]:
    """For each number of a view, its place in the flattened parameter."""
    size = parameter.untyped_storage().nbytes() // parameter.element_size()
    at = torch.full((size,), -1, dtype=torch.long, device=parameter.device)
    inside = at.as_strided(parameter.size(), parameter.stride(), parameter.storage_offset())
    inside.copy_(torch.arange(parameter.numel(), device=at.device).reshape(parameter.shape))
    return at.as_strided(view.size(), view.stride(), view.storage_offset())


def _unreachable(adapter: ModelAdapter, layer: int, part: str) -> LensSkillsError:
    return LensSkillsError(
        f"{part} of layer {layer} of {adapter.name} is no part of one of its parameters (a mixture "
        "of experts, tied or computed weights), so single neurons cannot be trained. "
        "neurons=None trains the whole model."
    )
