"""Every ranking method on neurons whose role is known: which are found, and which of those act.

    PYTHONPATH=. python benchmarks/planted_methods.py

A code is made up: each word of a list is red or blue. It goes with a surface feature in part: of
the words that begin with a to l three quarters are red, of the others one quarter. In each of four
layers four neurons are planted. A *skill* neuron fires for red words and writes towards "red"; a
*decoy* fires likewise and writes nothing; a *writer* writes, but fires for the words of a coin; a
*shortcut* writes, but fires for words that begin with a to l. All methods rank all 46,080 neurons;
the strongest of each are ablated one by one on words that no method has seen.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch

import lens_skills as ls
from benchmarks.planted import COLOURS, FRAMES, GAIN, LAYERS, direction, natural_size, words
from benchmarks.timing import report
from lens_skills.data import Example
from lens_skills.ranking import MethodComparison, compare_methods
from lens_skills.tasks import Task
from tests.planted import mlp_inputs, plant

ROLES = {"skill": 101, "decoy": 202, "writer": 303, "shortcut": 404}  # one of each per layer
AGREES = 0.75  # of the words: the surface feature gives their colour


def task(model: Any, n_words: int) -> Task:
    """Every word in every frame; the label is its colour, the group the word."""
    random = np.random.default_rng(1)
    chosen = words(model, n_words)
    early = np.array([word.strip()[0] <= "l" for word in chosen])
    red = np.zeros(n_words, dtype=int)
    for side, share in ((early, AGREES), (~early, 1 - AGREES)):
        places = random.permutation(np.flatnonzero(side))
        red[places[: round(share * len(places))]] = 1
    coins = random.permutation(np.arange(n_words) % 2)
    found = []
    for word, colour, coin, first in zip(chosen, red, coins, early, strict=True):
        for place, frame in enumerate(FRAMES):
            found.append(
                Example(
                    f"{word.strip()}/{place}",
                    frame.format(word=word),
                    answer=COLOURS[colour],
                    foil=COLOURS[1 - colour],
                    labels={"red": int(colour)},
                    covariates={"coin": int(coin), "early": int(first), "frame": place},
                    group=word.strip(),
                )
            )
    return Task("made-up code with a shortcut", found)


def plant_roles(model: Any, examples: Task) -> dict[str, list[str]]:
    """The names of the planted neurons by role; layers from below, as a plant moves those above."""
    tokens = [model.to_tokens(example.prompt)[0].tolist() for example in examples]
    signals = {
        name: torch.tensor([example.column(name) == 1 for example in examples])
        for name in ("red", "coin", "early")
    }
    blue_id, red_id = (model.to_tokens(word, prepend_bos=False)[0, -1].item() for word in COLOURS)
    towards = (model.W_U[:, red_id] - model.W_U[:, blue_id]).detach().double()
    with torch.no_grad():
        _, cache = model.run_with_cache(
            torch.tensor([tokens[0]]), names_filter=["ln_final.hook_scale"]
        )
    scale = cache["ln_final.hook_scale"][0, -1].item()
    step = towards * (GAIN * scale / 4 / float(towards @ towards))
    for layer in LAYERS:
        inputs = mlp_inputs(model, layer, tokens)
        size = natural_size(model, layer, inputs) / 2.0
        reads = {name: direction(inputs, positive) for name, positive in signals.items()}
        for role, signal in zip(ROLES, ("red", "red", "coin", "early"), strict=True):
            writes = 0.0 if role == "decoy" else 1 / size
            plant(model, layer, ROLES[role], direction=reads[signal], writes=step * writes)
            with torch.no_grad():
                model.blocks[layer].mlp.W_in[:, ROLES[role]] *= size
    return {role: [f"L{layer}N{index}" for layer in LAYERS] for role, index in ROLES.items()}


def measured(comparison: MethodComparison) -> dict[str, float]:
    """The figures of each method, flat, and of the best one."""
    frame = comparison.frame().set_index("method")
    methods = frame.loc[list(comparison.methods)]
    found = {
        f"planted_methods_{column}_{name}": float(value)
        for column in ("recall", "share")
        for name, value in methods[column].items()
    }
    return found | {
        "planted_methods_best_recall": float(methods["recall"].max()),
        "planted_methods_random_share": float(frame.loc["random", "share"]),
        "planted_methods_rotated_share": float(frame.loc["rotated basis", "share"]),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--words", type=int, default=240)
    parser.add_argument("--k", type=int, default=8, help="neurons each method may name")
    parser.add_argument("--controls", type=int, default=200)
    options = parser.parse_args()
    model = ls.load_model()
    whole = task(model, options.words)
    truth = plant_roles(model, whole)
    explore, rest, _ = whole.split(0.25, 0.25, 0.5, seed=0)
    start = time.process_time()
    comparison = compare_methods(
        model,
        explore,
        "label:red",
        intervene=rest.where(frame=0),
        k=options.k,
        truth=truth,
        n_controls=options.controls,
        progress=False,
    )
    print(comparison)
    print(f"\n{time.process_time() - start:.0f} s of processor time")
    report(measured(comparison))
