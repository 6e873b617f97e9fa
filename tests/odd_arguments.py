"""Calls every public function with odd values, one argument at a time; and counts escapes.

Whatever a user passes, the answer is a result or a `LensSkillsError`. ``python -m
tests.odd_arguments`` tries every value for every argument; with a number, so many of them, spread.
Run as a program of its own, so that the checks of shapes in the tests do not answer first.
"""

import contextlib
import os
import random
import resource
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import torch

import lens_skills as ls
from lens_skills.errors import LensSkillsError

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 10**9, 0.5, -0.5, float("nan"), float("inf"), "", "tpyo", "L0N10",
    "L99N1", "é\n", b"x", [], {}, [None], ["tpyo"], [[]], [("a", 1)], [(0, 1), (0, 1)], {"a": None},
    {"a": "b"}, object(), len, torch.zeros(2, 3), torch.tensor([[0, 1]]), Path("no such"),
    (0.0, 0.0), (2, -1), ["L0N1", "L0N1"], [-1, 99], slice(2),
)  # fmt: skip


def calls() -> dict[str, dict[str, Any]]:
    """Of each public function, arguments that it takes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.tiny_tokenizer import tiny_tokenizer

    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, eos_token_id=2,
        bos_token_id=1, pad_token_id=0, tie_word_embeddings=False, initializer_range=0.3,
    )  # fmt: skip
    twin = LlamaForCausalLM(config).eval()
    model = ls.load_model(twin, tokenizer=tokenizer)
    task = ls.tasks.agreement()
    explore, confirm, intervene = (
        ls.tasks.few(part, 48) for part in task.split(0.4, 0.3, 0.3, seed=0)
    )
    metrics, small = {"plural": "label:plural"}, ls.controls(sets=4, neurons=8)
    scores = ls.score(model, explore, metrics=metrics, n_permutations=20, n_controls=99)
    checked = ls.score(model, confirm, metrics=metrics, n_permutations=20, n_controls=99)
    chosen = ls.select(scores, checked, exploratory=True)
    neurons, mean = ["L0N1", "L1N2"], ls.ablate("zero")
    prompt = ls.fit_prompt(model, explore, n_tokens=2, epochs=1)
    texts = ls.generate(model, explore, max_new_tokens=3)
    given: dict[str, Any] = {"model": model, "task": explore, "examples": explore, "seed": 0}
    given |= {"neurons": neurons, "scores": scores, "prompt": prompt, "metric": "logit_diff"}
    given |= {"do": mean, "graded": texts, "prompts": [prompt], "scores_by_seed": [scores, scores]}
    pairs = ls.tasks.few(ls.equal_length_pairs(model, task), 48)
    start, circuit = traced(model, pairs)
    sums = ls.tasks.arithmetic("+")
    spliced = ls.tasks.splice({"verbs": explore, "sums": sums}, 14, pieces=2)
    own: dict[str, dict[str, Any]] = {
        "Dictionary": {
            "W_enc": torch.ones(16, 3),
            "W_dec": torch.ones(3, 16),
            "hook_name": "blocks.1.hook_resid_post",
        },
        "Example": {"id": "a", "prompt": "b"},
        "NeuronSet": vars(ls.NeuronSet.of(["L0N1"], model, explore, licence="CC0-1.0")),
        "Task": {"name": "t", "examples": list(explore)},
        "activating_examples": {"lenses": ()},
        "ablate": {},
        "clamp": {"to": 1.0},
        "scale": {"by": 2.0},
        "steer": {"by": 1.0},
        "patch": {},
        "load_dictionary": {"folder": Path(__file__).parent / "models" / "saelens" / "topk"},
        "audit": {"controls": small, "n_permutations": 20, "unrelated": False},
        "capture": {"path": "out"},
        "circuit": {
            "examples": pairs,
            "start": start,
            "n_edges": 3,
            "n_random": 40,
            "n_draws": 50,
            "depth": 1,
        },
        "compare_methods": {
            "explore": explore,
            "intervene": intervene,
            "metric": "label:plural",
            "methods": ["pearson"],
            "k": 2,
            "n_random": 1,
            "exploratory": True,
            "do": mean,
        },
        "compare_prompts": {"exploratory": True},
        "compare_scores": {},
        "confidence": {},
        "config": {},
        "confidence_regulators": {"n_effects": 2, "n_controls": 4, "n_null": 2},
        "continual": {
            "tasks": {"a": explore[:12], "b": confirm[:12]},
            "masks": ("ncft",),
            "seeds": 1,
            "epochs": 1,
            "transfer": False,
        },
        "controls": {},
        "count": {"theta": 0.5},
        "damage_matrix": {"tasks": {"a": explore, "b": intervene}, "neurons": {"x": neurons}},
        "dissect": {"n_random": 1, "n_permutations": 19, "shares": (0.1,), "layers": [0]},
        "dose_response": {"doses": (0.0, 1.0)},
        "endpoint": {"url": "http://127.0.0.1:1/v1", "model": "m"},
        "equal_length_pairs": {},
        "estimate": {"verb": "preflight", "model": model, "task": explore},
        "explain": {
            "n_permutations": 9,
            "k": 2,
            "metric": "label:plural",
            "describer": "features",
            "n_others": 3,
        },
        "faithfulness": {"examples": pairs, "circuit": circuit, "n_random": 1},
        "feature_bank": {},
        "finetune": {"examples": explore[:12], "epochs": 1},
        "fit_count": {"metric": "label:plural"},
        "fit_prompt": {"n_tokens": 1, "epochs": 1},
        "generate": {"max_new_tokens": 2},
        "grade": {"graders": []},
        "layer_profile": {},
        "load": {"folder": "no such"},
        "load_model": {"x": twin, "tokenizer": tokenizer},
        "logit_diff": {},
        "memorisation": {"n_draws": 2, "n_bins": 4},
        "predictivity": {},
        "preflight": {},
        "prescreen": {"metric": "logit_diff"},
        "rank": {"metric": "label:plural", "exploratory": True},
        "export": {"source": scores, "folder": "exported"},
        "report": {"source": scores, "path": "report.html"},
        "redundancy": {},
        "score": {"metrics": metrics, "n_permutations": 10, "n_controls": 0, "exploratory": True},
        "score_part": {"metrics": metrics, "n_permutations": 19, "here": explore[:20]},
        "select": {"confirm_scores": checked, "exploratory": True},
        "segment": {
            "texts": spliced[:4],
            "fit": spliced[4:10],
            "tune": spliced[10:],
            "k": 3,
            "n_random": 1,
        },
        "shortcuts": {
            "explore": explore,
            "confirm": confirm,
            "intervene": intervene,
            "metric": "label:plural",
            "neurons": neurons,
            "k": 1,
            "n_permutations": 9,
            "controls": small,
        },
        "skill_matrix": {},
        "span": {"text": "the"},
        "minimal_set": {
            "train": explore,
            "test": confirm,
            "ks": (1,),
            "n_random": 2,
            "layerwise": False,
            "threshold": None,
            "method": "probeless",
            "metric": "label:plural",
        },
        "sparse_probe": {
            "train": explore,
            "test": confirm,
            "ks": (1,),
            "n_random": 1,
            "metric": "label:plural",
        },
        "stability": {"analysis": lambda part: chosen, "task": explore, "n": 2},
        "study": {"controls": small, "n_intervene": 8, "n_permutations": 20, "task": task},
        "sweep": {},
        "token_logits": {"neuron": "L0N1"},
        "verify": {"controls": small, "unrelated": False, "n_draws": 50, "exploratory": True},
    }
    for name, options in own.items():
        for parameter, spec in signature(getattr(ls, name)).parameters.items():
            if parameter in given and (spec.default is spec.empty or parameter == "do"):
                options.setdefault(parameter, given[parameter])
    without_prompt = ("fit_prompt", "generate")
    for name in without_prompt:
        own[name].pop("prompt", None)
    return own


def traced(model: Any, pairs: Any) -> tuple[str, Any]:
    """The first neuron that the corruption moves, and its circuit."""
    for index in range(24):
        with contextlib.suppress(LensSkillsError):
            found = ls.circuit(
                model, pairs, f"L1N{index}", n_edges=3, n_random=40, n_draws=50, depth=1
            )
            return f"L1N{index}", found
    raise AssertionError("no neuron of the tiny model is moved")


def plan(own: dict[str, dict[str, Any]]) -> list[tuple[str, str, int]]:
    """Function, argument and place of the odd value."""
    return [
        (name, parameter, place)
        for name in own
        for parameter, spec in signature(getattr(ls, name)).parameters.items()
        if spec.kind not in (spec.VAR_KEYWORD, spec.VAR_POSITIONAL)
        for place in range(len(ODD))
    ]


def end_of(call: Callable[..., Any], options: dict[str, Any]) -> str:
    """``result``, ``refused``, or the place and words of what escaped."""
    try:
        found = call(**options)
        repr(found)
    except LensSkillsError:
        return "refused"
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(at.filename).name}:{at.lineno}: {error!s:.120}"
    return "result"


def main(n: int | None) -> int:
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))  # what asks for more escapes
    own = calls()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, options in own.items():
            if (end := end_of(getattr(ls, name), options)) not in ("result", "refused"):
                print(f"{name} as it should be called: {end}")
        tried = plan(own)
        if n is not None:
            tried = random.Random(0).sample(tried, n)
        ends: Counter[str] = Counter()
        for name, parameter, place in tried:
            end = end_of(getattr(ls, name), own[name] | {parameter: ODD[place]})
            ends[end if end in ("result", "refused") else "escaped"] += 1
            if end not in ("result", "refused"):
                shown = f"{ODD[place]!r:.40}".replace("\n", " ")
                print(f"{name}({parameter}={shown}): {end}", flush=True)
    print(dict(ends))
    return ends["escaped"]


if __name__ == "__main__":
    sys.exit(bool(main(int(sys.argv[1]) if len(sys.argv) > 1 else None)))
