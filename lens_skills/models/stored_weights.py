"""Weights that are stored so that a pass cannot read them, or cannot be differentiated."""

from collections.abc import Iterable

from torch import Tensor

from lens_skills.errors import LensSkillsError


def check_present(name: str, weights: Iterable[Tensor]) -> None:
    """Nothing; raises where weights are on the meta device."""
    if any(weight.is_meta for weight in weights):
        raise LensSkillsError(
            f"the weights of {name} are not all here: they are offloaded (device_map with disk or "
            "CPU) or were never loaded, and a bridge's parts read them where they are. "
            "load_model(the transformers model, tokenizer=...) gathers offloaded weights."
        )


def check_gradients(name: str, weights: Iterable[Tensor]) -> None:
    """Nothing; raises where a product with packed weights would silently have no gradient.

    bitsandbytes lays out four bits anew for its CPU kernel, which has no backward pass.
    """
    states = (getattr(weight, "quant_state", None) for weight in weights)
    if any(getattr(state, "packing_format_for_cpu", False) for state in states):
        raise LensSkillsError(
            f"{name} has no gradients: bitsandbytes computes its four bits on this CPU in a kernel "
            "without them. What needs none works (sweep, verify, rank by activations); for "
            "gradients open it in eight bits, on a GPU, or the model it was quantised from."
        )
