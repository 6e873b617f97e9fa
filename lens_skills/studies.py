"""`study`: every step from a task to a verdict on its neurons, on one card."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from lens_skills.activations import (
    DEFAULT_SITE,
    Metric,
    Position,
    find_site,
    parse_metric,
    parse_metrics,
    parse_position,
)
from lens_skills.activations.metrics import causal_metric as usual_causal_metric
from lens_skills.errors import LensSkillsError
from lens_skills.interventions import DEFAULT_CONTROLS, Controls, Edit, Verdict, ablate, verify
from lens_skills.models import Chat, as_adapter, with_soft_prompt
from lens_skills.results import Result
from lens_skills.scoring import EXPLORATORY, Scores, Selection, score, select
from lens_skills.scoring.scores import card_lines
from lens_skills.scoring.select import TRIED
from lens_skills.stats.multiple_testing import check_scheme
from lens_skills.tasks import SPLITS, Preflight, Task, few, require_examples
from lens_skills.tasks import preflight as run_preflight

# How well other columns must predict a metric (R², and AUROC where it is 0/1) to be warned of.
_EXPLAINED = {False: 0.25, True: 0.75}


@dataclass(frozen=True, eq=False)
class Study(Result):
    """What every step found; printing it shows one card.

    Attributes:
        preflight: Whether there is a skill, and what would explain it away.
        scores: Of all neurons, on the explore split.
        confirm_scores: Of explore's strongest, on the confirm split.
        selection: What is confirmed and beats the control task, with the evidence for all.
        metric: The metric the selection is about.
        explore, confirm, intervene: The splits, none sharing a group; the last may be missing.
        verdict: What interventions show of the strongest of them, on ``intervene``. None where
            there is none.
        no_verdict: Why there is none.
    """

    preflight: Preflight
    scores: Scores
    confirm_scores: Scores
    selection: Selection
    metric: str
    explore: Task
    confirm: Task
    intervene: Task | None
    verdict: Verdict | None
    no_verdict: str = ""

    def __repr__(self) -> str:
        verdict = f"No verdict: {self.no_verdict}."
        if self.verdict is not None:
            verdict = f"Verdict (on a third split)\n{self.verdict!r}"
        above = card_lines([self.attrition_line(), *self._findings()])
        return "\n".join([*above, "", verdict, "", "Preflight", repr(self.preflight)])

    def attrition_line(self) -> str:
        """``46,080 neurons → … → 18 confirmed (5 basis-privileged) → 11 causal (…)``."""
        return self.selection.attrition_line(self.verdict)

    def evidence(self) -> pd.DataFrame:
        """One row per associated neuron with all that speaks for it, and its grade.

        As `Selection.evidence`, and with a verdict as `Selection.graded`.
        """
        if self.verdict is None:
            return self.selection.evidence()
        return self.selection.graded(self.verdict)

    def _findings(self) -> list[str]:
        scores, confirm = self.scores, self.confirm_scores
        lines = [
            f"{self.metric} · {scores.site} at {', '.join(scores.positions)}",
            f"explore {_size(scores)}, confirm {_size(confirm)}",
        ]
        if scores.provenance["given"]:
            lines.append(f"partial r, given {', '.join(scores.provenance['given'])}")
        if self.selection.exploratory:
            lines.append(EXPLORATORY)
        lines += ["", *self.selection.card(self.verdict)]
        lines += [f"note: {note}" for note in self.selection.notes]
        return [*lines, "", *self.conclusion().splitlines()]

    def conclusion(self) -> str:
        """What may be said of it in a sentence or two, and a caution where one is due."""
        if self.preflight.skill is False:
            return (
                "no skill to explain: whatever these neurons track, the model does not do the task."
            )
        if len(self.selection) == 0:
            return f"nothing to report: {self._nothing()}."
        text = f"{len(self.selection):,} neurons carry this metric on unseen groups. "
        if self.verdict is None:
            text += "They are correlates: whether the model uses them takes an intervention."
        else:
            text += "Whether the model uses them is for the verdict below."
        caution = self.caution()
        return f"{text}\ncaution: {caution}" if caution else text

    def caution(self) -> str:
        """That something else than the metric may be behind the neurons; "" where nothing is."""
        quality = self.preflight.predicted.get(self.metric, 0.0)
        if (
            self.scores.provenance["given"]
            or quality <= _EXPLAINED[self.metric in self.preflight.binary]
        ):
            return ""
        return (
            f"the task's other columns alone predict {self.metric} ({quality:.2f}); these neurons "
            "may carry those instead. Repeat with given=[…]."
        )

    def _nothing(self) -> str:
        """Why no neuron was selected."""
        rows = self.selection.rows
        if not rows:
            return "no neuron is associated with this metric"
        if any(row["grade"] for row in rows):
            return "no confirmed neuron here is more than what its input types explain"
        return "no associated neuron is confirmed on unseen groups"

    def readable_files(self) -> dict[str, str]:
        """The card, and the neurons and their verdicts as tables, to read without this package."""
        texts = {
            "card.txt": f"{self!r}\n",
            "neurons.csv": self.evidence().to_csv(index=False),
        }
        if self.verdict is not None:
            texts["verdict.csv"] = self.verdict.frame().to_csv(index=False)
        return texts


# How many of explore's strongest neurons are tested on confirm.
TESTED = 200

# Examples the preflight reads: enough for shares of a few per cent, at half a pass's cost.
PREFLIGHT = 300


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
    causal_metric: Any = None,
    do: Edit | None = None,
    delta: float | None = None,
    n_intervene: int = 64,
    controls: Controls = DEFAULT_CONTROLS,
    fdr: float = 0.05,
    exchange: str = "auto",
    n_permutations: int | None = None,
    seed: int = 0,
    chat: Chat = False,
    preflight: Preflight | None = None,
    earlier: Study | None = None,
    most: int = TRIED,
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
        causal_metric: The metric that interventions are measured by. Default: ``logit_diff``
            where the task has foils or options, else ``answer_probability``.
        do: The edit of the verdict; default mean ablation, means from explore.
        delta: The smallest effect that matters, in the unit of ``causal_metric``; see `verify`.
        n_intervene: Examples of intervene that are edited, spread over its groups.
        controls: As in `verify`, whose time is about that of ``controls.neurons`` single-neuron
            effects per layer. Fewer of them, and fewer examples, shorten a verdict on neurons of
            many layers.
        fdr: Of `select`.
        seed: Of the split and all draws.
        chat: As in `score`.
        preflight: Of an earlier study of the same split, to be shown again instead of measured.
        earlier: A study of the same splits with the same model, such as one without ``given``: its
            preflight is shown again, and its metrics' numbers are not read again where ``given``
            needs them before the pass. A metric of the same name is taken to be the same.
        most: How many of the confirmed neurons to intervene on, the strongest on confirm.

    Returns:
        `Study`. Its first line is the attrition: how many neurons were left after each step, and
        what the verdict says of them.

    Raises:
        LensSkillsError: As `score` and `select`; a task too small to split; an ``earlier`` study of
            other examples or another model.
    """
    require_examples(task, 40)
    main = parse_metric(
        default_metric(task) if metric is None else metric, task, asked="study(metric=…)"
    )
    # Said before the preflight, which takes a while.
    find_site(as_adapter(model), at)
    parse_position(position)
    check_scheme(exchange)
    for name in given:
        task.column(name)
    if most < 1:
        raise LensSkillsError(f"most= is how many neurons to try, 1 or more, not {most}.")
    others = [other for other in parse_metrics(also, task) if other.name != main.name]
    if len(fractions) not in (2, 3):
        raise LensSkillsError(
            f"fractions={fractions}: give the shares of explore, confirm and (for a verdict) "
            "intervene."
        )
    explore, confirm, *rest = task.split(*fractions, seed=seed, names=SPLITS[: len(fractions)])
    if earlier is not None:
        main, *others = _with_numbers([main, *others], earlier, model, explore, confirm, chat)
        preflight = preflight or earlier.preflight
    if causal_metric is None:
        causal_metric = usual_causal_metric(task)
    common: dict[str, Any] = {
        "at": at,
        "position": position,
        "given": given,
        "exchange": exchange,
        "seed": seed,
        "chat": chat,
    }
    sample = explore
    if len(explore) > PREFLIGHT:
        (sample,) = explore.split(PREFLIGHT / len(explore), seed=seed)
    preflight = preflight or run_preflight(model, sample, metrics=[main, *others], chat=chat)
    try:
        scores = score(
            model, explore, metrics=[main, *others], n_permutations=n_permutations, **common
        )
    except LensSkillsError as error:
        if main.name not in preflight.constant:
            raise
        raise LensSkillsError(
            f"{main.name!r} cannot be studied here: {error}\n{preflight}"
        ) from error
    if main.name not in scores.metrics:
        raise LensSkillsError(
            f"{main.name!r} cannot be studied here: {scores.excluded_metrics[main.name]}.\n"
            f"{preflight}"
        )
    neurons = scores[main.name].top(TESTED)
    confirm_scores = score(model, confirm, metrics=[main], neurons=neurons, **common)
    chosen = select(scores[main.name], confirm_scores[main.name], fdr=fdr)
    intervene = few(rest[0], n_intervene, seed=seed) if rest else None
    verdict, no_verdict = None, _no_verdict(chosen, intervene, causal_metric)
    if intervene is not None and not no_verdict:
        try:
            verdict = verify(
                model,
                intervene,
                chosen.to_try(most),
                do=ablate("mean", over=scores) if do is None else do,
                metric=causal_metric,
                delta=delta,
                controls=controls,
                chat=chat,
                seed=seed,
            )
        except LensSkillsError as error:
            # The search is done and worth its card; the card says why it ends here.
            no_verdict = str(error)
    return Study(
        preflight,
        scores,
        confirm_scores,
        chosen,
        main.name,
        explore,
        confirm,
        intervene,
        verdict,
        no_verdict,
    )


def _with_numbers(
    metrics: Sequence[Metric], earlier: Study, model: Any, explore: Task, confirm: Task, chat: Chat
) -> list[Metric]:
    """The metrics, with the numbers that an earlier study read of the same splits."""
    about, adapter = earlier.scores.provenance, with_soft_prompt(model, None, chat)
    wrong = []
    if (about.get("model_fingerprint"), about.get("chat")) != (
        adapter.fingerprint(),
        adapter.reading["chat"],
    ):
        wrong.append(f"the model {about.get('model')}, which is not this one, read as this one is")
    if [*earlier.explore, *earlier.confirm] != [*explore, *confirm]:
        wrong.append(f"the task {earlier.explore.name!r}, split otherwise or of other examples")
    if wrong:
        raise LensSkillsError(
            f"earlier= is a study of {' and of '.join(wrong)}. Its numbers say nothing here: leave "
            "earlier= out."
        )
    made = []
    for metric in metrics:
        held: dict[str, float] = {}
        for scores in (earlier.scores, earlier.confirm_scores):
            if metric.name in scores.values:
                numbers = scores.values[metric.name].tolist()
                held |= dict(zip(scores.example_ids, numbers, strict=True))
        made.append(replace(metric, held=held))
    return made


def _size(scores: Scores) -> str:
    size = f"{scores.n_examples:,} examples in {scores.n_groups:,} groups"
    if 0 < scores.effective_groups < 0.95 * scores.n_groups:
        size += f" (as much as {scores.effective_groups:.0f} of one size)"
    return size


def _no_verdict(chosen: Selection, intervene: Task | None, causal_metric: Any) -> str:
    if intervene is None:
        return "no third split was asked for; fractions=(0.4, 0.2, 0.4) makes one"
    if len(chosen) == 0:
        return (
            "nothing was confirmed"
            if chosen.grade == "C"
            else "nothing that beats the control task was confirmed"
        )
    if causal_metric is None:
        return "the task has no answers to measure effects by; name a metric: causal_metric=…"
    return ""


def default_metric(task: Task) -> str:
    """What `study` looks for unless told: ``logit_diff``, else ``correct``, else the first label.

    Raises:
        LensSkillsError: The task has neither answers nor labels.
    """
    metric = usual_causal_metric(task)
    if metric is not None:
        return metric if metric == "logit_diff" else "correct"
    labels = sorted({name for example in task for name in example.labels})
    if not labels:
        raise LensSkillsError(
            f"the task {task.name!r} has neither answers nor labels. Name a metric to study."
        )
    return f"label:{labels[0]}"
