"""The same numbers on a GPU, and how fast: equality with the CPU, ratios, a whole-model sweep.

    python benchmarks/gpu.py --save                  # a CUDA device, eight minutes with everything
    python benchmarks/gpu.py --device cpu --small    # the same code without one: a smoke run

Equality first: score, sweep, verify, a soft prompt and a circuit in float32 on both devices, then
the same on the device with the model in bfloat16 (score: with ``precision="bfloat16"``), each
against float32 on the CPU. Then examples per second against the bare forward, and against loops of
hooked passes. Then the sweep of every neuron on 8 prompts, or of as many layers as the time allows,
told by a short one. Peak memory is that of the device's allocator (on a CPU: of the process).

The result is kept as ``gpu_<card>.json``. Nothing is kept without a GPU.
"""

import re
import resource
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timing import arguments, interleaved, run_parts, table

import lens_skills as ls
from lens_skills.activations.forward import encode_examples
from lens_skills.circuits import equal_length_pairs
from lens_skills.models import as_adapter
from lens_skills.stats.correlation import rank_agreement

METRICS = ["label:plural", "confidence", "entropy", "margin"]
BATCH, EXAMPLES = 32, 8
# What `score` draws for a whole model by itself; small models would get many more.
DRAWS: dict[str, Any] = {"n_permutations": 100, "n_controls": 199, "n_rotations": 1}


@dataclass
class Setting:
    """What is measured where, and until when.

    Attributes:
        device: The one measured.
        small: Whether this is a smoke run on the smallest bundled model.
        ends: When the script is to be done (`time.monotonic`).
        models: Those opened so far, by device.
    """

    device: torch.device
    small: bool
    ends: float
    models: dict[str, Any]

    def model(self, device: str | torch.device) -> Any:
        """The model in float32 on a device; opened once."""
        if str(device) not in self.models:
            self.models[str(device)] = ls.load_model(self.name, device=device)
        return self.models[str(device)]

    @property
    def name(self) -> str | None:
        """Which model is opened: the default one, or the smallest bundled one."""
        return "arithmetic-small" if self.small else None

    @property
    def left(self) -> float:
        """Seconds until the script is to be done."""
        return self.ends - time.monotonic()

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def timed(self, way: Callable[[], object]) -> Callable[[], None]:
        """The way, until its last number is there."""

        def run() -> None:
            way()
            self.wait()

        return run

    def peak(self, way: Callable[[], object]) -> float:
        """Bytes held at most during a call: beyond the model's own on a GPU, of all on a CPU."""
        if self.device.type != "cuda":
            way()
            return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        way()
        self.wait()
        return float(torch.cuda.max_memory_allocated(self.device) - before)


def one_length(model: Any) -> ls.Task:
    """Agreement prompts of the commonest number of tokens."""
    adapter, task = as_adapter(model), ls.tasks.agreement()
    lengths = [len(adapter.encode(example.prompt)) for example in task]
    common = Counter(lengths).most_common(1)[0][0]
    kept = [example for example, n in zip(task, lengths, strict=True) if n == common]
    return ls.Task("agreement", kept)


def neurons_of(model: Any, per_layer: int) -> torch.Tensor:
    """As many neurons of every layer, drawn at random, as rows."""
    generator = torch.Generator().manual_seed(0)
    widths = enumerate(as_adapter(model).mlp_widths)
    rows = [
        torch.cartesian_prod(torch.tensor([layer]), torch.randperm(width, generator=generator))
        for layer, width in widths
    ]
    return torch.cat([part[:per_layer] for part in rows])


def sums() -> ls.Task:
    """Pairs of sums with other answers of one digit, which the smallest model can do."""
    found = [e for e in ls.tasks.arithmetic(("+",), digits=(1,)) if len(e.answer or "") == 1]
    pairs = [
        ls.Example(id=one.id, prompt=one.prompt, answer=one.answer, foil=other.answer,
                   corrupted=other.prompt, group=one.group)
        for one, other in zip(found, found[7:] + found[:7], strict=True)
        if one.answer != other.answer and len(one.prompt) == len(other.prompt)
    ]  # fmt: skip
    return ls.Task("sums", pairs)


def measured(model: Any, small: bool) -> dict[str, torch.Tensor]:
    """What each verb gives on a model, as one vector each: r, effects, verdict, prompt, edges.

    One that refuses is left out, with the reason: the others are still worth the time.
    """
    task = ls.tasks.few(one_length(model), 48 if small else 96)
    explore, intervene = task.split(0.6, 0.4, seed=0)
    mean = ls.ablate("mean", over=explore)
    few = ls.controls(sets=4 if small else 20, neurons=24)
    tried = ["L0N1", "L1N2", "L2N3"][: 1 if small else 3]
    trained: dict[str, Any] = {"n_tokens": 2, "epochs": 2, "patience": 3, "held_out": intervene}
    edited: dict[str, Any] = {"do": mean, "metric": "logit_diff"}

    def circuit() -> torch.Tensor:
        pairs = ls.tasks.few(sums() if small else equal_length_pairs(model, ls.tasks.ioi()), 64)
        options: dict[str, Any] = {"n_edges": 4, "depth": 1, "n_random": 40, "n_draws": 100}
        edges = ls.circuit(model, pairs, metric="logit_diff", **options).frame()
        return torch.tensor(edges.sort_values("sender").effect.tolist())

    verbs: dict[str, Callable[[], torch.Tensor]] = {
        "score": lambda: ls.score(model, explore, metrics=METRICS, **DRAWS).r.flatten(),
        "sweep": lambda: ls.sweep(
            model, intervene[:EXAMPLES], neurons_of(model, 2), **edited
        ).total.mean(1),
        "verify": lambda: ls.verify(
            model, intervene, tried, controls=few, delta=1.0, n_draws=200, **edited
        ).effects.total.mean(1),
        "soft prompt": lambda: ls.fit_prompt(model, explore, **trained).suffix.flatten(),
        "circuit": circuit,
    }
    found = {}
    for name, verb in verbs.items():
        try:
            found[name] = verb().detach().double().cpu()
        except ls.LensSkillsError as reason:
            print(f"  {name} refused: {reason}")
    return found


def equality(setting: Setting) -> dict[str, float]:
    """The largest difference from float32 on the CPU, over the spread of the numbers."""
    wanted = measured(setting.model("cpu"), setting.small)
    figures: dict[str, float] = {}
    for dtype in ("float32", "bfloat16"):
        # Opened anew: on a CPU it would be the same object.
        model = ls.load_model(setting.name, device=setting.device, dtype=dtype)
        found = measured(model, setting.small)
        rows = {}
        for name, own in wanted.items():
            other, label = found.get(name), f"{name.replace(' ', '_')}_{dtype}"
            if other is None or own.shape != other.shape:  # bfloat16 may propose other edges
                rows[name] = "refused, or other edges"
                continue
            spread = own.std(correction=0).clamp(min=1e-30)
            gap = float((own - other).abs().max() / spread)
            ranks = rank_agreement(own, other) if len(own) > 2 else 1.0
            rows[name] = f"differs by {gap:.1e} of the spread at most; ranks {ranks:.5f}"
            figures |= {f"gpu_{label}_gap": gap, f"gpu_{label}_ranks": ranks}
        table(f"{dtype} on {setting.device} against float32 on the CPU", rows)
    here = setting.model(setting.device)
    task = ls.tasks.few(one_length(here), 48 if setting.small else 96)
    one, two = (
        ls.score(here, task, metrics=METRICS, **DRAWS, precision=precision)
        for precision in (None, "bfloat16")
    )
    moved = (one.r - two.r).abs().flatten().sort().values
    figures["gpu_precision_moved_p999"] = float(moved[int(0.999 * (len(moved) - 1))])
    told = {"99.9 % of r moved by at most": f"{figures['gpu_precision_moved_p999']:.4f}"}
    table("score, precision='bfloat16' against float32, both here", told)
    return figures


def scoring(setting: Setting) -> dict[str, float]:
    """`score` over the bare forward, in both precisions, and the memory it takes."""
    model = setting.model(setting.device)
    some = list(one_length(model))
    n = len(some) if setting.small else 2560
    examples = [
        ls.Example(id=str(k), prompt=e.prompt, labels=e.labels, group=e.group, kind=e.kind)
        for k, e in ((k, some[k % len(some)]) for k in range(n))
    ]
    task, size = ls.Task("agreement", examples), BATCH if setting.small else 256
    rows = torch.stack([model.to_tokens(e.prompt)[0] for e in some]).to(setting.device)
    tokens = rows[torch.arange(n) % len(some)]

    @torch.no_grad()
    def bare() -> None:
        for part in tokens.split(size):
            model(part)

    def score(precision: str | None) -> None:
        with ls.config(batch_size=size):
            ls.score(model, task, metrics=METRICS, **DRAWS, precision=precision)

    ways = {"bare": bare, "own": partial(score, None), "rounded": partial(score, "bfloat16")}
    rounds = 1 if setting.small else 5
    seconds = interleaved({name: setting.timed(way) for name, way in ways.items()}, rounds=rounds)
    held = setting.peak(ways["own"])
    figures = {
        "gpu_score_vs_forward": seconds["bare"] / seconds["own"],
        "gpu_score_bfloat16_vs_forward": seconds["bare"] / seconds["rounded"],
        "gpu_score_examples_per_second": n / seconds["own"],
        "gpu_score_peak_mb": held / 2**20,
    }
    table(f"score, 4 metrics, 100 permutations: {n:,} prompts of {tokens.shape[1]} tokens", {
        "against the bare forward": f"{figures['gpu_score_vs_forward']:.2f}x",
        "the same in bfloat16": f"{figures['gpu_score_bfloat16_vs_forward']:.2f}x",
        "peak memory": f"{held / 2**20:,.0f} MB",
    })  # fmt: skip
    return figures


def loops(setting: Setting) -> dict[str, float]:
    """`sweep` over loops of hooked passes, per neuron and example."""
    model = setting.model(setting.device)
    task = one_length(model)[:EXAMPLES]
    encoded = encode_examples(as_adapter(model), task, answers=True)
    tokens = torch.tensor([item.prompt_tokens.tolist() for item in encoded]).to(setting.device)
    answers = torch.tensor([(item.answer_tokens or (0,))[0] for item in encoded])[:, None]
    answers = answers.to(setting.device)
    few = [(int(layer), int(neuron)) for layer, neuron in neurons_of(model, 1)]

    def hook(activation: torch.Tensor, hook: Any, *, neuron: int) -> torch.Tensor:
        activation = activation.clone()
        activation[:, -1, neuron] = 0
        return activation

    @torch.no_grad()
    def loop(rows: torch.Tensor) -> None:
        for layer, neuron in few:
            hooks = [(f"blocks.{layer}.mlp.hook_post", partial(hook, neuron=neuron))]
            model.run_with_hooks(rows, fwd_hooks=hooks)[:, -1].gather(-1, answers[: len(rows)])

    many = neurons_of(model, 8 if setting.small else 256)
    ways: dict[str, Callable[[], Any]] = {
        "sweep": partial(ls.sweep, model, task, many, do=ls.ablate("zero"), metric="logit_diff"),
        "b1": partial(loop, tokens[:1]),
        "b8": partial(loop, tokens),
    }
    counts = {"sweep": len(many) * EXAMPLES, "b1": len(few), "b8": len(few) * EXAMPLES}
    rounds = 1 if setting.small else 5
    seconds = interleaved({name: setting.timed(way) for name, way in ways.items()}, rounds=rounds)
    each = {name: seconds[name] / counts[name] for name in ways}
    figures = {f"gpu_sweep_vs_loop_{name}": each[name] / each["sweep"] for name in ("b1", "b8")}
    table("sweep against loops of run_with_hooks, per neuron and example", {
        "one example at a time": f"{figures['gpu_sweep_vs_loop_b1']:.1f}x",
        "8 examples at a time": f"{figures['gpu_sweep_vs_loop_b8']:.1f}x",
    })  # fmt: skip
    return figures


def whole(setting: Setting) -> dict[str, float]:
    """Every neuron on 8 prompts, or of as many layers from the top down as the time allows."""
    model = setting.model(setting.device)
    adapter, task = as_adapter(model), one_length(model)[:EXAMPLES]
    middle = adapter.n_layers // 2

    def swept(layers: range) -> Any:
        widths = {layer: torch.arange(adapter.mlp_widths[layer]) for layer in layers}
        rows = [torch.cartesian_prod(torch.tensor([at]), all_of) for at, all_of in widths.items()]
        return ls.sweep(model, task, torch.cat(rows), do=ls.ablate("zero"), metric="logit_diff")

    start = time.perf_counter()
    setting.timed(lambda: swept(range(middle, middle + 1)))()
    # The layer in the middle costs what a layer costs on average; half as much again is kept back.
    each = time.perf_counter() - start
    n_layers = min(adapter.n_layers, int(setting.left / (1.5 * each)))
    if n_layers < 1:
        print(f"no sweep of a layer fits into the {setting.left:.0f} s that are left")
        return {"gpu_whole_layers": 0.0}
    start = time.perf_counter()
    held = setting.peak(lambda: swept(range(adapter.n_layers - n_layers, adapter.n_layers)))
    seconds = time.perf_counter() - start
    n_neurons = float(sum(adapter.mlp_widths[adapter.n_layers - n_layers :]))
    table(f"all neurons of {n_layers} of {adapter.n_layers} layers, {EXAMPLES} prompts", {
        "neurons": f"{n_neurons:,.0f}",
        "seconds": f"{seconds:.1f}",
        "told beforehand": f"{each * n_layers:.1f}",
        "peak memory": f"{held / 2**20:,.0f} MB",
    })  # fmt: skip
    return {
        "gpu_whole_layers": float(n_layers), "gpu_whole_neurons": n_neurons,
        "gpu_whole_seconds": seconds, "gpu_whole_peak_mb": held / 2**20,
    }  # fmt: skip


def everything(setting: Setting) -> dict[str, float]:
    """All parts, the whole sweep last: it takes what time is left."""
    figures: dict[str, float] = {}
    for part in (equality, scoring, loops, whole):
        start = time.monotonic()
        try:
            figures |= part(setting)
        except Exception:  # the device is lent for minutes: what else there is, is still measured
            traceback.print_exc()
        print(f"  [{part.__name__}: {time.monotonic() - start:.0f} s, {setting.left:.0f} s left]")
    return figures


def card(device: torch.device) -> str:
    """The device's name as a file may be called."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return re.sub(r"\W+", "_", name.lower()).strip("_")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="the smallest model, few numbers")
    parser.add_argument("--minutes", type=float, default=8.0, help="to be done in")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "no CUDA device here: nothing was measured, and nothing is claimed. The same code runs "
            "without one: python benchmarks/gpu.py --device cpu --small"
        )
    if asked.save and (asked.small or device.type != "cuda"):
        raise SystemExit("a smoke run is no measurement: --save is for a GPU, without --small")
    ls.config(progress=False)
    # What the loading of the libraries took counts too: a minute is kept for it.
    ends = time.monotonic() + 60 * (asked.minutes - (0 if asked.small else 1))
    setting = Setting(device, asked.small, ends, {})
    run_parts({card(device): lambda: everything(setting)}, asked)


if __name__ == "__main__":
    main()
