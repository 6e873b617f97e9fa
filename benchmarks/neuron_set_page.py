"""The tables of ``docs/howto/publish.md``: what a check of SmolLM2 in other forms says."""

from collections.abc import Mapping
from typing import Any

from neuron_set import NOISE, SCALES

_FORMS = {
    "hooked_float32": "HookedTransformer, float32 (as published)",
    "bridge_float32": "TransformerBridge, float32",
    "folded_float32": "TransformerBridge, float32, folded",
    "hooked_float16": "HookedTransformer, float16",
    "bridge_float16": "TransformerBridge, float16",
    "folded_float16": "TransformerBridge, float16, folded",
    "hooked_bfloat16": "HookedTransformer, bfloat16",
    "bridge_bfloat16": "TransformerBridge, bfloat16",
    "folded_bfloat16": "TransformerBridge, bfloat16, folded",
}


def fits(numbers: Mapping[str, Any]) -> list[list[str]]:
    """Every form of the model: how far off it is, and whether it passes."""
    rows = [["the model", "activations", "log-probabilities, nats", "`check`"]]
    rows += [[words, *_cells(numbers, way)] for way, words in _FORMS.items()]
    other = "passes" if numbers["other_model_passes"] else "refused"
    return [*rows, ["arithmetic-small", "", "", other]]


def changed(numbers: Mapping[str, Any]) -> list[list[str]]:
    """What was changed in one layer, and whether it is noticed in either dtype."""
    ways = {
        f"noise_{n}": f"noise of {share:g} of W_in's deviation" for n, share in enumerate(NOISE)
    }
    ways |= {
        f"column_{n}": f"one neuron's input times {1 + share:g}" for n, share in enumerate(SCALES)
    }
    head = ["changed in one layer", "float32: activations", "nats", "`check`"]
    rows = [[*head, "bfloat16: activations", "nats", "`check`"]]
    for way, words in ways.items():
        rows.append(
            [words, *_cells(numbers, f"{way}_float32"), *_cells(numbers, f"{way}_bfloat16")]
        )
    return rows


def _cells(numbers: Mapping[str, Any], way: str) -> list[str]:
    passes = "passes" if numbers[f"{way}_passes"] else "refused"
    return [_short(numbers[f"{way}_{key}"]) for key in ("activations", "nats")] + [passes]


def _short(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}" if value < 1e-3 else f"{value:.2g}"
