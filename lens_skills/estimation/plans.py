"""What each long verb has to do: which arguments hold its examples, and how its work is counted.

A plan never says what anything costs: that is measured, on small sizes of the same call.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lens_skills import settings
from lens_skills.activations import DEFAULT_SITE, capture
from lens_skills.activations.components import Component, parse_components
from lens_skills.circuits import circuit, faithfulness
from lens_skills.data import Example
from lens_skills.diagnostics import (
    confidence_regulators,
    memorisation,
    minimal_set,
    redundancy,
    sparse_probe,
)
from lens_skills.explanation import activating_examples, explain, shortcuts
from lens_skills.generation import generate
from lens_skills.interventions import (
    Controls,
    Edit,
    audit,
    damage_matrix,
    dose_response,
    prescreen,
    sweep,
    verify,
)
from lens_skills.interventions.verify import other_ablations
from lens_skills.models import as_adapter
from lens_skills.ranking import compare_methods, rank
from lens_skills.scoring import score
from lens_skills.soft_prompts import compare_prompts, fit_prompt
from lens_skills.tasks import Task, few, preflight

Request = dict[str, Any]
Work = dict[str, float]
READING, EFFECTS, STEPS, PATHS = "examples", "effects", "steps", "paths"
"""Kinds of work, called as the unit of the loops that do it; all other loops read prompts."""
WORDS = {
    READING: "reading prompts",
    EFFECTS: "edited passes (sets of neurons × examples)",
    STEPS: "gradient steps (epochs × examples)",
    PATHS: "patched paths (edges × pairs)",
    "": "what does not grow with them",
}
_TOLD = 2000  # so many prompts are read to know how long all are
_FEWEST_NEURONS = 24  # of a layer: fewer controls make no verdict


@dataclass(frozen=True)
class Plan:
    """How a verb is made smaller and how its work is counted.

    Attributes:
        verb: The function.
        examples: Arguments that hold examples, the main ones first.
        start: Examples of the smallest run.
        batch: Examples per forward pass, unless `lens_skills.config` says otherwise.
        size: The size of the other axis in a request; None where there is none.
        first: The other axis in the smallest run.
        resized: The request at another size of that axis.
        counted: Further work of a request, by kind, of so many examples; after a run its result
            says how much there was.
        cheaper: Requests that cost less, in words.
    """

    verb: Callable[..., Any]
    examples: tuple[str, ...]
    start: int = 16
    batch: int = 32
    size: Callable[[Request], int] = lambda request: 1
    first: int = 1
    resized: Callable[[Request, int], Request] = lambda request, m: request
    counted: Callable[[Request, int, Any], Work] = lambda request, n, result: {}
    cheaper: Callable[[Request], Iterator[tuple[str, Request]]] = lambda request: iter(())

    def n(self, request: Request) -> int:
        """How many examples its main split has."""
        return _length(request[self.examples[0]])

    def smaller(self, request: Request, n: int, m: int) -> Request:
        """The request on ``n`` examples, and on others in proportion, at size ``m``."""
        share = n / self.n(request)
        made, columns = dict(request), request[self.examples[0]]
        if "checkpoint" in made:
            made["checkpoint"] = None
        if share < 1:
            for name in (*self.examples, "delta", "unrelated", "ranked_on", "over"):
                if holds_examples(made.get(name)):
                    made[name] = fewer(made[name], share)
            for name in ("metrics", "metric"):
                if name in made and holds_examples(columns):
                    made[name] = _numbers_of(made[name], columns, made[self.examples[0]])
            for name in ("do", "also"):
                if name in made:
                    made[name] = _smaller_edits(made[name], share)
        return self.resized(made, m)

    def work(self, request: Request, result: Any = None) -> Work:
        """How much there is to do, by kind; all of it grows with the examples."""
        names = (*self.examples, "delta", "unrelated", "ranked_on", "over")
        held = [request[name] for name in names if holds_examples(request.get(name))]
        held += [edit.over for edit in _edits(request) if holds_examples(edit.over)]
        model, batch = request.get("model"), settings.batch_size(self.batch)
        columns = sum(token_columns(model, examples, batch) for examples in held)
        return {READING: columns} | self.counted(request, self.n(request), result)


def holds_examples(value: Any) -> bool:
    """Whether an argument is a split, or a dict of splits."""
    if isinstance(value, Mapping):
        return bool(value) and all(map(holds_examples, value.values()))
    return isinstance(value, Sequence) and len(value) > 0 and isinstance(value[0], Example)


def fewer(examples: Any, share: float, *, least: int = 8) -> Any:
    """A share of a split from as many of its groups as can be, its longest prompt among them."""
    if isinstance(examples, Mapping):
        return {name: fewer(part, share, least=least) for name, part in examples.items()}
    n = max(math.ceil(share * len(examples) - 1e-9), min(least, len(examples)))
    if n >= len(examples):
        return examples
    task = examples if isinstance(examples, Task) else Task("examples", tuple(examples))
    chosen = few(task, n)
    longest = max(task, key=lambda example: len(example.prompt))
    kept = list(chosen)
    if longest.id not in {example.id for example in kept}:
        alike = [k for k, example in enumerate(kept) if example.group == longest.group]
        kept[alike[0] if alike else -1] = longest
    if not isinstance(examples, Task):
        return kept
    ids = {example.id for example in kept}
    return examples.where(lambda example: example.id in ids)


def token_columns(model: Any, examples: Any, batch: int) -> float:
    """Rows times padded width, over the batches of like length that a pass makes of examples."""
    if isinstance(examples, Mapping):
        return sum(token_columns(model, part, batch) for part in examples.values())
    if not hasattr(model, "cfg") and not hasattr(model, "encode"):
        return len(examples)  # a table of activations is read by rows
    adapter = as_adapter(model)
    some = examples if len(examples) <= _TOLD else fewer(examples, _TOLD / len(examples))
    lengths = sorted(len(adapter.encode(example.prompt)) for example in some)
    parts = [lengths[k : k + batch] for k in range(0, len(lengths), batch)]
    return sum(len(part) * part[-1] for part in parts) * len(examples) / len(some)


def _length(examples: Any) -> int:
    if isinstance(examples, Mapping):
        return max(map(len, examples.values()))
    return len(examples)


def _edits(request: Request) -> list[Edit]:
    given = [request.get("do"), request.get("also")]
    several = [
        one for each in given for one in (each if isinstance(each, list | tuple) else [each])
    ]
    return [one for one in several if isinstance(one, Edit)]


def _smaller_edits(do: Any, share: float) -> Any:
    if isinstance(do, Mapping):
        return {name: _smaller_edits(one, share) for name, one in do.items()}
    if isinstance(do, list | tuple):
        return [_smaller_edits(one, share) for one in do]
    if isinstance(do, Edit) and holds_examples(do.over):
        return replace(do, over=fewer(do.over, share))
    return do


def _numbers_of(metrics: Any, all_of: Any, some: Any) -> Any:
    """Metrics that are one number per example, of fewer examples."""
    if isinstance(metrics, Mapping):
        return {name: _numbers_of(one, all_of, some) for name, one in metrics.items()}
    if not hasattr(metrics, "__len__") or isinstance(metrics, str):
        return metrics
    if len(metrics) != len(all_of) or any(isinstance(one, str) for one in metrics):
        return metrics
    place = {example.id: k for k, example in enumerate(all_of)}
    rows = [place[example.id] for example in some]
    if isinstance(metrics, list | tuple):
        return [metrics[row] for row in rows]
    if hasattr(metrics, "iloc"):  # a column of a table
        return metrics.iloc[rows]
    return metrics[rows] if hasattr(metrics, "dtype") else metrics


def _depth(adapter: Any, layer: int) -> float:
    """How much of a pass an edit in a layer runs again: the blocks from it on, and the output."""
    return (adapter.n_layers - layer + 1) / (adapter.n_layers + 1)


def _units(request: Request) -> tuple[Any, Sequence[Component]]:
    adapter = as_adapter(request["model"])
    named = request["neurons"]
    named = named.to_try() if hasattr(named, "to_try") else named
    return adapter, parse_components(adapter, named, at=request.get("at") or DEFAULT_SITE)


def _some_units(request: Request, m: int) -> Request:
    """A sweep of ``m`` neurons: of few layers, first to last, so that each has several."""
    _, units = _units(request)
    by_layer: dict[int, list[Component]] = {}
    for unit in units:
        by_layer.setdefault(unit.layer, []).append(unit)
    layers = sorted(by_layer)
    n_layers = min(len(layers), max(2, round(math.sqrt(m / 4))))
    places = torch.linspace(0, len(layers) - 1, n_layers).round().long().unique().tolist()
    each = math.ceil(m / len(places))
    kept = [unit for place in places for unit in by_layer[layers[place]][:each]]
    return request | {"neurons": kept}


def _sweep_work(request: Request, n: int, result: Any) -> Work:
    adapter, units = _units(request)
    return {EFFECTS: n * sum(_depth(adapter, unit.layer) for unit in units)}


def _fewer_controls(request: Request, m: int) -> Request:
    """Controls of ``m`` neurons per layer, the sets in proportion."""
    asked: Controls = request["controls"]
    whole = _n_controls(request)
    if m >= whole:
        return request
    sets = math.ceil(asked.sets * m / whole)
    important = None if asked.important is None else math.ceil(asked.important * m / whole)
    return request | {"controls": Controls(sets, important, m)}


def _n_controls(request: Request) -> int:
    width = max(as_adapter(request["model"]).mlp_widths)
    asked = request["controls"].neurons
    return width if asked is None else min(asked, width)


def _verdict_work(request: Request, n: int, result: Any) -> Work:
    """Edited passes of a verdict: candidates, their set, single controls, sets of them."""
    adapter, units = _units(request)
    asked: Controls = request["controls"]
    layers = {unit.layer for unit in units}
    own = sum(_depth(adapter, unit.layer) for unit in units)
    whole = _depth(adapter, min(layers)) if len(units) > 1 else 0.0
    single = sum(_depth(adapter, layer) for layer in layers) * _n_controls(request)
    sets = (asked.sets + asked.n_important) * whole
    do = request["do"]
    also = request.get("also")
    others = (other_ablations(do) if do is not None else (0, 0)) if also is None else also
    examples = request[("examples" if "examples" in request else "task")]
    paired = request.get("pairs") is not False and all(one.corrupted for one in examples)
    again = 2 + len(others) + (2 if paired else 0)
    return {EFFECTS: n * (again * (own + whole) + single + sets)}


def _cheaper_examples(name: str) -> Callable[[Request], Iterator[tuple[str, Request]]]:
    def ways(request: Request) -> Iterator[tuple[str, Request]]:
        yield "half of the examples", request | {name: fewer(request[name], 0.5)}

    return ways


def _cheaper_verdict(request: Request) -> Iterator[tuple[str, Request]]:
    asked: Controls = request["controls"]
    name = "examples" if "examples" in request else "task"
    sets, neurons = math.ceil(asked.sets / 4), max(_FEWEST_NEURONS, _n_controls(request) // 4)
    fewer_controls = request | {"controls": Controls(sets, asked.important, neurons)}
    yield f"controls(sets={sets}, neurons={neurons})", fewer_controls
    yield "half of the examples", request | {name: fewer(request[name], 0.5)}


def _cheaper_sweep(request: Request) -> Iterator[tuple[str, Request]]:
    _, units = _units(request)
    if len(units) >= 500:
        some = units[:: len(units) // (len(units) // 10)]
        yield f"the {len(some):,} neurons a prescreen puts first", request | {"neurons": some}
    yield "half of the examples", request | {"examples": fewer(request["examples"], 0.5)}


def _training_work(request: Request, n: int, result: Any) -> Work:
    epochs = request["epochs"]
    if result is not None:
        first = result[0] if isinstance(result, tuple) else result
        epochs = max(1, len(first.curve) - 1)
    columns = token_columns(request["model"], request["examples"], request["batch_size"])
    return {STEPS: columns * epochs * request["seeds"]}


def _cheaper_training(request: Request) -> Iterator[tuple[str, Request]]:
    if request["seeds"] > 1:
        yield "seeds=1", request | {"seeds": 1}
    epochs = max(1, request["epochs"] // 2)
    yield f"epochs={epochs}", request | {"epochs": epochs}


def _circuit_work(request: Request, n: int, result: Any) -> Work:
    paths = request["n_edges"] + request["n_random"]
    behaviour = request["start"] == "answer"
    tested = paths * request["depth"] * (1 if behaviour else 2)
    if result is not None:
        tested = len(result.edges) + len(result.random)
    return {PATHS: n / 2 * tested}


def _cheaper_circuit(request: Request) -> Iterator[tuple[str, Request]]:
    if request["depth"] > 1:
        yield "depth=1", request | {"depth": 1}
    n_edges = max(1, request["n_edges"] // 2)
    yield f"n_edges={n_edges}", request | {"n_edges": n_edges}
    yield "half of the examples", request | {"examples": fewer(request["examples"], 0.5)}


def _probe_work(request: Request, n: int, result: Any) -> Work:
    return {EFFECTS: min(request["n_effects"], n)}


def _read(verb: Callable[..., Any], *examples: str, **options: Any) -> Plan:
    return Plan(verb, examples, cheaper=_cheaper_examples(examples[0]), **options)


_VERDICT: dict[str, Any] = {
    "size": _n_controls, "first": _FEWEST_NEURONS, "resized": _fewer_controls,
    "counted": _verdict_work, "cheaper": _cheaper_verdict,
}  # fmt: skip
_PLANS = (
    _read(preflight, "task"),
    _read(score, "examples"),
    _read(rank, "examples"),
    _read(capture, "examples"),
    _read(prescreen, "examples"),
    _read(sparse_probe, "train", "test"),
    _read(minimal_set, "train", "test"),
    _read(explain, "task"),
    _read(activating_examples, "examples"),
    _read(redundancy, "examples"),
    _read(memorisation, "examples"),
    _read(compare_prompts, "examples"),
    _read(generate, "examples", batch=16),
    _read(dose_response, "examples", start=8),
    _read(damage_matrix, "tasks", start=8),
    _read(compare_methods, "explore", "intervene"),
    _read(shortcuts, "explore", "confirm", "intervene", start=24),
    _read(faithfulness, "examples"),
    _read(confidence_regulators, "examples", start=8, counted=_probe_work),
    Plan(
        sweep,
        ("examples",),
        start=8,
        size=lambda request: len(_units(request)[1]),
        first=32,
        resized=_some_units,
        counted=_sweep_work,
        cheaper=_cheaper_sweep,
    ),
    Plan(verify, ("examples",), start=8, **_VERDICT),
    Plan(audit, ("task",), start=16, **_VERDICT),
    Plan(
        fit_prompt,
        ("examples",),
        start=32,
        size=lambda request: request["epochs"] * request["seeds"],
        resized=lambda request, m: (
            request | {"epochs": min(m, request["epochs"]), "seeds": 1}
            if m < request["epochs"] * request["seeds"]
            else request
        ),
        counted=_training_work,
        cheaper=_cheaper_training,
    ),
    Plan(circuit, ("examples",), start=24, counted=_circuit_work, cheaper=_cheaper_circuit),
)
PLANS: dict[str, Plan] = {plan.verb.__name__: plan for plan in _PLANS}
"""By the name of the verb."""
