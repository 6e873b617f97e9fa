"""Ground truth in the real model: planted skill neurons, decoys and writers, found and tried.

    PYTHONPATH=. python benchmarks/planted.py            # all three parts
    PYTHONPATH=. python benchmarks/planted.py planted    # one: intervals, random or planted

A code is made up: every word of a list is given one of two colours by a coin, which no model can
know. *Skill* neurons are planted that fire for the words of one colour and write towards its name;
*decoys* fire likewise and write nothing; *writers* write, but fire for the words of another coin.
The search (three nulls, confirmation on other words) must find skill neurons and decoys, the
verdict must confirm the former and reject the latter. Then random neurons are tried, and the
intervals are checked against simulated effects whose mean is known.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch

import lens_skills as ls
from benchmarks.timing import report, table
from lens_skills.data import Example
from lens_skills.interventions.edits import ablate
from lens_skills.interventions.verdict import CAUSAL, OPPOSES, SUPPORTS
from lens_skills.interventions.verify import verify
from lens_skills.stats.bootstrap import cluster_interval
from lens_skills.tasks import Task
from tests.planted import mlp_inputs, plant

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
SKILL, DECOY, WRITER = 101, 202, 303  # one of each per layer
GAIN = 2.0  # nats that a skill neuron adds, about, where it fires
TRIED_LAYERS = (11, 23)  # of the random neurons


def words(model: Any, n: int) -> list[str]:
    """Plain words of one token, with their leading space."""
    tokens = sorted(model.tokenizer.get_vocab())
    plain = [t[1:] for t in tokens if t[0] == "Ġ" and t[1:].isascii() and t[1:].isalpha()]
    chosen = [word for word in plain if word.islower() and 4 <= len(word) <= 8]
    return [f" {word}" for word in np.random.default_rng(0).permutation(chosen)[:n]]


def task(model: Any, n_words: int) -> Task:
    """Every word in every frame; the label is its coin, the group the word."""
    random = np.random.default_rng(1)
    code = random.permutation(np.arange(n_words) % 2)
    other = random.permutation(np.arange(n_words) % 2)
    found = []
    for word, red, coin in zip(words(model, n_words), code.tolist(), other.tolist(), strict=True):
        for place, frame in enumerate(FRAMES):
            found.append(
                Example(
                    f"{word.strip()}/{place}",
                    frame.format(word=word),
                    answer=COLOURS[red],
                    foil=COLOURS[1 - red],
                    labels={"red": red},
                    covariates={"coin": coin, "frame": place},
                    group=word.strip(),
                )
            )
    return Task("made-up code", found)


def direction(inputs: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Where the MLP's input reads +1 for the positives and -1 for the rest (ridge regression)."""
    target = torch.where(positive, 1.0, -1.0).double()
    moment = inputs.T @ inputs
    ridge = 1e-3 * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
    return torch.linalg.solve(moment + ridge, inputs.T @ target)


def plant_all(model: Any, examples: Task) -> None:
    """Skill neuron, decoy and writer in each layer, from below: a plant moves what is above it."""
    tokens = [model.to_tokens(example.prompt)[0].tolist() for example in examples]
    red = torch.tensor([example.labels["red"] == 1 for example in examples])
    coin = torch.tensor([example.covariates["coin"] == 1 for example in examples])
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
        code, other = direction(inputs, red), direction(inputs, coin)
        size = natural_size(model, layer, inputs) / 2.0  # a plant's own std is about 2
        for neuron, reads, writes in ((SKILL, code, 1), (DECOY, code, 0), (WRITER, other, 1)):
            plant(model, layer, neuron, direction=reads, writes=step * (writes / size))
            with torch.no_grad():
                model.blocks[layer].mlp.W_in[:, neuron] *= size


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


def planted(model: Any, n_words: int, n_neurons: int) -> dict[str, float]:
    """The search and the verdict on what was planted, and on random neurons."""
    whole = task(model, n_words)
    plant_all(model, whole)
    skills, decoys, writers = (
        [f"L{layer}N{index}" for layer in LAYERS] for index in (SKILL, DECOY, WRITER)
    )
    explore, confirm, intervene = whole.split(0.4, 0.4, 0.2, seed=0)
    found = ls.score(model, explore, metrics="label:red")["label:red"]
    checked = ls.score(model, confirm, metrics="label:red", neurons=found.top(200))["label:red"]
    selection = ls.select(found, checked)
    print(f"\n{selection}")
    once = intervene.where(frame=0)
    mean = ablate("mean", over=explore.where(frame=[0, 1]))
    chosen = [name for name in selection.names if name in {*skills, *decoys}]
    # The planted ones only, and the writers beside them: what else was found is not ground truth.
    start = time.perf_counter()
    verdict = verify(
        model,
        once,
        [*chosen, *writers],
        do=mean,
        controls=ls.controls(100, neurons=n_neurons),
        also=(),
    )
    seconds = time.perf_counter() - start
    print(f"\n{verdict}\n\nfound by the search beside them: {set(selection.names) - set(chosen)}")
    convicted = [name for name in skills if name in chosen and verdict[name].word == SUPPORTS]
    rejected = [n for n in decoys if n in chosen and verdict[n].word not in CAUSAL]
    table(
        f"planted in layers {LAYERS}, {len(once)} examples, {seconds:.0f} s",
        {
            "skill neurons found and confirmed": f"{len(convicted)} of {len(skills)}",
            "decoys found": f"{len(set(decoys) & set(chosen))} of {len(decoys)}",
            "decoys rejected": f"{len(rejected)} of {len(decoys)}",
            "writers found": f"{len(set(writers) & set(selection.names))} of {len(writers)}",
            "writers": ", ".join(f"{verdict[name].word}" for name in writers),
        },
    )
    return {
        "planted_recall": len(convicted) / len(skills),
        "decoys_found": len(set(decoys) & set(chosen)) / len(decoys),
        "decoys_rejected": len(rejected) / len(decoys),
        "writers_left_out": 1 - len(set(writers) & set(selection.names)) / len(writers),
    }


def one_of_each_group(examples: Task) -> Task:
    """As many groups as there are, so that the intervals hold."""
    kept = {example.group: example.id for example in examples}
    return examples.where(lambda example: kept[example.group] == example.id)


def bystanders(model: Any, n: int, n_neurons: int, n_examples: int) -> dict[str, float]:
    """Random neurons on trial on agreement: a causal word for one of them is false, or a find."""
    explore, intervene = ls.tasks.agreement().split(0.5, 0.5, seed=0)
    random = np.random.default_rng(0)
    per_layer = n // len(TRIED_LAYERS)
    names = [
        f"L{layer}N{index}"
        for layer in TRIED_LAYERS
        for index in random.choice(model.cfg.d_mlp, size=per_layer, replace=False).tolist()
    ]
    start = time.perf_counter()
    verdict = verify(
        model,
        one_of_each_group(intervene)[:n_examples],
        names,
        do=ablate("mean", over=explore[:100]),
        controls=ls.controls(0, neurons=n_neurons),
        also=(),
        pairs=False,
    )
    causal = verdict.causal
    rows = {word: f"{count} of {len(names)}" for word, count in verdict.counts.items()}
    table(f"random neurons, {time.perf_counter() - start:.0f} s, {verdict.delta_from}", rows)
    print(f"  {[(name, verdict[name].effect, verdict[name].q) for name in causal]}")
    print("\n".join(f"  {note}" for note in verdict.notes))
    signed = verdict.named(SUPPORTS, OPPOSES)
    return {
        "false_causal_share": len(causal) / len(names),
        "false_causal": len(causal),
        "false_signed": len(signed),
    }


def coverage(kind: str, n_groups: int, n: int = 2_000) -> float:
    """Share of simulated effects whose 95 % interval holds their true mean, 0."""
    random = np.random.default_rng(n_groups)
    draw = {
        "normal": lambda *shape: random.normal(size=shape),
        "exponential": lambda *shape: random.exponential(size=shape) - 1,
        "lognormal": lambda *shape: np.exp(1.5 * random.normal(size=shape)) - np.exp(1.125),
    }[kind]
    held = []
    for part in range(4):
        codes = np.repeat(np.arange(n_groups), random.integers(1, 8, size=n_groups))
        values = draw(n // 4, n_groups)[:, codes] + draw(n // 4, len(codes))
        low, high = cluster_interval(
            torch.from_numpy(values), [str(code) for code in codes], seed=part
        )
        held.append(((low <= 0) & (high >= 0)).double())
    return float(torch.cat(held).mean())


def intervals() -> dict[str, float]:
    """Coverage of the 95 % interval: normal effects, and skewed ones beside them."""
    rows, figures = {}, {}
    for kind in ("normal", "exponential", "lognormal"):
        for n_groups in (10, 30, 60, 200):
            share = coverage(kind, n_groups)
            rows[f"{kind}, {n_groups} groups"] = f"{share:.3f}"
            figures[f"interval_coverage_{kind}_{n_groups}_groups"] = share
    table("share of 2,000 simulations covered by the 95 % interval", rows)
    return {"interval_coverage": figures["interval_coverage_normal_30_groups"]} | figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--words", type=int, default=240)
    parser.add_argument("--peers", type=int, default=1000, help="other neurons per layer")
    parser.add_argument("--random", type=int, default=200, help="random neurons on trial")
    parser.add_argument("--examples", type=int, default=60, help="for the random neurons")
    parser.add_argument("part", nargs="?", choices=["intervals", "random", "planted"])
    options = parser.parse_args()
    measured: dict[str, float] = {}
    if options.part in (None, "intervals"):
        measured |= intervals()
    if options.part in (None, "random"):
        measured |= bystanders(ls.load_model(), options.random, options.peers, options.examples)
    if options.part in (None, "planted"):
        measured |= planted(ls.load_model(), options.words, options.peers)
    report(measured)
