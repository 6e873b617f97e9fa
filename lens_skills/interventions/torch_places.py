"""Where a hook point of TransformerLens is in a plain Hugging Face model: found by value and tried.

What modules are called says nothing of what they hand on: some return the residual stream with the
MLP's output, some are normalised or scaled before they are added. So a pass over a few tokens shows
which module takes or returns the same numbers, and a second one that changing them changes the
prediction as it does in TransformerLens.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lens_skills.errors import LensSkillsError
from lens_skills.models import ModelAdapter
from lens_skills.models.weights import LayerSite

_N_TOKENS = 6
_SAME = 0.02  # activations of one place differ by less, as a share of their norm, in any precision
# By how many nats the same model may differ from itself: in float32, in half precision.
_OTHER_MODEL = (0.01, 0.3)
_INSTEAD = "Use edited(model, …) on the TransformerLens model instead."

Call = Callable[[Any], Any]


@dataclass(frozen=True)
class TorchPlace:
    """What a module takes (its first argument) or returns (its first output).

    Attributes:
        module: The module.
        taken: Whether it is what it takes.
        block: Its block, where the rows and positions of a batch are flattened in between.
    """

    module: nn.Module
    taken: bool
    block: nn.Module | None = None

    def attach(self, call: Call) -> list[Any]:
        """The handles of hooks that put what ``call`` returns in place of the tensor."""
        if self.block is None:
            return [self._attach(call)]
        shape: list[Any] = []

        def unflattened(tensor: Tensor) -> Tensor | None:
            new = call(tensor.reshape(*shape, -1))
            return None if new is None else new.reshape(tensor.shape)

        def read(tensor: Tensor) -> None:
            shape[:] = tensor.shape[:2]

        return [TorchPlace(self.block, taken=True)._attach(read), self._attach(unflattened)]

    def _attach(self, call: Call) -> Any:
        def before(module: Any, args: Any, kwargs: Any) -> Any:
            if not args:
                new = call(kwargs.get("hidden_states"))
                return None if new is None else (args, {**kwargs, "hidden_states": new})
            new = call(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)

        def after(module: Any, args: Any, out: Any) -> Any:
            new = call(out[0] if isinstance(out, tuple) else out)
            return (new, *out[1:]) if isinstance(out, tuple) and new is not None else new

        if self.taken:
            return self.module.register_forward_pre_hook(before, with_kwargs=True)
        return self.module.register_forward_hook(after)


def torch_places(
    hf_model: nn.Module,
    adapter: ModelAdapter,
    spots: Mapping[LayerSite, Int[Tensor, " feature"]],
) -> dict[LayerSite, TorchPlace]:
    """The place of each hook point in the Hugging Face model.

    Args:
        hf_model: The plain model.
        adapter: The same model in TransformerLens.
        spots: The hook points, and the features of each that will be changed.

    Raises:
        LensSkillsError: Another model; a hook point that is no module's input or output there, or
            that has another effect.
    """
    blocks = _blocks(hf_model, adapter.n_layers)
    tokens = (torch.arange(1, 1 + _N_TOKENS) % adapter.d_vocab)[None]
    values: dict[LayerSite, Tensor] = {}
    clean = _lens_pass(adapter, tokens, {spot: _keep(values, spot) for spot in spots})
    with _bare(hf_model):
        found, plain = _candidates(hf_model, blocks, tokens, values)
        off = _distance(plain, clean)
        dtypes = {parameter.dtype for parameter in hf_model.parameters()} | {adapter.dtype}
        if off > _OTHER_MODEL[not dtypes <= {torch.float32, torch.float64}]:
            raise LensSkillsError(
                f"{type(hf_model).__name__} and {adapter.name} predict otherwise (log-probabilities"
                f" differ by {off:.2g} nats): adapter= must be the same model."
            )
        edits = {spot: _change(values[spot], spots[spot]) for spot in spots}

        def differs(chosen: Mapping[LayerSite, TorchPlace]) -> float:
            """By how many nats too much the edited models differ; 0 for none."""
            here = {spot: edits[spot] for spot in chosen}
            wanted = _lens_pass(adapter, tokens, here)
            with ExitStack() as stack:
                for spot, place in chosen.items():
                    for handle in place.attach(here[spot]):
                        stack.callback(handle.remove)
                got = _torch_pass(hf_model, tokens)
            gap, effect = _distance(got, wanted), _distance(wanted, clean)
            return 0.0 if gap <= 1e-3 * (1 + effect) + 4 * off else gap

        for spot, options in found.items():
            if not options:
                raise LensSkillsError(
                    f"{spot[1]!r} of layer {spot[0]} is neither what a module of "
                    f"{type(hf_model).__name__} takes nor what it returns (it is made between "
                    f"modules, scaled, or of processed weights). {_INSTEAD}"
                )
        chosen = {spot: options[0] for spot, options in found.items()}
        if differs(chosen) == 0:
            return chosen
        for spot, options in found.items():
            gaps = {place: differs({spot: place}) for place in options}
            fine = [place for place, gap in gaps.items() if gap == 0]
            if not fine:
                raise LensSkillsError(
                    f"an edit of {spot[1]!r} in layer {spot[0]} does something else in "
                    f"{type(hf_model).__name__} than in TransformerLens (log-probabilities differ "
                    f"by {min(gaps.values()):.2g} nats). {_INSTEAD}"
                )
            chosen[spot] = fine[0]
        return chosen


def _blocks(hf_model: nn.Module, n_layers: int) -> nn.ModuleList:
    """The stack of blocks: of the lists with an entry per layer, the one with most parameters."""
    lists = [
        module
        for module in hf_model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not lists:
        raise LensSkillsError(
            f"no stack of {n_layers} blocks was found in {type(hf_model).__name__}: adapter= must "
            f"be the same model. {_INSTEAD}"
        )
    return max(lists, key=lambda each: sum(part.numel() for part in each.parameters()))


@contextmanager
def _bare(hf_model: nn.Module) -> Iterator[None]:
    """Without dropout, gradients and the hooks that others have put there; all put back after."""
    parts = list(hf_model.modules())
    kept = [(part, part._forward_hooks, part._forward_pre_hooks, part.training) for part in parts]
    try:
        for part in parts:
            part._forward_hooks, part._forward_pre_hooks = OrderedDict(), OrderedDict()
            part.training = False
        with torch.no_grad():
            yield
    finally:
        for part, after, before, training in kept:
            part._forward_hooks, part._forward_pre_hooks = after, before
            part.training = training


def _keep(values: dict[Any, Tensor], key: Any) -> Call:
    def keep(activation: Tensor) -> Tensor:
        values[key] = activation.detach().flatten(2).float().cpu()
        return activation

    return keep


def _change(value: Tensor, features: Int[Tensor, " feature"]) -> Call:
    """Half of each feature, and a wave of the activations' own size."""
    size = max(float(value.square().mean().sqrt()), 1e-3)
    wave = size * torch.cos(3.0 * features.double() + 1.0)

    def change(activation: Tensor) -> Tensor:
        flat = activation.detach().flatten(2).clone()
        places = features.to(flat.device)
        flat[..., places] = 0.5 * flat[..., places] + wave.to(flat)
        return flat.reshape(activation.shape)

    return change


def _lens_pass(
    adapter: ModelAdapter, tokens: Int[Tensor, "1 pos"], editors: Mapping[LayerSite, Any]
) -> Float[Tensor, "pos d_vocab"]:
    logits = adapter.forward(
        tokens,
        torch.ones_like(tokens, dtype=torch.bool),
        readers={},
        logits_at=torch.arange(tokens.shape[1])[None],
        editors={f"blocks.{layer}.{site}": edit for (layer, site), edit in editors.items()},
    )
    assert logits is not None
    return logits[0].detach().float().cpu()


def _torch_pass(hf_model: nn.Module, tokens: Int[Tensor, "1 pos"]) -> Float[Tensor, "pos d_vocab"]:
    device = next(hf_model.parameters()).device
    try:
        logits = hf_model(tokens.to(device), use_cache=False).logits
    except Exception as error:
        raise LensSkillsError(
            f"{type(hf_model).__name__} cannot be tried on a few tokens ({error}): give the "
            f"language model with its head. {_INSTEAD}"
        ) from error
    return logits[0].detach().float().cpu()


def _distance(one: Tensor, other: Tensor) -> float:
    width = min(one.shape[-1], other.shape[-1])
    gap = one[..., :width].log_softmax(-1) - other[..., :width].log_softmax(-1)
    return float(gap.abs().max())


def _candidates(
    hf_model: nn.Module,
    blocks: nn.ModuleList,
    tokens: Int[Tensor, "1 pos"],
    values: Mapping[LayerSite, Tensor],
) -> tuple[dict[LayerSite, list[TorchPlace]], Tensor]:
    """Of each spot the places in its block that hold its numbers, the outermost first."""
    found: dict[LayerSite, list[TorchPlace]] = {spot: [] for spot in values}

    def compare(spot: LayerSite, place: TorchPlace) -> Call:
        def look(tensor: Any) -> None:
            wanted = values[spot]
            if not isinstance(tensor, Tensor) or tensor.numel() != wanted.numel():
                return
            flat = tensor.ndim == 2
            if tensor.shape[:2] != wanted.shape[:2] and not flat:
                return
            here = tensor.detach().float().cpu().reshape(wanted.shape)
            which = replace(place, block=blocks[spot[0]]) if flat else place
            if (here - wanted).norm() <= _SAME * wanted.norm() and which not in found[spot]:
                found[spot].append(which)

        return look

    order: dict[nn.Module, int] = {}
    with ExitStack() as stack:
        for spot in values:
            for name, module in blocks[spot[0]].named_modules():
                for taken in (False, True):
                    place = TorchPlace(module, taken)
                    order[module] = name.count(".") + bool(name)
                    for handle in place.attach(compare(spot, place)):
                        stack.callback(handle.remove)
        plain = _torch_pass(hf_model, tokens)
    return {
        spot: sorted(at, key=lambda each: order[each.module]) for spot, at in found.items()
    }, plain
