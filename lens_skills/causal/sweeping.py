"""`sweep`: the exact effect of every neuron alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lens_skills.activations import BATCH_SIZE, DEFAULT_SITE, Position, soft_position
from lens_skills.causal.edits import Edit
from lens_skills.causal.effects import Effects
from lens_skills.causal.measurement import ROWS
from lens_skills.causal.measurement import measure_effects as measure_effects
from lens_skills.causal.units import parse_units
from lens_skills.example import Example
from lens_skills.models import SoftPrompt, prompted


def sweep(
    model: Any,
    examples: Sequence[Example],
    neurons: Any = "all",
    *,
    do: Edit,
    metric: Any,
    at: str = DEFAULT_SITE,
    position: Position | None = None,
    prompt: SoftPrompt | None = None,
    direct: bool = False,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    rows: int = ROWS,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> Effects:
    """The effect of each neuron (or head, or MLP) alone, per example, exact.

    Nothing below the edited layer or left of the edited position is computed again; many neurons
    run side by side. The numbers are those of a full pass with hooks, to float rounding.

    Args:
        model: A HookedTransformer or TransformerBridge; it is left as it was.
        examples: A `Task` or any sequence of `Example`; best a split that selected nothing.
        neurons: What to edit, one at a time: ``"all"`` at the site, names, rows, a `Selection`.
        do: The intervention, e.g. ``ablate("mean", over=explore)``.
        metric: What to watch: a name, a `Metric` or a function.
        at: The site of everything named as a neuron.
        position: Where to edit: ``"last"`` (of the prompt), an index, a span, a list, ``"all"``,
            or ``"prompt"``, the vectors of a soft prompt (the default where there is one).
        prompt: A soft prompt to read every example with.
        direct: Also the direct effect; see `Effects`.
        seed: Of the edit's random draws.
        batch_size: Examples whose clean pass is held at once.
        rows: Columns that are recomputed at once (neurons x examples x positions): bounds memory.
        checkpoint: A folder to resume from, written about once a minute.
        progress: Show a progress bar (None: on a terminal only).

    Raises:
        LensSkillsError: No examples, unknown neurons, a metric the task cannot give or that no
            model is needed for, an effect that is not finite (with its neuron and example).
    """
    lens = prompted(model, prompt)
    units = parse_units(lens, neurons, at=at)
    return measure_effects(
        lens,
        examples,
        [(unit,) for unit in units],
        do,
        metric=metric,
        position=soft_position(lens, position),
        names=[unit.name for unit in units],
        direct=direct,
        seed=seed,
        batch_size=batch_size,
        rows=rows,
        checkpoint=checkpoint,
        progress=progress,
    )
