"""`study`: every step from a task to a verdict on its neurons, on one card.

Neurons come through two doors, what knows (association) and what does (prediction by gradients).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from lens_skills.activations import (
    DEFAULT_SITE,
    Metric,
    Position,
    find_site,
    parse_metric,
    parse_metrics,
    parse_position,
)
from lens_skills.activations.locations import Site, edited_positions
from lens_skills.activations.metrics import causal_metric as usual_causal_metric
from lens_skills.errors import LensSkillsError, RunError
from lens_skills.interventions import DEFAULT_CONTROLS, Controls, Edit, Verdict, ablate, verify
from lens_skills.interventions.attribution import check_gradient, predicted_each, predicted_means
from lens_skills.interventions.effects import effect_metric, reads_answers
from lens_skills.models import Chat, ModelAdapter, as_adapter, with_soft_prompt
from lens_skills.results import Result
from lens_skills.scoring import EXPLORATORY, Scores, Selection, score, select
from lens_skills.scoring.evidence import GENERAL
from lens_skills.scoring.predicted_evidence import DOORS, Predicted, seen_words
from lens_skills.scoring.scores import card_lines
from lens_skills.scoring.select import TRIED, add_predicted
from lens_skills.stats.effect_tests import check_groups
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
        selection: What is confirmed and beats the control task, or is confirmed as a predicted
            cause, with the evidence for all.
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
        """``46,080 neurons → … → 18 confirmed (5 basis-privileged) → 11 causal (…)``.

        Of both doors where neurons were found by both.
        """
        return self.selection.attrition_line(self.verdict)

    def evidence(self) -> pd.DataFrame:
        """One row per associated neuron with all that speaks for it, and its grade.

        As `Selection.evidence`, and with a verdict as `Selection.graded`; also of those found by
        prediction: what each knows, what is predicted of it, what it does, one grade.
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
        carry = len(self.selection)
        if self.selection.by != DOORS[0]:
            carry = sum(row["found_by"] in DOORS[::2] for row in self.selection.rows)
        text = f"{carry:,} neurons carry this metric on unseen groups. "
        if self.selection.by != DOORS[0]:
            facts = self.selection.predicted
            text += (
                f"Of {facts['confirmed']:,} an effect on {facts['metric']} is predicted, on unseen "
                "groups as well. "
            )
        if self.verdict is None:
            text += "They are correlates: whether the model uses them takes an intervention."
            if self.selection.by != DOORS[0]:
                text = text.replace("correlates:", "correlates and predictions:")
        else:
            text += "Whether the model uses them is for the verdict below."
        caution = self.caution()
        return f"{text}\ncaution: {caution}" if caution else text

    def caution(self) -> str:
        """What must stand beside the neurons; "" where nothing must.

        That something else than the metric may be behind them, and what *general* does not say.
        """
        return "\n".join(filter(None, (self._explained_away(), self._general())))

    def _general(self) -> str:
        facts = self.selection.predicted
        if not facts or self.verdict is None:
            return ""
        n = self.selection.steps(self.verdict)[DOORS[1]][GENERAL]
        if not n:
            return ""
        return (
            f"{n:,} general: they move {facts['metric']}, and no association with {self.metric} "
            f"was found; {seen_words(facts)}. That is all the word says: they may serve every task "
            "alike, or this one in ways that r does not see. damage_matrix and neutral text tell."
        )

    def _explained_away(self) -> str:
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
        if self.selection.by == DOORS[1]:
            return "no predicted effect is confirmed on unseen groups"
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


# How many of explore's strongest neurons are tested on confirm, of each door.
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
    earlier: Study | None = None,
    most: int = TRIED,
    by: str = "association",
) -> Study:
    """Preflight, split, score, confirm, select, verify: every step there is, on one card.

    The preflight reads at most 300 examples of explore.

    Neurons are found by what they know, by what they do, or by both. *Association*: the activation
    goes with the metric, see `select`. *Prediction*: of every neuron the first-order effect of the
    very edit on ``causal_metric``, (new - old) · ∂m/∂a, signed and averaged over explore; the 200
    largest are predicted again on confirm, and confirmed where the mean's sign is the same, its
    95 % interval over groups leaves 0 out and the q of its cluster-robust p among them is at most
    ``fdr``. Both are intervened on beside the same controls and graded alike; a cause of which no
    association was found is called *general*.

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
        earlier: A study of the same splits with the same model, such as one without ``given`` or
            by the other door: its preflight is shown again, and its metrics' numbers are not read
            again where ``given`` needs them before the pass. A metric of the same name is taken to
            be the same.
        most: How many of the confirmed neurons to intervene on, the strongest on confirm; of each
            door where ``by="both"``.
        by: ``"association"``, ``"prediction"`` or ``"both"``. Prediction takes two passes with
            gradients, of explore and of confirm; what a neuron knows is measured all the same.

    Returns:
        `Study`. Its first line is the attrition: how many neurons were left after each step, and
        what the verdict says of them.

    Raises:
        LensSkillsError: As `score` and `select`; a task too small to split; an ``earlier`` study of
            other examples or another model; to predict, a causal metric without a gradient
            (``correct``, functions of the user), a task that has none, pooled positions, or fewer
            than 8 groups on confirm.

    Source of the prediction: arXiv 2412.18053. Does not show: effects that first order misses, such
    as of saturated neurons and of those that make up for one another; a *general* neuron's being
    about nothing of the task.
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
    check_doors(by)
    if most < 1:
        raise LensSkillsError(f"most= is how many neurons to try, 1 or more, not {most}.")
    others = [other for other in parse_metrics(also, task) if other.name != main.name]
    if len(fractions) not in (2, 3):
        raise LensSkillsError(
            f"fractions={fractions}: give the shares of explore, confirm and (for a verdict) "
            "intervene."
        )
    explore, confirm, *rest = task.split(*fractions, seed=seed, names=SPLITS[: len(fractions)])
    preflight = None
    if earlier is not None:
        main, *others = _with_numbers([main, *others], earlier, model, explore, confirm, chat)
        preflight = earlier.preflight
    if causal_metric is None:
        causal_metric = usual_causal_metric(task)
    prediction = None
    if by != DOORS[0]:
        prediction = _Prediction.of(model, explore, confirm, causal_metric, at, position, chat, by)
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
    except RunError:
        raise
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
    do = ablate("mean", over=scores) if do is None else do
    rows, predicted = scores[main.name].top(TESTED).rows, None
    if prediction is not None:
        predicted = prediction.measure(explore, confirm, do, fdr=fdr, seed=seed)
        rows = torch.cat([rows, predicted.neurons]).unique(dim=0)
    neurons = scores.components(_places(scores, rows))
    confirm_scores = score(model, confirm, metrics=[main], neurons=neurons, **common)
    chosen = select(scores[main.name], confirm_scores[main.name], fdr=fdr)
    if predicted is not None:
        views = scores[main.name], confirm_scores[main.name]
        chosen = add_predicted(chosen, *views, predicted, by=by)
    intervene = few(rest[0], n_intervene, seed=seed) if rest else None
    verdict, no_verdict = None, _no_verdict(chosen, intervene, causal_metric)
    if intervene is not None and not no_verdict:
        try:
            verdict = verify(
                model,
                intervene,
                chosen.to_try(most),
                do=do,
                metric=causal_metric,
                delta=delta,
                controls=controls,
                chat=chat,
                seed=seed,
            )
        except RunError:
            raise
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


def check_doors(by: str) -> None:
    """Refuses what is no way of finding neurons."""
    if by not in DOORS:
        raise LensSkillsError(f"no way by={by!r} to find neurons. Choose from: {', '.join(DOORS)}.")


@dataclass(frozen=True, eq=False)
class _Prediction:
    """What is differentiated where.

    Attributes:
        adapter, metric, site, position: Of the passes with gradients.
    """

    adapter: ModelAdapter
    metric: Metric
    site: Site
    position: Position

    @classmethod
    def of(
        cls,
        model: Any,
        explore: Task,
        confirm: Task,
        causal_metric: Any,
        at: str,
        position: Position,
        chat: Chat,
        by: str,
    ) -> "_Prediction":
        """Refuses before anything is scored what no gradient can be had of."""
        if causal_metric is None:
            raise LensSkillsError(
                f"by={by!r} predicts effects, and the task has no answers to measure effects by. "
                "Name a metric, causal_metric=…, or say by='association'."
            )
        check_groups([e.group for e in confirm], "a prediction confirmed",
                     instead="by='association' asks for no such interval.")  # fmt: skip
        edited_positions(position)
        adapter = with_soft_prompt(model, None, chat)
        made = cls(adapter, effect_metric(causal_metric), find_site(adapter, at), position)
        try:
            check_gradient(adapter, explore, made.metric, made.site, position=position)
        except RunError:
            raise
        except LensSkillsError as error:
            raise LensSkillsError(
                f"by={by!r} predicts effects by gradients, and here there are none: {error} Say "
                "causal_metric=… for a metric that has one ('logit_diff', 'answer_probability'), "
                "or by='association'."
            ) from error
        return made

    def measure(
        self, explore: Task, confirm: Task, do: Edit, *, fdr: float, seed: int
    ) -> Predicted:
        """The largest predicted effects of explore, and what confirm says of them."""
        where = {"position": self.position}
        means = predicted_means(
            self.adapter, explore, self.metric, self.site, self._bound(do, explore, seed), **where
        )
        order = means.nan_to_num(0.0).abs().argsort(descending=True, stable=True)[:TESTED]
        width = len(means) // len(self.site.layers)
        layers = torch.tensor(self.site.layers)[order // width]
        rows = torch.stack([layers, order % width], dim=1)
        values = predicted_each(
            self.adapter, confirm, self.metric, self.site, self._bound(do, confirm, seed), rows,
            **where,
        )  # fmt: skip
        return Predicted.of(
            rows,
            means[order],
            values,
            [example.group for example in confirm],
            fdr=fdr,
            metric=self.metric.name,
            unit=self.metric.unit,
            do=do.name,
            seed=seed,
        )

    def _bound(self, do: Edit, examples: Task, seed: int) -> Any:
        return do.bind(
            self.adapter,
            examples,
            {self.site.name: self.site.layers},
            position=self.position,
            seed=seed,
            answers=reads_answers(self.metric),
        )


def _places(scores: Scores, rows: Int[Tensor, "k 2"]) -> Int[Tensor, " k"]:
    return torch.tensor([scores.places[int(layer), int(index)] for layer, index in rows.tolist()])


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
            if chosen.grade == "C" or chosen.by != DOORS[0]
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
