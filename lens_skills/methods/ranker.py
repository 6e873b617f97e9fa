"""`rank`: every neuron ranked by one method."""

from collections.abc import Iterable, Sequence
from typing import Any

from lens_skills.activations import BATCH_SIZE, DEFAULT_SITE, Position, parse_metric
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.methods.catalogue import find_methods
from lens_skills.methods.ranking import Ranking
from lens_skills.methods.rankings import rank_all
from lens_skills.models import SoftPrompt


def rank(
    model: Any,
    examples: Sequence[Example],
    metric: Any,
    *,
    method: str = "pearson",
    at: str = DEFAULT_SITE,
    position: Position | None = None,
    layers: int | Iterable[int] | None = None,
    prompt: SoftPrompt | None = None,
    split: str | None = None,
    gate: bool = True,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    chat: bool = False,
    exploratory: bool = False,
    progress: bool | None = None,
) -> Ranking:
    """Every neuron's number by one method, as a `Ranking`.

    Args:
        model: A HookedTransformer or TransformerBridge; an `ActivationTable` for methods that read
            activations only.
        examples: A `Task` or any sequence of `Example`.
        metric: What to rank by, as in `score`. Methods of gradients differentiate it, so for them
            it is something the model says (``"logit_diff"``); the others take any.
        method: One of `METHODS`.
        at: Hook point within a block.
        position: One position: ``"last"`` (default), an index, a span, ``"mean"`` or ``"max"``.
        layers: Which layers (default all).
        prompt: A soft prompt to read every example with.
        split: ``"median"``: a continuous metric as above its median or not.
        gate: Of ``"lape"``: whether a neuron fires is the sign of its MLP's gate. ``False``: of the
            activation itself, for models without a gate.
        seed: Of what is drawn at random.
        batch_size, chat, progress: As in `score`.
        exploratory: Allow a soft prompt trained on these very examples.

    Raises:
        LensSkillsError: An unknown method or hook point, several positions, a metric of a kind the
            method does not take (with the way out), a method that needs a gate on a model without
            one, a metric without a gradient for a method that needs it.
    """
    methods = find_methods([method])
    differentiated = None
    if methods[0].reads == "gradient":
        differentiated = parse_metric(metric, examples, asked=f"the method {method!r}")
    rankings = rank_all(
        model,
        examples,
        metric,
        methods,
        differentiated=differentiated,
        at=at,
        position=position,
        layers=layers,
        prompt=prompt,
        split=split,
        gate=gate,
        seed=seed,
        batch_size=batch_size,
        chat=chat,
        exploratory=exploratory,
        progress=progress,
    )
    if method in rankings.left_out:
        raise LensSkillsError(rankings.left_out[method])
    return rankings.found[method]
