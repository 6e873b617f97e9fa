"""What explaining neurons costs, and what explains the strongest confidence neurons.

    python benchmarks/explaining.py time       # 100 neurons, 2,000 examples
    python benchmarks/explaining.py shortcuts  # SmolLM2 and arithmetic-small

The time is that of ``explain`` less that of one pass that only captures the same activations: the
bank, the fit, the nulls, and the tokens of the top and bottom examples. It is processor time on one
thread, so that a busy machine does not count.
"""

import time
from typing import Any

import torch
from timing import arguments, run_parts, table

import lens_skills as ls
from lens_skills.activations.activation_reader import read_neurons
from lens_skills.explanation import explain, feature_bank, shortcuts
from lens_skills.models import as_adapter
from lens_skills.tasks import few

NEURONS, EXAMPLES, STRONGEST = 100, 2000, 5
BAR = 60.0  # seconds beyond one capture pass


def timing(model_name: str | None, n_permutations: int) -> dict[str, float]:
    """Processor seconds of the parts, and the bar over what was taken."""
    torch.set_num_threads(1)
    adapter = as_adapter(ls.load_model(model_name))
    task = ls.tasks.arithmetic("+-*", digits=(1, 2), n=EXAMPLES)
    generator = torch.Generator().manual_seed(0)
    flat = torch.randperm(adapter.n_layers * adapter.d_mlp, generator=generator)[:NEURONS]
    rows = torch.stack([flat // adapter.d_mlp, flat % adapter.d_mlp], 1)
    start = time.process_time()
    read_neurons(adapter, task, rows, position="last")
    capture = time.process_time() - start
    start = time.process_time()
    bank = feature_bank(task)
    banked = time.process_time() - start
    start = time.process_time()
    why = explain(adapter, task, rows, features=bank, n_permutations=n_permutations)
    whole = time.process_time() - start
    beyond = banked + whole - capture
    table(
        f"{NEURONS} neurons of {adapter.name}, {EXAMPLES:,} examples, {len(why.features)} "
        f"features, {n_permutations} permutations",
        {
            "one capture pass": f"{capture:.1f} s",
            "feature bank": f"{banked:.1f} s",
            "explain, all of it": f"{whole:.1f} s",
            "beyond the capture pass": f"{beyond:.1f} s (at most {BAR:.0f})",
        },
    )
    return {
        "explain_features": len(why.features),
        "capture_seconds": capture,
        "explain_seconds": whole,
        "explain_beyond_capture_seconds": beyond,
        "explain_vs_bar": BAR / beyond,
    }


def strongest(model_name: str | None) -> dict[str, float]:
    """The strongest confidence neurons on sums, each with its explanation and verdict."""
    model = ls.load_model(model_name)
    small = model_name == "arithmetic-small"
    task: Any = ls.tasks.arithmetic("+" if small else "+-*", digits=(1, 2), n=1200)
    explore, confirm, intervene = task.split(0.5, 0.2, 0.3, seed=0)
    found = shortcuts(
        model,
        explore,
        confirm,
        few(intervene, 150, seed=0),
        metric=ls.confidence(),
        k=STRONGEST,
    )
    print(f"\n{found}\n\n{found.explanations}")
    name = "small" if small else "smollm"
    return {
        f"{name}_{word.replace(' ', '_').replace(',', '')}": float(n)
        for word, n in found.counts.items()
    }


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("part", nargs="?", choices=["time", "shortcuts"])
    parser.add_argument("--permutations", type=int, default=999)
    asked = parser.parse_args()
    ls.config(progress=False)
    run_parts(
        {
            "time": lambda: timing(None, asked.permutations),
            "shortcuts": lambda: strongest("arithmetic-small") | strongest(None),
        },
        asked,
        only=asked.part,
    )
