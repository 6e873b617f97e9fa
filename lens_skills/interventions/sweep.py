"""`sweep`: what an edit of each neuron alone does to a metric; of all, or of chosen ones."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lens_skills.activations import DEFAULT_SITE, Position, soft_position
from lens_skills.activations.components import Component, parse_components, sites_of
from lens_skills.checkpoints import resumable
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError, RunError
from lens_skills.interventions.attribution import expected_effects
from lens_skills.interventions.baselines import Change
from lens_skills.interventions.edits import Edit
from lens_skills.interventions.effects import (
    Effects,
    effect_metric,
    measure_effects,
    reads_answers,
)
from lens_skills.interventions.screening import Screening
from lens_skills.models import Chat, ModelAdapter, SoftPrompt, with_soft_prompt
from lens_skills.models.precision import refuse_reduced


@resumable()
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
    chat: Chat = False,
    direct: bool = False,
    screen: float | None = None,
    drawn: float = 0.02,
    seed: int = 0,
    checkpoint: str | Path | None = None,
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
        chat: Read prompts in the tokenizer's chat template; a text: with this system prompt.
        direct: Also the direct effect; see `Effects`.
        screen: Measure only this share of the neurons (0 to 1), those of which gradients expect
            most: the union of the largest predicted effects of the edit (the mean over examples)
            and of the largest Taylor sizes. None: all. Needs a metric with a gradient.
        drawn: Of a screened sweep: this share of all neurons is drawn at random from those left
            out, at least 30, and measured too. `Effects.left_out` says what follows for the rest.
        seed: Of the edit's random draws and of those neurons.
        checkpoint: A folder to resume from, written about once a minute.

    ``config(batch_size=…)`` are the examples whose clean pass is held at once. How many columns
    (neurons x examples x positions) are recomputed at once is found from the free memory and a
    first measured pass; ``config(edit_rows=…, memory_mb=…)`` bound it. Where memory runs out
    nevertheless, half as many are run from there on, with a warning; `Effects.provenance` says how
    many there were.

    Screened, a whole model takes a tenth of the time. Does not show: a large effect that gradients
    do not see; how many there may be is what the drawn ones bound. Nothing predicted is an effect:
    `Effects.names` are the measured ones, ``Effects.frame(every=True)`` says which are.

    Source of the screening: `prescreen`; the drawn ones' intervals: `count_interval`,
    `total_from_sample` in `lens_skills.stats.finite_sample`.

    >>> import lens_skills as ls
    >>> model, task = ls.load_model("arithmetic-small"), ls.tasks.arithmetic("+", n=4)
    >>> found = sweep(model, task, do=ls.ablate("zero"), metric="logit_diff", screen=0.05)
    >>> sorted(set(found.frame(every=True)["known"]))
    ['exact', 'predicted']

    Raises:
        LensSkillsError: No examples, unknown neurons, a metric the task cannot give or that no
            model is needed for, an effect that is not finite (with its neuron and example).
    """
    adapter = with_soft_prompt(model, prompt, chat)
    refuse_reduced(adapter, "sweep")
    units = parse_components(adapter, neurons, at=at)
    position, screening = soft_position(adapter, position), None
    change: Edit | Change = do
    if screen is not None:
        change, screening = _screened(
            adapter, examples, units, do, metric, position, seed, screen, drawn
        )
        units = [units[place] for place in screening.measured.nonzero()[:, 0].tolist()]
    effects = measure_effects(
        adapter,
        examples,
        [(unit,) for unit in units],
        change,
        metric=metric,
        position=position,
        names=[unit.name for unit in units],
        direct=direct,
        seed=seed,
    )
    if screening is None:
        return effects
    told = {"share": screening.share, "chosen": int(screening.chosen.sum())}
    told |= {"drawn": int(screening.drawn.sum()), "of": len(screening.names)}
    return replace(
        effects, screening=screening, provenance={**effects.provenance, "screening": told}
    )


def _screened(
    adapter: ModelAdapter,
    examples: Sequence[Example],
    units: Sequence[Component],
    do: Edit,
    metric: Any,
    position: Position,
    seed: int,
    screen: float,
    drawn: float,
) -> tuple[Change, Screening]:
    """The edit, bound to all units, and which of them are to be measured."""
    watched = effect_metric(metric)
    if not units or len(examples) == 0:
        raise LensSkillsError("nothing to screen: there are no neurons, or no examples.")
    change = do.bind(
        adapter,
        examples,
        sites_of(units),
        position=position,
        seed=seed,
        answers=reads_answers(watched),
    )
    try:
        taylor, predicted = expected_effects(
            adapter, examples, units, metric=watched, change=change, position=position
        )
    except RunError:
        raise
    except LensSkillsError as error:
        raise LensSkillsError(
            f"screen chooses by gradients, and here there are none: {error} Without screen every "
            "neuron is measured."
        ) from error
    assert predicted is not None
    names = tuple(unit.name for unit in units)
    means = torch.stack([predicted.mean(1), taylor.abs().mean(1)])
    return change, Screening.of(names, *means, share=screen, drawn=drawn, seed=seed)
