"""How `Scores` read: as a table, and as a few lines about one metric."""

from typing import Any

import pandas as pd
from torch import Tensor

from lens_skills.stats.intervals import chance_max_r

EXPLORATORY = "EXPLORATORY: splits were reused or a gate was waived; not evidence"


def metric_frame(scores: Any, name: str) -> pd.DataFrame:
    """The rows of one metric of `Scores`, strongest |r| first; see `Scores.frame`."""
    place = scores.metrics.index(name)
    n_pos, n_units = scores.r.shape[1:]
    columns: dict[str, Any] = {
        "layer": scores.layer.repeat(n_pos).numpy(),
        "neuron": scores.neuron.repeat(n_pos).numpy(),
        "position": [label for label in scores.positions for _ in range(n_units)],
        "metric": name,
    }
    named: dict[str, Tensor | None] = {
        "r": scores.r[place],
        "low": scores.low[place],
        "high": scores.high[place],
        "p": None if scores.p is None else scores.p[place],
        "p_family": None if scores.p_family is None else scores.p_family[place],
        "q": None if scores.q is None else scores.q[place],
        "mean": scores.mean,
        "std": scores.std,
        "mean_0": scores.class_means[name][0] if name in scores.class_means else None,
        "mean_1": scores.class_means[name][1] if name in scores.class_means else None,
        "smd": scores.smd.get(name),
        "predictivity": scores.predictivity.get(name),
    }
    for column, tensor in named.items():
        if tensor is not None:
            columns[column] = tensor.reshape(-1).numpy()
    columns["excluded"] = scores.excluded.repeat(n_pos).numpy()
    if scores.exploratory:
        columns["exploratory"] = True
    frame = pd.DataFrame(columns)
    return frame.sort_values("r", key=abs, ascending=False, kind="stable", ignore_index=True)


def summary(scores: Any, metric: str) -> str:
    """A few lines about one metric: attrition through the nulls, and the strongest neurons."""
    view = scores[metric]
    bars = view.thresholds
    lines = [
        f"{metric} · {scores.site} at {', '.join(scores.positions)} · {scores.n_units:,} neurons · "
        f"{scores.n_examples:,} examples in {scores.n_groups:,} groups"
    ]
    if scores.exploratory:
        lines.insert(0, EXPLORATORY)
    steps = [f"{scores.n_units:,} neurons"]
    for gate, passed in view.passing().items():
        bar = bars.bar(gate)
        steps.append(f"{int(passed.any(0).sum()):,} {gate} (|r| > {bar:.2f})")
    lines.append("  " + " → ".join(steps))
    if bars.permutation is None:
        lines.append("  no null was drawn: these are descriptions, without p-values")
    chance = chance_max_r(scores.n_units * len(scores.positions), scores.n_examples)
    lines.append(
        f"  largest |r| {float(view.strength.max()):.2f}; independent neurons would reach "
        f"about {chance:.2f} by chance; {int(scores.excluded.sum()):,} constant neurons left out"
    )
    for layer, neuron in view.top(3).tolist():
        unit = scores.places[layer, neuron]
        position = int(view.r[:, unit].abs().argmax())
        place = scores.metrics.index(metric)
        lines.append(
            f"  L{layer}N{neuron}: r = {float(view.r[position, unit]):+.2f} "
            f"[{float(scores.low[place, position, unit]):+.2f}, "
            f"{float(scores.high[place, position, unit]):+.2f}]"
        )
    return "\n".join(lines)
