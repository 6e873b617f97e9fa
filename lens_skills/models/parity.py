"""Parity: a converted model computes what the plain Hugging Face model computes."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lens_skills.errors import LensSkillsError
from lens_skills.models.adapter import keep_activation
from lens_skills.models.backends import as_adapter

OUTPUT_PROJECTION = re.compile(r"\.(\d+)\.(?:mlp\.)?(?:down_proj|c_proj|dense_4h_to_h|fc2|fc_out)$")
"""Names of the module that reads the neurons, over the architectures of transformers."""


@dataclass(frozen=True)
class Reference:
    """What the plain Hugging Face forward gives on the fixed sequences.

    Attributes:
        tokens: The sequences.
        log_probabilities: Of the next token, at every position.
        neurons: The input of each layer's output projection, where it was recognised.
    """

    tokens: Int[Tensor, "batch pos"]
    log_probabilities: Float[Tensor, "batch pos d_vocab"]
    neurons: dict[int, Tensor]


@dataclass(frozen=True)
class Parity:
    """How far a converted model is from the plain forward.

    Attributes:
        log_probability: Largest absolute difference of log-probabilities (nats), or its mean in
            half precision, where single values scatter by more than a nat either way.
        activation: The same for MLP activations, in units of the layer's largest; None where the
            architecture's neurons were not recognised.
        tolerance: The bar for both.
    """

    log_probability: float
    activation: float | None
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether both differences are numbers below the tolerance."""
        return self.log_probability <= self.tolerance and (
            self.activation is None or self.activation <= self.tolerance
        )


def reference(hf_model: Any) -> Reference:
    """What ``hf_model`` computes on three fixed sequences; taken before it is converted."""
    vocabulary = int(hf_model.get_input_embeddings().weight.shape[0])
    # Spread over the vocabulary: a tokenizer is not needed, and no row looks like another.
    tokens = (torch.arange(36, device=hf_model.device) * 7919 + 17).view(3, 12) % vocabulary
    neurons: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            neurons[layer] = inputs[0].detach().clone()

        return hook

    handles = [
        module.register_forward_pre_hook(keep(int(found.group(1))))
        for name, module in hf_model.named_modules()
        if (found := OUTPUT_PROJECTION.search(name)) and "expert" not in name
    ]
    training = hf_model.training
    try:
        with torch.no_grad():
            logits = hf_model.eval()(tokens, use_cache=False).logits
    finally:
        hf_model.train(training)
        for handle in handles:
            handle.remove()
    return Reference(tokens, logits.float().log_softmax(-1), neurons)


def compare(model: Any, expected: Reference) -> Parity:
    """The distance of ``model`` (HookedTransformer or bridge) from ``expected``."""
    adapter = as_adapter(model)
    tokens = expected.tokens.to(adapter.device)
    neurons: dict[int, Tensor] = {}
    names = set(adapter.hook_names())
    readers = {
        name: keep_activation(neurons, layer, lambda activation: activation.detach().clone())
        for layer in expected.neurons
        if (name := f"blocks.{layer}.mlp.hook_post") in names
    }
    everywhere = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    logits = adapter.forward(tokens, mask, readers=readers, logits_at=everywhere)
    assert logits is not None
    exact = adapter.dtype in (torch.float32, torch.float64)

    def distance(found: Tensor, wanted: Tensor) -> float:
        gap = (found.float().cpu() - wanted.float().cpu()).abs()
        return float(gap.max() if exact else gap.mean())

    scales = {layer: float(wanted.abs().max()) for layer, wanted in expected.neurons.items()}
    gaps = [
        distance(found.view_as(expected.neurons[layer]), expected.neurons[layer])
        / max(scales[layer], 1e-12)
        for layer, found in neurons.items()
    ]
    return Parity(
        log_probability=distance(logits.float().log_softmax(-1), expected.log_probabilities),
        # max() would drop a NaN that does not come first.
        activation=float(torch.tensor(gaps).max()) if gaps else None,
        tolerance=1e-3 if exact else 0.25,
    )


def check_parity(model: Any, expected: Reference, name: str) -> Parity:
    """The parity of ``model`` with ``expected``.

    Raises:
        LensSkillsError: They differ; the message has the numbers.
    """
    found = compare(model, expected)
    if not found.passed:
        activation = "not compared" if found.activation is None else f"{found.activation:.2g}"
        raise LensSkillsError(
            f"{name} was converted, but does not compute what the original computes: "
            f"log-probabilities differ by {found.log_probability:.2g} nats, MLP activations by "
            f"{activation} of their largest (allowed: {found.tolerance:g}). Nothing read from it "
            "could be trusted. Try the other implementation, or another version of "
            "transformer-lens."
        )
    return found
