"""`study`: every step from a task to a verdict on its neurons, on one card."""

from collections.abc import Sequence
from typing import Any

from lens_skills.activations import (
    DEFAULT_SITE,
    Position,
    find_site,
    parse_metric,
    parse_metrics,
    parse_position,
)
from lens_skills.card import Study
from lens_skills.causal import Edit, ablate, verify
from lens_skills.errors import LensSkillsError
from lens_skills.models import as_lens
from lens_skills.scoring import Selection, score, select
from lens_skills.stats.exchange import check_scheme
from lens_skills.tasks import Preflight, Task, causal_metric, describe, few, require_examples

# How many of explore's strongest neurons are tested on confirm.
TESTED = 200
# Examples the preflight reads: enough for shares of a few per cent, at half a pass's cost.
_PREFLIGHT = 300


def study(
    model: Any,
    task: Task,
    *,
    metric: Any = None,
    also: Sequence[Any] = (),
    at: str = DEFAULT_SITE,
    position: Position = "last",
    given: Sequence[str] = (),
    fractions: Sequence[float] = (0.4, 0.2, 0.4),
    causal: Any = None,
    do: Edit | None = None,
    delta: float | None = None,
    n_trials: int = 64,
    n_controls: int = 200,
    n_peers: int | None = 1000,
    fdr: float = 0.05,
    exchange: str = "auto",
    n_permutations: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    chat: bool = False,
    preflight: Preflight | None = None,
    progress: bool | None = None,
) -> Study:
    """Preflight, split, score, confirm, select, verify: every step there is, on one card.

    The preflight reads at most 300 examples of explore.

    Args:
        model: A HookedTransformer or TransformerBridge.
        task: The task; it is split by group into explore, confirm and intervene.
        metric: What to look for. Default: ``logit_diff`` where the task has foils or options,
            else ``correct`` where it has answers, else the first label.
        also: Further metrics of the same pass, for the heat map.
        at, position, given, exchange, n_permutations: As in `score`.
        fractions: Shares of explore, confirm and intervene; without the third, no verdict.
        causal: The metric interventions are judged by. Default: ``logit_diff`` where the task has
            foils or options, else ``answer_probability``.
        do: The edit of the verdict; default mean ablation, means from explore.
        delta: The smallest effect that matters, in the unit of ``causal``; see `verify`.
        n_trials: Examples of intervene that are edited, spread over its groups.
        n_controls, n_peers: As in `verify`, whose time is about that of ``n_peers`` single-neuron
            effects per layer on trial. Fewer of them and fewer trials shorten a verdict on
            neurons of many layers.
        fdr: Of `select`.
        seed: Of the split and all draws.
        batch_size, chat, progress: As in `score`.
        preflight: Of an earlier study of the same split, to be shown again instead of measured.

    Returns:
        `Study`. Its first line is the attrition: how many neurons were left at each gate, and
        what the verdict says of them.

    Raises:
        LensSkillsError: As `score` and `select`; a task too small to split.
    """
    require_examples(task, 40)
    main = parse_metric(
        _default_metric(task) if metric is None else metric, task, asked="study(metric=…)"
    )
    # Said before the preflight, which takes a while.
    find_site(as_lens(model), at)
    parse_position(position)
    check_scheme(exchange)
    for name in given:
        task.column(name)
    others = [other for other in parse_metrics(also, task) if other.name != main.name]
    if len(fractions) not in (2, 3):
        raise LensSkillsError(
            f"fractions={fractions}: give the shares of explore, confirm and (for a verdict) "
            "intervene."
        )
    explore, confirm, *rest = task.split(*fractions, seed=seed)
    judge = causal_metric(task) if causal is None else causal
    common: dict[str, Any] = {
        "at": at,
        "position": position,
        "given": given,
        "exchange": exchange,
        "seed": seed,
        "batch_size": batch_size,
        "chat": chat,
        "progress": progress,
    }
    sample = explore
    if len(explore) > _PREFLIGHT:
        (sample,) = explore.split(_PREFLIGHT / len(explore), seed=seed)
    preflight = preflight or describe(
        model,
        sample,
        metrics=[main, *others],
        chat=chat,
        batch_size=batch_size,
        progress=progress,
    )
    try:
        found = score(
            model, explore, metrics=[main, *others], n_permutations=n_permutations, **common
        )
    except LensSkillsError as error:
        if main.name not in preflight.constant:
            raise
        raise LensSkillsError(
            f"{main.name!r} cannot be studied here: {error}\n{preflight}"
        ) from error
    if main.name not in found.metrics:
        raise LensSkillsError(
            f"{main.name!r} cannot be studied here: {found.excluded_metrics[main.name]}.\n"
            f"{preflight}"
        )
    neurons = found[main.name].top(TESTED)
    checked = score(model, confirm, metrics=[main], neurons=neurons, **common)
    chosen = select(found[main.name], checked[main.name], fdr=fdr)
    trial = few(rest[0], n_trials, seed=seed) if rest else None
    verdict, untried = None, _no_trial(chosen, trial, judge, chat)
    if trial is not None and not untried:
        try:
            verdict = verify(
                model,
                trial,
                chosen,
                do=ablate("mean", over=found) if do is None else do,
                metric=judge,
                delta=delta,
                n_controls=n_controls,
                n_peers=n_peers,
                seed=seed,
                batch_size=batch_size,
                progress=progress,
            )
        except LensSkillsError as error:
            # The search is done and worth its card; the card says why it ends here.
            untried = str(error)
    return Study(
        preflight, found, checked, chosen, main.name, explore, confirm, trial, verdict, untried
    )


def _no_trial(chosen: Selection, trial: Task | None, judge: Any, chat: bool) -> str:
    if trial is None:
        return "no third split was asked for; fractions=(0.4, 0.2, 0.4) makes one"
    if len(chosen) == 0:
        return "nothing was confirmed"
    if judge is None:
        return "the task has no answers to judge by; name a metric: causal=…"
    return "prompts in a chat template cannot be edited yet" if chat else ""


def _default_metric(task: Task) -> str:
    metric = causal_metric(task)
    if metric is not None:
        return metric if metric == "logit_diff" else "correct"
    labels = sorted({name for example in task for name in example.labels})
    if not labels:
        raise LensSkillsError(
            f"the task {task.name!r} has neither answers nor labels. Name a metric to study."
        )
    return f"label:{labels[0]}"
