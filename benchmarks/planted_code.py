"""A made-up code and neurons of known function, planted in the real model.

Every word of a list is red or blue, which no model can know. A planted neuron fires for the words
of which something holds, and may write towards the name of a colour.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lens_skills.data import Example
from lens_skills.tasks import Task

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the tests are not installed

FRAMES = (
    "The next word is{word}",
    "Then she wrote{word}",
    "On the card it says{word}",
    "He said it twice:{word}",
    "My favourite word is{word}",
    "Now look up the word{word}",
)
COLOURS = (" blue", " red")
LAYERS = (8, 14, 20, 26)
GAIN = 2.0  # nats that a skill neuron adds, about, where it fires


def words(model: Any, n: int) -> list[str]:
    """Plain words of one token, with their leading space."""
    tokens = sorted(model.tokenizer.get_vocab())
    plain = [t[1:] for t in tokens if t[0] == "Ġ" and t[1:].isascii() and t[1:].isalpha()]
    chosen = [word for word in plain if word.islower() and 4 <= len(word) <= 8]
    return [f" {word}" for word in np.random.default_rng(0).permutation(chosen)[:n]]


def coded(
    name: str, words: Sequence[str], red: Sequence[int], covariates: Mapping[str, Sequence[int]]
) -> Task:
    """Every word in every frame; the label is its colour, the group the word."""
    made = [
        Example(
            f"{word.strip()}/{place}",
            frame.format(word=word),
            answer=COLOURS[red[k]],
            foil=COLOURS[1 - red[k]],
            labels={"red": int(red[k])},
            covariates={name: int(values[k]) for name, values in covariates.items()}
            | {"frame": place},
            group=word.strip(),
        )
        for k, word in enumerate(words)
        for place, frame in enumerate(FRAMES)
    ]
    return Task(name, made)


def direction(inputs: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Where the MLP's input reads +1 for the positives and -1 for the rest (ridge regression)."""
    target = torch.where(positive, 1.0, -1.0).double()
    moment = inputs.T @ inputs
    ridge = 1e-3 * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
    return torch.linalg.solve(moment + ridge, inputs.T @ target)


def natural_size(model: Any, layer: int, inputs: torch.Tensor) -> float:
    """The standard deviation that one neuron in a hundred of the layer exceeds.

    A plant much larger than any neuron would outshout its layer: every direction of a rotated
    basis would then carry it too.
    """
    mlp = model.blocks[layer].mlp
    with torch.no_grad():
        gate = torch.nn.functional.silu(inputs @ mlp.W_gate.double())
        acts = gate * (inputs @ mlp.W_in.double())
    return float(acts.std(dim=0).quantile(0.99))


def plant_roles(
    model: Any, examples: Task, roles: Mapping[str, tuple[int, str, bool]]
) -> dict[str, list[str]]:
    """The names of the planted neurons by role; layers from below, as a plant moves those above.

    Args:
        model: A HookedTransformer, changed in place.
        examples: What the neurons learn to fire for.
        roles: By role: the neuron's index in each layer, the column it fires for, and whether it
            writes towards "red".
    """
    from tests.planted import mlp_inputs, plant

    tokens = [model.to_tokens(example.prompt)[0].tolist() for example in examples]
    signals = {
        column: torch.tensor([example.column(column) == 1 for example in examples])
        for _, column, _ in roles.values()
    }
    blue_id, red_id = (model.to_tokens(word, prepend_bos=False)[0, -1].item() for word in COLOURS)
    towards = (model.W_U[:, red_id] - model.W_U[:, blue_id]).detach().double()
    with torch.no_grad():
        _, cache = model.run_with_cache(
            torch.tensor([tokens[0]]), names_filter=["ln_final.hook_scale"]
        )
    scale = cache["ln_final.hook_scale"][0, -1].item()
    # An activation of 4 times this moves the two logits apart by GAIN, the final norm held fixed.
    step = towards * (GAIN * scale / 4 / float(towards @ towards))
    for layer in LAYERS:
        inputs = mlp_inputs(model, layer, tokens)
        size = natural_size(model, layer, inputs) / 2.0  # a plant's own std is about 2
        reads = {column: direction(inputs, positive) for column, positive in signals.items()}
        for neuron, column, writes in roles.values():
            strength = 1 / size if writes else 0.0
            plant(model, layer, neuron, direction=reads[column], writes=step * strength)
            with torch.no_grad():
                model.blocks[layer].mlp.W_in[:, neuron] *= size
    return {role: [f"L{layer}N{roles[role][0]}" for layer in LAYERS] for role in roles}
